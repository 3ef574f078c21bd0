"""What the rules of `test_machine` are made of: what is drawn, who is asked, who judges."""

from collections.abc import Sequence
from typing import Any, TypeVar

from hypothesis import event
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
)
from msgspec import msgpack
from msgspec.structs import replace

from tests.unit.sched.dumb import Dumb
from tests.unit.sched.support import START_MS
from tiflow.errors import Internal
from tiflow.sched.commands import (
    AnyCommand,
    Entry,
    TaskEvents,
    encode_entry,
)
from tiflow.sched.machine import Machine, Reply
from tiflow.sched.model import (
    After,
    Command,
    Executor,
    Framework,
    GroupSpec,
    Job,
    JobState,
    Placement,
    PlacementPolicy,
    RetryPolicy,
    Selector,
)
from tiflow.sched.views import results

T = TypeVar("T")
NAMES = ("e1", "e2", "e3")
KINDS = ("started", "succeeded", "failed", "failed", "failed", "canceled", "released", "unheard-of")

policies = st.builds(
    RetryPolicy,
    attempts_max=st.integers(1, 4),
    backoff_ms=st.sampled_from([0, 7, 1_000]),
    multiplier_milli=st.sampled_from([1_000, 1_700]),
    backoff_ms_max=st.sampled_from([0, 1_500, 300_000]),
    reset_ms=st.sampled_from([0, 0, 500]),
    final_exit_codes=st.sampled_from([(), (), (3, -9)]),
)
#: what a job may say beside its groups; most jobs say nothing, or few would come far
limits = st.fixed_dictionaries(
    {},
    optional={
        "retries_max": st.sampled_from([0, 1, 5]),
        "max_failures": st.sampled_from([0, 1, 3]),
        "job_timeout_ms": st.sampled_from([0, 900, 20_000]),
        "queue_timeout_ms": st.sampled_from([0, 900, 5_000]),
        "on_lost_result": st.sampled_from(["rerun", "fail"]),
        "open": st.booleans(),
        "client_ttl_ms": st.sampled_from([0, 9]),
    },
)
groups = st.builds(
    GroupSpec,
    name=st.just("g"),
    work=st.just(Command(("true",))),
    count=st.sampled_from([1, 2, 5, 12, 12]),
    retry=policies,
    selectors=st.sampled_from(
        [(), (), (), (Selector("zone", "neq", ("b",)),), (Selector("zone", "regex", ("[ab]",)),)]
    ),
    resources=st.sampled_from([{}, {}, {"gpu": 1}, {"gpu": 2}, {"cpu": 700}, {"cpu": 1_000, "gpu": 1}]),
    placement=st.builds(
        PlacementPolicy,
        strategy=st.sampled_from(["spread", "binpack"]),
        spread_over=st.sampled_from(["", "zone"]),
        max_per_executor=st.sampled_from([0, 0, 2, 3]),
    ),
)
capacities = st.sampled_from([{}, {"gpu": 2}, {"gpu": 3, "cpu": 1_500}, {"cpu": 3_000}])
zones = st.sampled_from([{}, {"zone": "a"}, {"zone": "b"}])


@st.composite
def graphs(draw: st.DrawFn) -> tuple[GroupSpec, ...]:
    """Groups g0, g1 …; in some jobs, some come after others, which stand before or behind them."""
    specs = draw(st.lists(groups, min_size=1, max_size=3))
    named = [replace(spec, name=f"g{i}") for i, spec in enumerate(specs)]
    if draw(st.booleans()):
        ons = st.sampled_from([None, "success", "success", "completion"])
        for i, group in enumerate(named):
            afters = [(other.name, draw(ons)) for other in named[:i]]
            named[i] = replace(group, after=tuple(After(name, on) for name, on in afters if on))
        if draw(st.booleans()):
            named.reverse()
    return tuple(named)


projects = st.sampled_from(["default", "default", "default", "p"])


def workers(name: str, count: int, **fields: Any) -> GroupSpec:
    return GroupSpec(name, Framework("copy", "worker"), count, (msgpack.encode([b""] * count),), **fields)


class Base(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.machine = Machine()
        self.dumb = Dumb()
        self.now_ms = START_MS
        self.log: list[bytes] = []
        self.snapshot: tuple[int, bytes] | None = None  #: entries applied by then, and its bytes
        self.boots = 0
        self.tokens = 0
        self.mirror: dict[int, Job] = {}  #: what a projector that was told of changes has
        self.mirrored = 0  #: up to this revision
        self.stood: dict[int, JobState] = {}

    # What the rules are made of.

    def propose(self, *commands: AnyCommand) -> list[Reply]:
        entry = encode_entry(Entry(self.now_ms, self.now_ms, commands))
        self.log.append(entry)
        replies = self.machine.apply(entry)
        for command, reply in zip(commands, replies, strict=True):
            assert not isinstance(reply.error, Internal), reply.error
            event(f"{type(command).__name__}: {type(reply.error).__name__ if reply.error else 'done'}")
            if isinstance(command, TaskEvents):
                for said in command.events if reply.value == 0 else ():
                    event(f"TaskEvents: {said.kind}")
            self.dumb.hear(self.machine.state.now_ms, self.now_ms, command, reply)
        return replies

    def ask(self, command: AnyCommand) -> Any:
        (reply,) = self.propose(command)
        return reply.value

    @property
    def jobs(self) -> list[Job]:
        return list(self.machine.state.jobs.values())

    @property
    def alive(self) -> list[Executor]:
        return [executor for executor in self.machine.state.executors.values() if executor.alive]

    @property
    def placements(self) -> list[Placement]:
        return list(self.machine.state.placements.values())

    def kept_rows(self) -> list[tuple[int, int]]:
        """(uid, row) of all rows of tasks that succeeded."""
        state = self.machine.state
        return [
            (job.uid, number)
            for job in self.jobs
            for number, row in results(state, job.uid, 0, 100)
            if row.outcome == "succeeded"
        ]

    def place(self, extra: int, budget: int) -> None:
        raise NotImplementedError


def pick(data: st.DataObject, choices: Sequence[T]) -> T:
    return choices[data.draw(st.integers(0, len(choices) - 1))]
