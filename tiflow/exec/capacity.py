"""What this machine, or this container, has: processors by affinity and cgroup quota, memory by cgroup and RAM.

Reads /proc and /sys once; `root` is where they are found. cgroups of version 1 and 2 are understood, both at once
too: a limit holds for all below it, so the least one on the way up counts.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class Capacity(NamedTuple):
    cpu_milli: int  #: thousandths of a processor
    memory_bytes: int

    @property
    def resources(self) -> dict[str, int]:
        """As executors announce them; what was not found is no bound."""
        found = {"cpu": self.cpu_milli, "memory": self.memory_bytes}
        return {name: amount for name, amount in found.items() if amount}

    @property
    def slots(self) -> int:
        """Whole processors, one at least."""
        return max(1, self.cpu_milli // 1_000)


def detect(root: str | Path = "/") -> Capacity:
    """What a process here can have at most."""
    root = Path(root)
    cpu_milli = 1_000 * len(os.sched_getaffinity(0))
    for directory in _cgroups(root, "cpu"):
        if (quota := _cpu_quota_milli(directory)) is not None:
            cpu_milli = min(cpu_milli, quota)
    memory_bytes = _memory_total(root)
    for directory in _cgroups(root, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            text = _text(directory / name)
            if text.isdigit():
                memory_bytes = min(memory_bytes, int(text)) if memory_bytes else int(text)
    return Capacity(max(1, cpu_milli), memory_bytes)


def oom_kills(root: str | Path = "/") -> int:
    """How many processes of our cgroup the kernel has killed as memory ran out; 0 if it does not say."""
    for directory in _cgroups(Path(root), "memory"):
        for name in ("memory.events", "memory.oom_control"):
            for line in _text(directory / name).splitlines():
                key, _, value = line.partition(" ")
                if key == "oom_kill":
                    return int(value)
    return 0


def own_cgroup(root: str | Path = "/") -> Path | None:
    """The directory of the cgroup of version 2 that this process is in, if there are such."""
    return next(_cgroups(Path(root), ""), None)


def _cpu_quota_milli(directory: Path) -> int | None:
    quota, _, period = _text(directory / "cpu.max").partition(" ")  # version 2
    if not quota:
        quota, period = _text(directory / "cpu.cfs_quota_us"), _text(directory / "cpu.cfs_period_us")
    if quota.isdigit() and period.isdigit() and int(period):
        return int(quota) * 1_000 // int(period)
    return None  # "max", -1, or not there


def _memory_total(root: Path) -> int:
    for line in _text(root / "proc/meminfo").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1_024
    return 0


def _cgroups(root: Path, controller: str) -> Iterator[Path]:
    """The directories of the cgroups that this process is in, those above them too: of version 2, and of the
    controller, if one is named, in version 1."""
    paths = {}
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        for name in controllers.split(",") if controllers else ("",):
            paths[name] = path
    for line in _text(root / "proc/self/mountinfo").splitlines():
        fields, _, filesystem = line.partition(" - ")
        kind, _, options = filesystem.split(" ", 2)
        wanted = "" if kind == "cgroup2" else controller
        if kind not in ("cgroup", "cgroup2") or (kind == "cgroup" and not wanted):
            continue
        if (wanted and wanted not in options.split(",")) or wanted not in paths:
            continue
        path = paths[wanted]
        shown, mount = fields.split(" ")[3:5]
        if shown != "/" and (path == shown or path.startswith(f"{shown}/")):  # a part of the hierarchy is mounted
            path = path[len(shown) :]
        top = root / mount.lstrip("/")
        directory = top / path.strip("/")
        yield directory
        while directory != top and top in directory.parents:
            directory = directory.parent
            yield directory


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
