"""How a master waits, seen in processes of their own: gRPC reads what is asked of it once."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def test_grpc_is_not_imported_before_it_is_prepared():
    modules = "tiflow.cli.main, tiflow.cli.master, tiflow.config, tiflow.master.eventloop"
    assert run(f"import sys, {modules}; print('grpc' in sys.modules)") == "False\n"


def test_a_process_that_stays_does_not_load_rich_and_others_may():
    program = (
        "from tiflow import log; import sys, tiflow.master.main; print('rich' in sys.modules); import rich.console"
    )
    assert run(program) == "False\n"


def test_grpc_knows_what_it_is_asked_for():
    """It complains of an experiment that has ended; then its name is to go."""
    use = "import grpc; grpc.insecure_channel('[::1]:1').close()"
    assert not run(f"from tiflow.master.eventloop import prepare_grpc; prepare_grpc(); {use}")
    assert "Unknown experiment" in run(f"import os; os.environ['GRPC_EXPERIMENTS'] = 'no_such'; {use}")
