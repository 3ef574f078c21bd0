"""Pools, measured beside others: concurrent.futures' processes, and dask.distributed where it is installed.

    .venv/bin/python -m tests.bench.pool [--tasks 10000] [--rounds 3]

Each has two workers on this machine. tiflow's are two executors of one slot under three masters, and every placement
and every end is committed by a majority and fsynced; the others keep nothing. A figure is the median of the rounds.
"""

import operator
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from tests.cluster.harness import Cluster

SINGLES = 200
CHUNKSIZE = 100

console = Console(width=118, highlight=False)


@contextmanager
def tiflow_pool() -> Iterator[Executor]:
    with Cluster(masters=3, executors=2) as cluster, cluster.client().executor() as pool:
        yield pool


@contextmanager
def processes() -> Iterator[Executor]:
    with ProcessPoolExecutor(2) as pool:
        yield pool


@contextmanager
def dask() -> Iterator[Executor]:
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
        client.get_executor(pure=False) as pool,
    ):
        yield pool


def submits(pool: Executor, tasks: int) -> float:
    """Calls per second: all are submitted, then all results are read."""
    began_s = time.monotonic()
    futures = [pool.submit(operator.neg, number) for number in range(tasks)]
    assert sum(future.result() for future in futures) == -sum(range(tasks))
    return tasks / (time.monotonic() - began_s)


def chunks(pool: Executor, tasks: int) -> float:
    """Calls per second of a map."""
    began_s = time.monotonic()
    assert sum(pool.map(operator.neg, range(tasks), chunksize=CHUNKSIZE)) == -sum(range(tasks))
    return tasks / (time.monotonic() - began_s)


def single(pool: Executor, _tasks: int) -> float:
    """ms from a submission to its result, one at a time: the median."""
    took_ms = []
    for number in range(SINGLES):
        began_s = time.monotonic()
        assert pool.submit(operator.neg, number).result() == -number
        took_ms.append((time.monotonic() - began_s) * 1_000)
    return statistics.median(took_ms)


POOLS: dict[str, Callable[[], Any]] = {
    "tiflow, replicated": tiflow_pool,
    "ProcessPoolExecutor": processes,
    "dask.distributed": dask,
}
MEASURES: dict[str, tuple[str, Callable[[Executor, int], float]]] = {
    "no-op submits/s": (",.0f", submits),
    f"map/s, chunks of {CHUNKSIZE}": (",.0f", chunks),
    "one call, p50 ms": (".2f", single),
}


@click.command()
@click.option("--tasks", default=10_000, show_default=True)
@click.option("--rounds", default=3, show_default=True)
def main(tasks: int, rounds: int) -> None:
    table = Table("", *MEASURES, title=f"{tasks:,} calls of operator.neg, two workers, median of {rounds} rounds")
    for name, start in POOLS.items():
        try:
            with start() as pool:
                list(pool.map(operator.neg, range(100)))  # warm workers
                cells = []
                for form, measure in MEASURES.values():
                    figures = [measure(pool, tasks) for _ in range(rounds)]
                    cells.append(f"{statistics.median(figures):{form}}")
        except ImportError as error:
            cells = [f"not measured: {error}"]
        table.add_row(name, *cells)
    console.print(table)


if __name__ == "__main__":
    main()
