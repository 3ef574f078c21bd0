"""What is said of an exception of user code, which may be anything."""

import traceback

from tiflow.sched.model import ERROR_CHARS_MAX


def cause_of(error: BaseException) -> BaseException:
    """What a task group was left with, if that is one exception."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def describe(error: BaseException) -> str:
    """`Type: message`, also for exceptions that cannot be printed."""
    try:
        text = str(error)
    except Exception:  # noqa: BLE001  the user's __str__
        text = "(its message cannot be printed)"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def traceback_of(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(error))
    except Exception:  # noqa: BLE001  the user's __str__ and __repr__
        return f"{describe(error)}\n"


def cut(text: str) -> str:
    """As much of it as is kept, in what can be encoded: a lone surrogate cannot."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= ERROR_CHARS_MAX else f"{text[: ERROR_CHARS_MAX - 1]}…"
