"""The SDK's schedules: `client.schedules`."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

from msgspec.structs import replace

from tiflow import ids
from tiflow.clock import Clock
from tiflow.errors import NotFound
from tiflow.jobs.check import check_job
from tiflow.rpc import convert
from tiflow.rpc import tiflow_pb2 as pb
from tiflow.rpc.channel import MasterChannel
from tiflow.sched.model import JobSpec
from tiflow.views import ScheduleInfo

if TYPE_CHECKING:
    from tiflow.client import JobHandle


class Schedules:
    """Jobs that start at the times of a cron line."""

    def __init__(
        self,
        masters: MasterChannel,
        rng: random.Random,
        clock: Clock,
        handle: Callable[[str, int], JobHandle],
    ) -> None:
        self._masters = masters
        self._rng = rng
        self._clock = clock
        self._handle = handle

    def create(
        self,
        name: str,
        spec: JobSpec,
        cron: str,
        *,
        timezone: str = "UTC",
        overlap: str = "skip",
        missed: str = "skip",
        keep: int = 10,
        paused: bool = False,
    ) -> ScheduleInfo:
        """Start a job at the times of a cron line (five fields, or six with the second in front) in a time zone. The
        runs are jobs of their own, with ids such as `name-20261125T013000Z`; the spec's id is not used.

        `overlap`: at its time, while an earlier run has not ended: `skip` the new one, `allow` both, or `replace` the
        old one, which is canceled. `missed`: times at which no master led, over a minute ago: `skip` them, or
        `run-once` for all of them. `keep`: ended runs that are kept; older ones are deleted.

        Raises:
            InvalidArgument: it cannot work, or never fires; names the field.
            AlreadyExists: another schedule has the name.
        """
        check_job(replace(spec, id=name))
        request = pb.CreateScheduleRequest(
            name=name,
            spec=convert.job_to_proto(spec),
            cron=cron,
            timezone=timezone,
            overlap=overlap,
            missed=missed,
            keep=keep,
            paused=paused,
            token=ids.new_uid(self._rng),  # drawn once: the retries below get the same schedule
        )
        return ScheduleInfo.of(self._masters.call("CreateSchedule", request, write=True))

    def get(self, name: str, *, times: int = 1) -> ScheduleInfo:
        """A schedule, with its next `times`, 100 at most. Raises NotFound."""
        return ScheduleInfo.of(self._masters.call("GetSchedule", pb.GetScheduleRequest(name=name, times=times)))

    def list(self) -> tuple[ScheduleInfo, ...]:
        """All of them, by name."""
        response = self._masters.call("ListSchedules", pb.ListSchedulesRequest())
        return tuple(ScheduleInfo.of(schedule) for schedule in response.schedules)

    def pause(self, name: str) -> ScheduleInfo:
        """Start no more runs; what runs goes on."""
        return ScheduleInfo.of(self._masters.call("PauseSchedule", pb.PauseScheduleRequest(name=name), write=True))

    def resume(self, name: str) -> ScheduleInfo:
        """Go on with the next time from now on."""
        return ScheduleInfo.of(self._masters.call("ResumeSchedule", pb.ResumeScheduleRequest(name=name), write=True))

    def delete(self, name: str) -> None:
        """Start no more runs, and forget the schedule; its runs stay."""
        self._masters.call("DeleteSchedule", pb.DeleteScheduleRequest(name=name), write=True, done_if=NotFound)

    def trigger(self, name: str) -> JobHandle:
        """Start a run now, whatever else runs, and though the schedule may be paused."""
        request = pb.TriggerScheduleRequest(name=name, token=ids.new_uid(self._rng), token_at_ms=self._clock.now_ms())
        job = self._masters.call("TriggerSchedule", request, write=True)
        return self._handle(job.id, job.uid)
