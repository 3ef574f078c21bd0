"""A framework job as it is submitted: its job master alone, which starts the workers."""

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import msgpack

from tiflow.errors import InvalidArgument
from tiflow.sched.model import Framework


def master_work(type: str, config: Mapping[str, Any], path: tuple[str, ...] = (), *, at: str = "") -> Framework:
    """What a job master is: a class by the name of its job type, and its config. `at` stands before keys in errors.

    Raises:
        InvalidArgument: the config is no table that msgpack knows, or the type, which is installed here, refuses it.
            A type that is not may yet be known to executors.
    """
    if not isinstance(config, Mapping) or not all(isinstance(key, str) for key in config):
        raise InvalidArgument(f"{at}config: must be a table whose keys are strings")
    try:
        encoded = msgpack.encode(dict(config))
    except (TypeError, OverflowError, ValueError, msgspec.MsgspecError) as error:
        raise InvalidArgument(
            f"{at}config cannot be sent ({error}); use None, bool, int, float, str, bytes, lists and dicts"
        ) from None
    _check_config(type, msgpack.decode(encoded), at)
    return Framework(type, config=encoded, path=path)


def _check_config(type: str, config: dict[str, Any], at: str) -> None:
    """As the executor will see it, so that a mistake is told before the job waits for its turn."""
    from tiflow.jobs.framework.types import find_type, is_installed  # classes of users are loaded only when asked for

    if not is_installed(type):
        return
    try:
        master = find_type(type)
    except InvalidArgument as error:
        if isinstance(error.__cause__, ImportError):
            return  # something that it imports is missing here, and need not be missing there
        raise
    try:
        master.check(config)
    except (ValueError, InvalidArgument) as error:
        text = str(error)
        raise InvalidArgument(f"{at}{text if text.startswith('config') else f'config: {text}'}") from None
