"""What counts as exact."""

from typing import Any

import pytest

from tiflow.jobs.fake.judge import Miscounted, behind

TRUTH = {"k": {"count": 3, "revision": 9, "value": "v"}}


def status(**fields: Any) -> dict[str, dict[str, Any]]:
    return {"k": {"count": 3, "revision": 9, "value": "v", "kept": 9, "tick": 4} | fields}


def test_all_that_the_source_has_and_in_a_checkpoint_is_exact():
    assert behind(status(), TRUTH) == {}
    assert behind(status(kept=5), TRUTH, kept=False) == {}
    assert behind({}, {}) == {}


@pytest.mark.parametrize(
    "statuses",
    [{}, status(count=2, revision=5, value="u"), status(kept=5), status(count=0, revision=0, value="", kept=0)],
)
def test_what_may_yet_come_is_waited_for(statuses: dict[str, dict[str, Any]]):
    assert list(behind(statuses, TRUTH)) == ["k"]


@pytest.mark.parametrize(
    "fields", [{"count": 4}, {"count": 4, "revision": 5}, {"count": 2}, {"value": "other"}, {"count": 4, "value": ""}]
)
def test_what_can_never_be_right_is_told_at_once(fields: dict[str, Any]):
    with pytest.raises(Miscounted, match=r"k: counted .*, where the source has \{'count': 3"):
        behind(status(**fields), TRUTH)
