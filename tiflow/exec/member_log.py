"""The log of a member's process: `tiflow.log`, from info on, loaded with the first line.

structlog takes a third of the time in which such a process starts, and most members log nothing.
"""

import functools
import logging
import sys
from typing import Any


class MemberLog:
    """A logger of structlog, with fields bound to it, that is made when it is used."""

    def __init__(self, **fields: object) -> None:
        self._fields = fields

    def debug(self, event: str, *_: object, **__: object) -> None:
        """Nothing below info is written: no reason to load anything."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)  # who copies or pickles it asks for such
        if "_log" not in self.__dict__:
            _configure()
            import structlog

            self._log = structlog.get_logger().bind(**self._fields)
        return getattr(self._log, name)


class _First(logging.Handler):
    """Of the standard library: the first record that is worth a line."""

    def emit(self, record: logging.LogRecord) -> None:
        for handler in _configure():
            handler.handle(record)


def prepare() -> None:
    """Of this process, before it loads code of others."""
    root = logging.getLogger()
    root.handlers = [_First()]
    root.setLevel(logging.WARNING)


def configure_if_used() -> None:
    """What the members' code has imported may log through structlog by itself."""
    if "structlog" in sys.modules:
        _configure()


@functools.cache
def _configure() -> list[logging.Handler]:
    """What others have configured meanwhile stays, as if ours had come before. Returns: our handlers."""
    import structlog

    from tiflow import log

    root = logging.getLogger()
    level, before = root.level, root.handlers
    theirs = structlog.get_config() if structlog.is_configured() else None
    log.configure()
    ours = root.handlers
    root.handlers = [new for old in before for new in (ours if isinstance(old, _First) else [old])]
    root.setLevel(level)
    if theirs is not None:
        structlog.configure(**theirs)
    return ours
