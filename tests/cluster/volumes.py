"""Small file systems of a test's own: one that can be full, and one that can lose power. They take root."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

MIB = 1 << 20
SYSTEM_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


@contextmanager
def mounted(directory: Path, *options: str) -> Iterator[Path]:
    """`mount OPTIONS DIRECTORY` while the block runs. Skips the test where that is not allowed."""
    if os.getuid() != 0:
        pytest.skip("mounting a file system takes root")
    directory.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["mount", *options, str(directory)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot mount here: {done.stderr.strip()}")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


@contextmanager
def tmpfs(directory: Path, size_bytes: int) -> Iterator[Path]:
    with mounted(directory, "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs") as path:
        yield path


class PowerCut:
    """An ext4 for each of the data directories below `directory`, in files that can be copied as a power cut would
    leave them: what was not synced is missing. The file systems write nothing back by themselves for 300 s."""

    def __init__(self, directory: Path, names: list[str], size_bytes: int = 48 * MIB) -> None:
        self._directory = directory
        self._names = names
        self._stack = ExitStack()
        self._generation = 0
        self._old: list[Path] = []
        if shutil.which("mkfs.ext4", path=SYSTEM_PATH) is None:
            pytest.skip("mkfs.ext4 is not installed")
        for name in names:
            image = self._image(name)
            with image.open("wb") as file:
                file.truncate(size_bytes)
            mkfs = ["mkfs.ext4", "-q", "-m", "0", "-E", "nodiscard,lazy_itable_init=1", str(image)]
            subprocess.run(mkfs, check=True, env=os.environ | {"PATH": SYSTEM_PATH})
        self._mount()

    def ballast(self, name: str) -> "Ballast":
        return Ballast(self._directory / name)

    def cut(self) -> None:
        """Nothing that writes may run: processes are stopped (SIGSTOP)."""
        before = [self._image(name) for name in self._names]
        self._generation += 1
        for image, name in zip(before, self._names, strict=True):
            subprocess.run(["cp", "--sparse=always", str(image), str(self._image(name))], check=True)
        self._old = before

    def restore(self) -> None:
        """Mount what the cut left. The processes that used the old file systems are dead."""
        self.close()
        self._mount()
        for image in self._old:
            image.unlink()

    def close(self) -> None:
        self._stack.close()

    def _mount(self) -> None:
        for name in self._names:
            options = ("-o", "loop,commit=300", str(self._image(name)))
            self._stack.enter_context(mounted(self._directory / name, *options))

    def _image(self, name: str) -> Path:
        return self._directory / f"{name}-{self._generation}.img"


class Ballast:
    """A file that takes the room of a small file system."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._path = directory / "ballast"

    def leave(self, free_bytes: int) -> None:
        """Take all of the room but so much."""
        self.remove()
        stat = os.statvfs(self._directory)
        # what it takes by itself, beside the file, may be what is missing at last
        with self._path.open("wb") as file, suppress(OSError):
            os.posix_fallocate(file.fileno(), 0, stat.f_bavail * stat.f_frsize - free_bytes)

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)


@contextmanager
def small_disks(directory: Path, names: list[str], size_bytes: int) -> Iterator[dict[str, Ballast]]:
    """A tmpfs for each of the data directories below `directory`."""
    with ExitStack() as stack:
        yield {name: Ballast(stack.enter_context(tmpfs(directory / name, size_bytes))) for name in names}
