"""The judge of `make chaos` knows right from wrong."""

from tests.chaos.history import MISSING, a_job
from tests.linearizability import Operation, find_anomaly


def history(*rows):
    return [Operation("job", *row) for row in rows]


CREATED, PAUSED, CANCELED = ("c1", "Created"), ("c1", "Paused"), ("c1", "Canceled")


def test_answers_that_one_order_explains():
    assert not find_anomaly(
        history(
            (0, ("read",), 1, MISSING),
            (1, ("submit", "c1"), 5, "done"),
            (2, ("submit", "c2"), 6, "exists"),
            (3, ("read",), 4, CREATED),
            (7, ("pause",)),  # no answer
            (8, ("read",), 9, CREATED),
            (9, ("read",), 10, PAUSED),
            (11, ("cancel",), 12, "done"),
            (13, ("read",), 14, CANCELED),
        ),
        a_job,
    )


def test_a_stale_read_a_lost_submission_and_two_winners_are_found():
    submitted = (0, ("submit", "c1"), 1, "done")
    for rows in (
        (submitted, (2, ("read",), 3, MISSING)),
        (submitted, (2, ("submit", "c2"), 3, "done")),
        (submitted, (2, ("cancel",), 3, "done"), (4, ("read",), 5, CREATED)),
        (submitted, (2, ("read",), 3, PAUSED)),
        ((0, ("read",), 1, CREATED), (2, ("submit", "c1"), 3, "done")),
    ):
        assert find_anomaly(history(*rows), a_job)
