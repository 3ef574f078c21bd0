"""What nobody is left to remove when a test has killed an executor with guardian and reaper."""

import json
import time
from pathlib import Path

from tiflow.exec import capacity, cgroups

PATIENCE_S = 30.0  #: for the kernel, on a busy machine


def remove_cgroup(data_dir: Path) -> None:
    """That of the executor whose data directory this is, if it had one."""
    own, identity = capacity.own_cgroup(), data_dir / "executor.json"
    if own is None or not identity.exists():
        return
    path = own / f"tiflow-{json.loads(identity.read_text())['uid']}"
    until_s = time.monotonic() + PATIENCE_S
    while path.exists() and time.monotonic() < until_s:
        cgroups.clear(str(path))
