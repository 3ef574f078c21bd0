"""Calls of a pool on the wire: what a client pickles and a worker loads, and the other way round.

Nobody else loads a pickle: masters and agents pass these bytes on. cloudpickle takes functions and classes that are
defined in a script or a notebook with it by value; what can be imported goes by name.

    item     [position of the function, pickle of (args, kwargs)]
    outcome  [True, pickle of the value]  or  [False, pickle of the exception or None, description, traceback]
"""

import pickle
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any, TypeAlias

import cloudpickle

Outcome: TypeAlias = list[Any]

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
CLOUDPICKLE = version("cloudpickle")
TRACEBACK_CHARS_MAX = 64 << 10
_SIMPLE = frozenset({int, str, float, bool, bytes, type(None)})


def dumps(value: object) -> bytes:
    """A pickle of anything; of simple values by the fast pickler, which takes nothing by value that it should not."""
    simple = type(value) in _SIMPLE
    dumped: bytes = (pickle if simple else cloudpickle).dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
    return dumped


def dump_arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    """What `call` is to call a function with."""
    simple = not kwargs and all(type(arg) in _SIMPLE for arg in args)
    dumped: bytes = (pickle if simple else cloudpickle).dumps((args, kwargs), protocol=pickle.HIGHEST_PROTOCOL)
    return dumped


def misfit(python: str, cloudpickle_version: str) -> str:
    """Why pickles of a client with these versions cannot be loaded here; empty: they can."""
    if python != PYTHON:
        return f"the client runs Python {python}, this executor Python {PYTHON}: the minor versions must be the same"
    if cloudpickle_version.partition(".")[0] != CLOUDPICKLE.partition(".")[0]:
        return (
            f"the client has cloudpickle {cloudpickle_version}, this executor {CLOUDPICKLE}: the major versions must"
            " be the same"
        )
    return ""


def load(function: bytes) -> Callable[..., Any]:
    """The function that was pickled. Raises whatever its pickle, or a module that it imports, raises."""
    loaded: Callable[..., Any] = pickle.loads(function)
    return loaded


def call(function: Callable[..., Any], arguments: bytes, let_through: type[BaseException]) -> Outcome:
    """Call it. An exception is an outcome too, but for `let_through`."""
    try:
        args, kwargs = pickle.loads(arguments)
        value = function(*args, **kwargs)
        return [True, dumps(value)]
    except let_through:
        raise
    except BaseException as error:  # noqa: BLE001  as concurrent.futures does: whoever called hears of it
        return _failure(error)


def call_each(function: Callable[..., Any], chunk: Sequence[tuple[Any, ...]]) -> list[Any]:
    """A chunk of a map."""
    return [function(*args) for args in chunk]


def value_of(outcome: Outcome) -> Any:
    """What the call returned. Raises what it raised, with the remote traceback as its cause."""
    if outcome[0]:
        return pickle.loads(outcome[1])
    _, pickled, description, trace = outcome
    error: BaseException = RemoteError(description)
    if pickled is not None:
        try:
            loaded = pickle.loads(pickled)
        except Exception:  # noqa: BLE001  it cannot be made here: its description is all there is
            loaded = None
        error = loaded if isinstance(loaded, BaseException) else error
    error.__cause__ = RemoteTraceback(trace)
    raise error


class RemoteError(Exception):
    """An exception that cannot be pickled, described."""


class RemoteTraceback(Exception):
    """Where it was raised; the cause of what `Future.result` raises."""

    def __init__(self, trace: str) -> None:
        super().__init__(trace)
        self.trace = trace

    def __str__(self) -> str:
        return f'\n"""\n{self.trace}"""'


def _failure(error: BaseException) -> Outcome:
    try:
        trace = "".join(traceback.format_exception(type(error), error, _theirs(error)))
        description = "".join(traceback.format_exception_only(error)).strip()
    except Exception:  # noqa: BLE001  the user's __str__ and __repr__
        trace = description = type(error).__name__
    try:
        pickled = dumps(error)
    except Exception:  # noqa: BLE001  the user's __reduce__, or what the exception holds
        pickled = None
    return [False, pickled, _clean(description)[-1_000:], _clean(trace)[-TRACEBACK_CHARS_MAX:]]


def _theirs(error: BaseException) -> Any:
    """The traceback without our own frame."""
    return error.__traceback__ and error.__traceback__.tb_next


def _clean(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
