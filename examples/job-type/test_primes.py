import pytest
from primes import Primes

from tiflow import testing


def test_finds_them_all_though_the_job_master_and_a_worker_die():
    async def scenario():
        async with testing.Job(Primes, {"below": 10_000, "parts": 2}) as job:
            await job.until(lambda: job.checkpoints.get("part/0"))
            job.kill("part/0")
            job.kill()
            assert await job.result() == 1_229
            assert job.attempt == 2

    testing.run(scenario())


def test_a_worker_that_goes_on_elsewhere_does_nothing_twice():
    async def scenario():
        async with testing.Job(Primes, {"below": 10_000, "parts": 1}) as job:
            await job.until(lambda: job.checkpoints.get("part", {}).get("next", 0) >= 3_000)
            job.lose(job.worker("part").executor)
            assert await job.result() == 1_229
            assert job.worker("part").losses == 1

    testing.run(scenario())


def test_shows_what_was_found():
    async def scenario():
        async with testing.Job(Primes, {"below": 10_000, "parts": 1}) as job:
            await job.until(lambda: job.worker("part").status if job.workers else None)
            answer = await job.request("GET", "/found")
            assert answer.status == 200
            assert b'"found"' in answer.body

    testing.run(scenario())


def test_refuses_what_cannot_be_counted():
    with pytest.raises(ValueError, match="below"):
        Primes.check({})
