"""docs/tutorial-job-type.md says what examples/job-type has, and that works."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).parents[3]
EXAMPLE = TOP / "examples" / "job-type"
BLOCKS = re.findall(r"```(python|toml)\n(.*?)```", (TOP / "docs" / "tutorial-job-type.md").read_text(), re.DOTALL)
ELSEWHERE = ("[job-types]",)  #: what an executor's settings would have


@pytest.mark.parametrize(("language", "block"), BLOCKS)
def test_each_block_is_part_of_the_example(language: str, block: str):
    if block.startswith(ELSEWHERE):
        return
    files = [
        path.read_text() for path in EXAMPLE.iterdir() if path.suffix == {"python": ".py"}.get(language, ".toml")
    ]

    assert any(block in text for text in files)


def test_the_example_passes_its_own_tests():
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", ".", "."],
        cwd=EXAMPLE,
        env={"PYTHONPATH": f"{TOP}:{EXAMPLE}", "PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 passed" in done.stdout
