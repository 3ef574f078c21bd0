"""Long-running jobs of your own: a job master that starts workers, watches them, and goes on after any of them died.

class Counter(Worker):
    async def run(self):
        done = await self.load(self.name, 0)
        for number in range(done, self.config["to"]):
            await asyncio.sleep(1)
            await self.save(self.name, number + 1)

class Count(JobMaster):
    worker = Counter

    async def run(self):
        for part in range(self.config["parts"]):
            await self.start_worker(f"part-{part}", {"to": 60})
        await self.workers_ended()
"""

from tiflow.jobs.framework.member import Final, JobMaster, Member, Worker, WorkerView
from tiflow.jobs.framework.port import CANCELED, DRAINED, PAUSED, TIMEOUT, Request, Response

__all__ = [
    "CANCELED",
    "DRAINED",
    "PAUSED",
    "TIMEOUT",
    "Final",
    "JobMaster",
    "Member",
    "Request",
    "Response",
    "Worker",
    "WorkerView",
]
