"""A job type of one's own: counts the primes below a number, in parts that go on where they were."""

import asyncio

from tiflow.jobs.framework import JobMaster, Request, Worker


class Part(Worker):
    async def run(self):
        begun = await self.load(self.name, {"next": self.config["start"], "found": 0})
        number, found = begun["next"], begun["found"]
        while number < self.config["stop"]:
            until = min(number + 1_000, self.config["stop"])
            found += await asyncio.to_thread(count, number, until)
            number = until
            await self.save(self.name, {"next": number, "found": found})
            self.report({"next": number, "found": found})
        return found


class Primes(JobMaster):
    worker = Part

    @classmethod
    def check(cls, config):
        if config.get("below", 0) < 1:
            raise ValueError("below = 0: give a number, as below = 100000")

    async def on_start(self):
        self.route("GET", "/found", self.show)

    async def run(self):
        parts = self.config.get("parts", 4)
        ends = [self.config["below"] * part // parts for part in range(parts + 1)]
        configs = [{"start": ends[part], "stop": ends[part + 1]} for part in range(parts)]
        await self.start_workers("part", configs)
        await self.workers_ended()
        return sum(worker.result for worker in self.workers.values())

    async def show(self, request: Request):
        return {name: worker.status for name, worker in self.workers.items()}


def count(start: int, stop: int) -> int:
    """The primes in [start, stop)."""
    return sum(n > 1 and all(n % d for d in range(2, int(n**0.5) + 1)) for n in range(start, stop))
