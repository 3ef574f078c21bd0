"""What nobody is left to remove when a test has killed an executor with guardian and reaper."""

import json
from pathlib import Path

from tiflow.exec import capacity, cgroups


def remove_cgroup(data_dir: Path) -> None:
    """That of the executor whose data directory this is, if it had one."""
    own, identity = capacity.own_cgroup(), data_dir / "executor.json"
    if own is not None and identity.exists():
        cgroups.clear(f"{own}/tiflow-{json.loads(identity.read_text())['uid']}")
