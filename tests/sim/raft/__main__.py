"""Fresh schedules, the replay of one, and how long planted bugs stay hidden (docs/testing.md).

\b
    python -m tests.sim.raft 2000                        2,000 fresh schedules on all cores
    python -m tests.sim.raft --seed 4711 --trace         what happens in one of them
    python -m tests.sim.raft --planted                   every planted bug, until it is found five times
    python -m tests.sim.raft --planted no-fsync --seed 3 one schedule with the bug
"""

import itertools
import os
import random
import statistics
import sys
import time
import traceback
from multiprocessing import get_context

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, track
from rich.table import Table

from tests.sim.raft.planted import PLANTS, planted
from tests.sim.raft.runner import Task, attempt, be_quiet
from tests.sim.raft.schedule import STEPS, run
from tests.sim.raft.stories import STORIES

FOUND_EACH = 5
SEEDS_MAX = 3000  # of a planted bug
SHOWN_MAX = 5

console = Console(highlight=False)


def fresh(count: int, base: int, steps: int, jobs: int) -> int:
    """Run `count` schedules from seed `base` on. The number of those that broke something."""
    console.print(f"seeds {base} to {base + count - 1}, {steps} steps each, {jobs} at a time")
    began, broken = time.monotonic(), 0
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.fields[rate]}"))
    with get_context("spawn").Pool(jobs, be_quiet) as pool, Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=count, rate="")
        tasks = (Task(seed, steps) for seed in range(base, base + count))
        for done, (broken_by, finding) in enumerate(pool.imap_unordered(attempt, tasks, chunksize=8), 1):
            bar.update(task, advance=1, rate=f"{done / (time.monotonic() - began):.1f} seeds/s")
            if finding is None:
                continue
            broken += 1
            if broken <= SHOWN_MAX:
                bar.console.print(f"seed {broken_by.seed}: {finding}", style="bold red", markup=False)
                bar.console.print(f"  replay: {_command(broken_by)}")
    console.print(f"{count - broken} of {count} sound, {time.monotonic() - began:.0f} s")
    return broken


def replay(task: Task, *, trace: bool) -> int:
    """Run one schedule here, and show what it does. 1 if it breaks something."""

    def show(what: str, who: str, details: str) -> None:
        console.print(f"{next(numbers):>6} {who:2} {what:10} {details}", soft_wrap=True, markup=False)

    numbers = itertools.count(1)
    try:
        with planted(task.bug):
            outcome = run(task.seed, changes=task.changes, steps=task.steps, trace=show if trace else None)
    except Exception:  # noqa: BLE001 - the finding
        console.print(traceback.format_exc(limit=-8), markup=False)
        return 1
    console.print(f"seed {task.seed} is sound: {outcome}")
    return 0


def hunt(names: list[str], steps: int, base: int) -> int:
    """How many schedules it takes to find each planted bug. The number of those that stay hidden."""
    table = Table("planted bug", "schedules until found (median)", "seeds", "by", box=None)
    hidden = 0
    for name in track([name for name in names if name not in STORIES], "hunting", console=console, transient=True):
        waits, seeds, last, finding = [], [], base - 1, ""
        for seed in range(base, base + SEEDS_MAX):
            _, found = attempt(Task(seed, steps, name, name))
            if found is not None:
                waits.append(seed - last)
                seeds.append(str(seed))
                last, finding = seed, finding or found.splitlines()[0]
                if len(waits) == FOUND_EACH:
                    break
        hidden += not waits
        table.add_row(
            name, f"{statistics.median(waits):.0f}" if waits else "[red]hidden[/]", " ".join(seeds), finding[:60]
        )
    console.print(table)
    return hidden


def _command(task: Task) -> str:
    steps = f" --steps {task.steps}" if task.steps != STEPS else ""
    return f"{os.path.relpath(sys.executable)} -m tests.sim.raft --seed {task.seed}{steps} --trace"


@click.command(help=__doc__)
@click.argument("count", type=click.IntRange(1), default=100)
@click.option("--seed", type=int, help="This schedule only.")
@click.option("--trace", is_flag=True, help="With --seed: print every event.")
@click.option("--base", type=int, help="First seed; without it, a random one.")
@click.option("--steps", type=click.IntRange(1), default=STEPS, show_default=True)
@click.option("--jobs", type=click.IntRange(1), default=os.cpu_count() or 1, help="Processes.", show_default=True)
@click.option("--planted", "plant", is_flag=False, flag_value="all", help="Hunt a planted bug; without a name, all.")
def main(
    count: int, seed: int | None, trace: bool, base: int | None, steps: int, jobs: int, plant: str | None
) -> None:
    be_quiet()
    if plant not in (None, "all", *PLANTS):
        raise click.BadParameter(f"there is no planted bug {plant}; there are: {', '.join(PLANTS)}")
    first = random.SystemRandom().randrange(1 << 40) if base is None else base
    if seed is not None:
        if plant == "all":
            raise click.UsageError("--planted needs a name beside --seed")
        sys.exit(replay(Task(seed, steps, plant, plant), trace=trace))
    if plant is not None:
        sys.exit(min(1, hunt(list(PLANTS) if plant == "all" else [plant], steps, first)))
    sys.exit(min(1, fresh(count, first, steps, jobs)))


if __name__ == "__main__":
    main()
