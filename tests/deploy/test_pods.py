"""The judge of `make deploy_test`: one that finds nothing in bad marks proves nothing."""

import pytest

from tests.deploy.pods import judge


@pytest.mark.parametrize(
    ("marks", "verdict"),
    [
        ("b 0\ne 400000000", (0, 0, 0)),
        ("b 0\nb 500000000\ne 900000000", (1, 0, 0)),
        ("b 0\nb 300000000\ne 400000000\ne 700000000", (1, 1, 0)),
        ("b 0", (0, 0, 1)),
        ("", (-1, 0, 1)),
    ],
    ids=["once", "killed, then again", "two at once", "no end", "no begin"],
)
def test_the_marks_of_a_task_are_judged(marks: str, verdict: tuple[int, int, int]):
    assert judge(marks) == verdict
