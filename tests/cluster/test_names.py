"""Masters that are known by host names find each other again when a name means another address."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.harness import REPOSITORY, SLOWDOWN


@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("unshare"), reason="mounts a file over /etc/hosts: needs root"
)
def test_names_are_resolved_at_each_reconnection(tmp_path: Path):
    hosts = tmp_path / "hosts"
    hosts.touch()
    script = 'mount --bind "$1" /etc/hosts && exec "$2" -m tests.cluster.renamed "$1"'
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", str(hosts), sys.executable],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
        timeout=90 * SLOWDOWN,
    )
    assert done.returncode == 0, done.stderr
