"""The README's main job, as `make demo` runs it."""

import subprocess
import sys

from tests.cluster.harness import REPOSITORY, SLOWDOWN


def test_the_demo_ends_well():
    done = subprocess.run(
        [sys.executable, "examples/demo.py"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=120 * SLOWDOWN,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "killed the leader" in done.stdout
    assert "killed executor" in done.stdout
    assert "WRONG" not in done.stdout
