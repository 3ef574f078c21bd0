"""The systemd units, as systemd reads them."""

import shutil
from pathlib import Path

import pytest

from tests.deploy.tools import ENGINE, run

UNITS = sorted((ENGINE / "systemd").glob("*.service"))


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed")
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit_is_understood_in_every_line(unit: Path, tmp_path: Path):
    # the program is not installed here, and verify looks for it
    copy = tmp_path / unit.name
    copy.write_text(unit.read_text().replace("/opt/tiflow/bin/tiflow", "/bin/true"))
    done = run("systemd-analyze", "verify", str(copy))
    told = [line for line in (done.stdout + done.stderr).splitlines() if str(copy) in line or unit.name in line]
    assert not told
    assert done.returncode == 0


def test_units_are_started_again_for_as_long_as_it_takes_and_outlive_tasks_without_memory():
    for unit in UNITS:
        assert "StartLimitIntervalSec=0" in unit.read_text().partition("[Service]")[0], unit.name
    executor = next(unit for unit in UNITS if "executor" in unit.name).read_text()
    assert "OOMPolicy=continue" in executor, "systemd's default stops the executor with the task"
