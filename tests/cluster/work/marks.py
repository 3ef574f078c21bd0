"""Tasks that write what they do to a file, so that a test can see it from outside: overlap, restarts, deaths."""

import fcntl
import json
import os
import time
from pathlib import Path
from typing import Any


def mark(path: str, event: str) -> None:
    line = json.dumps(
        {
            "event": event,
            "index": int(os.environ["TIFLOW_INDEX"]),
            "attempt": int(os.environ["TIFLOW_ATTEMPT"]),
            "pid": os.getpid(),
            "at": time.clock_gettime(time.CLOCK_MONOTONIC),
        }
    )
    with open(path, "a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(line + "\n")


def hold(item: list[Any]) -> int:
    """Work for item[1] seconds, and say every 20 ms that it is alive."""
    path, seconds = item
    mark(path, "start")
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.02)
        mark(path, "alive")
    mark(path, "end")
    return int(os.environ["TIFLOW_ATTEMPT"])


def read(path: str | Path) -> list[dict[str, Any]]:
    file = Path(path)
    text = file.read_text() if file.exists() else ""
    lines = text[: text.rfind("\n") + 1].splitlines()  # the last one is perhaps being written
    return [json.loads(line[line.rfind(_BEGINNING) :]) for line in lines]  # who was killed may have left half a line


_BEGINNING = '{"event"'


def gated(path: str) -> None:
    """Work until the file is there."""
    while not os.path.exists(path):
        time.sleep(0.02)


def echo(item: Any) -> Any:
    return item


def big(size: int) -> bytes:
    return bytes(range(256)) * (size // 256)


def fail(item: Any) -> None:
    raise ValueError(f"no luck with {item}")


def fail_until(item: list[Any]) -> int:
    """Fail in all attempts before the item[0]-th."""
    attempt = int(os.environ["TIFLOW_ATTEMPT"])
    if attempt < item[0]:
        raise ValueError(f"attempt {attempt}")
    return attempt


def die(item: Any) -> None:
    os._exit(3)


def talk(item: str) -> None:
    print(f"said {item}")


def fork(path: str) -> int:
    """A child that returns from the function, as its parent does."""
    child = os.fork()
    mark(path, "parent" if child else "child")
    return child


def slow(seconds: float) -> None:
    time.sleep(seconds)


def whoami(item: Any) -> str:
    """Where this executor keeps its things."""
    return os.path.dirname(os.path.dirname(os.getcwd()))


def burn(mib: int) -> int:
    data = bytearray(mib << 20)
    data[::4096] = data[::4096]
    return sum(range(2_000_000))
