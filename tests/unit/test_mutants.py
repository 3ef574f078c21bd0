"""The mutants are of the code as it is, so that `mutants.py` can be run at any time."""

from tests.unit.mutants import MUTANTS, ROOT


def test_each_mutant_changes_text_that_is_there():
    sources = {file: (ROOT / "tiflow" / "sched" / file).read_text() for file, _, _ in MUTANTS}

    assert [(file, old) for file, old, _ in MUTANTS if old not in sources[file]] == []
    assert all(old != new for _, old, new in MUTANTS)
