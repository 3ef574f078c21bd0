"""A pool: functions of this very script run on the executors of a cluster.

bin/tiflow dev &
TIFLOW_MASTER_ADDRS=127.0.0.1:10240 .venv/bin/python examples/pool.py
"""

import os
import sysconfig
from concurrent.futures import as_completed
from pathlib import Path

import tiflow


def lines(path: str) -> int:
    """How many lines a file has; on an executor that sees the same files."""
    return Path(path).read_bytes().count(b"\n")


def main() -> None:
    paths = sorted(map(str, Path(sysconfig.get_path("stdlib")).glob("*.py")))
    with tiflow.Client(os.environ.get("TIFLOW_MASTER_ADDRS", "127.0.0.1:10240")).executor() as pool:
        counts = dict(zip(paths, pool.map(lines, paths, chunksize=10), strict=True))
        longest = sorted(paths, key=counts.__getitem__)[-10:]

        print(f"the 10 longest modules of {len(paths)}:")
        futures = {pool.submit(os.path.getsize, path): path for path in longest}
        for future in as_completed(futures):
            path = futures[future]
            print(f"{counts[path]:7,} lines {future.result():9,} bytes  {Path(path).name}")


if __name__ == "__main__":
    main()
