"""docs/pysyncobj.md lists the library's holes; here the list is held to what there is."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
ROWS = re.findall(
    r"^\| (?!in the library|---)(.*) \| (.*) \| (.*) \|$", (ROOT / "docs/pysyncobj.md").read_text(), re.M
)


def test_each_hole_has_its_test_and_each_test_its_hole():
    there = {
        name
        for path in Path(__file__).parent.glob("test_library_holes_*.py")
        if path != Path(__file__)
        for name in re.findall(r"^(?:async )?def (test_\w+)", path.read_text(), re.M)
    }
    listed = [re.findall(r"`(test_\w+)`", tests) for _, _, tests in ROWS]

    assert all(listed)
    assert {name for names in listed for name in names} == there


def test_each_guard_is_where_the_table_says():
    guards = [guard for _, cell, _ in ROWS for guard in re.findall(r"`([\w/]+\.py): (\w+)`", cell)]

    assert len(guards) >= len(ROWS)
    for file, name in guards:
        path = ROOT / "tiflow" / file if "/" in file else ROOT / "tiflow" / "raft" / file
        assert re.search(rf"\b{name}\b", path.read_text()), f"{name} is not in {file}"
