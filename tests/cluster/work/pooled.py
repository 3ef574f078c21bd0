"""What pools call in tests. Executors import it by its name."""

import os
import threading
import time
from pathlib import Path
from typing import Any


def square(x: int) -> int:
    return x * x


def capture(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, kwargs


def pid(_: Any = None) -> int:
    return os.getpid()


def note(path: str, word: str) -> str:
    with open(path, "a", encoding="utf-8") as file:
        file.write(f"{word}\n")
    return word


def notes(path: str | Path) -> list[str]:
    return Path(path).read_text().split() if Path(path).exists() else []


def hold(path: str, word: str, gate: str) -> str:
    """Note that it runs, and run until there is a file at `gate`; note how it ends."""
    note(path, word)
    try:
        while not os.path.exists(gate):
            time.sleep(0.01)
    except SystemExit:
        note(path, f"{word}-stopped")
        raise
    note(path, f"{word}-ended")
    return word


def inverse(x: int) -> float:
    return 1 / x


def die(_: Any = None) -> None:
    os._exit(3)


def blob(size: int) -> bytes:
    return os.urandom(1) + bytes(size - 1)


def lock(_: Any = None) -> Any:
    return threading.Lock()


class Picky(Exception):
    """It can be pickled, and not be made again."""

    def __init__(self, one: str, other: str) -> None:
        super().__init__(f"{one}, {other}")


class Heavy(Exception):
    """It cannot be pickled."""

    def __init__(self) -> None:
        super().__init__("holds a lock")
        self.lock = threading.Lock()


def picky() -> None:
    raise Picky("one", "other")


def heavy() -> None:
    raise Heavy


def slow_square(x: int) -> int:
    time.sleep(0.005)
    return x * x
