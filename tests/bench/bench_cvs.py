"""`cvs` beside `rsync -a`, on a cluster of real processes: from `submit` to the end of the job, in turns.

make bench-cvs
"""

import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.cluster.harness import Cluster

ROUNDS = 3
SMALL_FILES, SMALL_BYTES = 20_000, 2_000
LARGE_BYTES = 1 << 30


def main() -> None:
    top = Path(tempfile.mkdtemp(prefix="tiflow-bench-cvs-"))
    try:
        plant(top)
        table = Table(
            "what", "cvs, unverified", "cvs", "rsync -a", "unverified / rsync", "cvs / rsync", title="seconds, median"
        )
        with Cluster(masters=3, executors=1, slots=4) as cluster:
            for what in ("small", "over", "large"):
                table.add_row(*measure(cluster, top, what))
        Console().print(table)
    finally:
        shutil.rmtree(top, ignore_errors=True)


def plant(top: Path) -> None:
    for number in range(SMALL_FILES):
        path = top / "small" / f"d{number % 200}" / f"f{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(SMALL_BYTES))
    (top / "large").mkdir()
    with (top / "large" / "file").open("wb") as file:
        for _ in range(LARGE_BYTES >> 20):
            file.write(os.urandom(1 << 20))


def measure(cluster: Cluster, top: Path, what: str) -> list[str]:
    """`over`: the small files once more, over what was copied just before."""
    source = top / ("small" if what == "over" else what)
    ways: dict[str, Callable[[Path], None]] = {
        "cvs": lambda target: copy(cluster, source, target, verify=False),
        "verify": lambda target: copy(cluster, source, target, verify=True),
        "rsync": lambda target: rsync(source, target),
    }
    took: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            target = top / f"target-{name}"
            if what != "over":
                shutil.rmtree(target, ignore_errors=True)
            os.sync()
            began = time.monotonic()
            way(target)
            took[name].append(time.monotonic() - began)
            assert same_size(source, target), f"{name} left something out"
    medians = {name: statistics.median(times) for name, times in took.items()}
    shown = {"small": f"{SMALL_FILES:,} files of {SMALL_BYTES:,} bytes", "large": "one file of 1 GiB"}
    label = shown.get(what, "the small files again, nothing changed")
    if not shutil.which("rsync"):
        return [label, *(f"{medians[name]:.2f}" for name in ("cvs", "verify")), "-", "-", "-"]
    ratios = [f"{medians[name] / medians['rsync']:.2f}" for name in ("cvs", "verify")]
    return [label, *(f"{medians[name]:.2f}" for name in ways), *ratios]


def copy(cluster: Cluster, source: Path, target: Path, *, verify: bool) -> None:
    config = {"source": str(source), "target": str(target), "verify": verify}
    job = cluster.client().run_job("cvs", config)
    info = job.wait(timeout_s=600)
    assert info.state == "Finished", info.error
    job.delete()


def rsync(source: Path, target: Path) -> None:
    if shutil.which("rsync"):
        subprocess.run(["rsync", "-a", f"{source}/", f"{target}/"], check=True)
    else:
        shutil.copytree(source, target, dirs_exist_ok=True)


def same_size(source: Path, target: Path) -> bool:
    def sizes(root: Path) -> list[tuple[str, int]]:
        files = (path for path in root.rglob("*") if path.is_file())
        return sorted((str(path.relative_to(root)), path.stat().st_size) for path in files)

    return sizes(source) == sizes(target)


if __name__ == "__main__":
    main()
