"""What is answered to who pauses, resumes or cancels a job."""

from types import SimpleNamespace
from typing import Any

import pytest

from tiflow.errors import NotFound
from tiflow.master.service import Service
from tiflow.sched.commands import CancelJob, PauseJob, ResumeJob


@pytest.mark.parametrize("order", [PauseJob("j"), ResumeJob("j"), CancelJob("j")])
async def test_a_job_that_is_submitted_meanwhile_was_not_ordered_to_do_anything(order: Any):
    """Its caller would take a job for paused that is not."""
    state = SimpleNamespace(jobs={})

    async def propose(_: object) -> None:
        state.jobs["j"] = object()  # logged behind the order
        raise NotFound("no such job")

    async def archived(*_: object) -> None:
        return None

    service = SimpleNamespace(
        leader=None, state=state, archived=archived, find=None, _proposer=SimpleNamespace(propose=propose)
    )

    with pytest.raises(NotFound, match="there is no job j"):
        await Service._order(service, order)  # type: ignore[arg-type]
