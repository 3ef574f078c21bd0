"""Where the tests of the deployments find their programs; `scripts/deploy-tools.sh` fetches them."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
ENGINE = REPOSITORY / "deployments" / "engine"
TOOLS = REPOSITORY / ".tools"


def tool(name: str) -> str:
    """The path of a program. Skips the test where it was not fetched; in CI that is a failure."""
    path = TOOLS / name
    if not path.exists():
        if os.environ.get("CI"):
            pytest.fail(f"{path} is not there: scripts/deploy-tools.sh")
        pytest.skip(f"{path} is not there: scripts/deploy-tools.sh")
    return str(path)


def run(*argv: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120, **options)
