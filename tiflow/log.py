"""Log lines: a time, a level, the name of what happened, and fields. To stderr, or to a file.

Processes that stay import this before anything else that logs.
"""

import importlib
import logging
import sys
from typing import TextIO

from tiflow.errors import FailedPrecondition

if "structlog" not in sys.modules and "rich" not in sys.modules:
    # structlog would load rich for tracebacks that are not shown here: 5 MiB, and 50 ms of each start
    sys.modules["rich"] = None  # type: ignore[assignment]
    try:
        importlib.import_module("structlog")
    finally:
        del sys.modules["rich"]

import structlog

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def configure(level: str = "info", file: str = "") -> None:
    """Send the lines of this process to stderr, or append them to `file`. What libraries log through the standard
    library (pysyncobj, grpc) joins them from WARNING on."""
    stream = _open(file) if file else sys.stderr
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _Lines(colors=not file and stream.isatty()),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.WriteLoggerFactory(stream),
        cache_logger_on_first_use=True,
    )
    # it logs a traceback for each message that is not protobuf; the caller is told, and anybody could fill our disk
    logging.getLogger("grpc._cython.cygrpc").setLevel(logging.CRITICAL)
    root = logging.getLogger()
    root.handlers = [_ToStructlog()]
    root.setLevel(max(logging.WARNING, _LEVELS[level]))


class _Lines:
    """One event as one line: `2026-01-02T03:04:05.678Z info    leader_elected term=3 name=m1`."""

    def __init__(self, *, colors: bool) -> None:
        self._colors = colors
        self._fields = structlog.processors.LogfmtRenderer()

    def __call__(self, logger: object, method: str, event: structlog.typing.EventDict) -> str:
        at, level, name = event.pop("timestamp"), event.pop("level"), event.pop("event")
        trace = event.pop("exception", None)
        fields = self._fields(logger, method, {key: _plain(value) for key, value in event.items()})
        if self._colors:
            name = f"\x1b[1m{name}\x1b[0m"
            level = f"\x1b[{_COLORS.get(level, 0)}m{level:<7}\x1b[0m"
        line = f"{at[:23]}Z {level:<7} {name} {fields}".rstrip()
        return f"{line}\n{trace}" if trace else line


_COLORS = {"debug": 2, "info": 32, "warning": 33, "error": 31, "critical": 31}


class _ToStructlog(logging.Handler):
    """A record of the standard library as an event of ours."""

    def emit(self, record: logging.LogRecord) -> None:
        level = min(record.levelno, logging.ERROR)
        structlog.get_logger().log(
            level,
            record.getMessage(),
            logger=record.name,
            **({"exc_info": record.exc_info} if record.exc_info else {}),
        )


def _plain(value: object) -> object:
    # a bool as `true`; the renderer would write a True as its bare name
    return str(value).lower() if isinstance(value, bool) else value


def _open(file: str) -> TextIO:
    try:
        # for the life of the process; line buffered, so that a crash loses nothing
        return open(file, "a", encoding="utf-8", buffering=1)
    except OSError as error:
        raise FailedPrecondition(
            f"log.file = {file}: cannot be written ({error.strerror}); name another file, or none for stderr"
        ) from None
