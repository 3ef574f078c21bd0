"""What the leader does in one term: sessions, leases, placement, dispatch.

All of it is volatile and rebuilt at each term from the replicated state. The loop is level-triggered: it looks at
the state, proposes what is due, and dispatches what was committed; a wake-up that is lost costs time, never truth.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator

import structlog

from tiflow.errors import FailedPrecondition, NoSpace, OutcomeUnknown, Rejected, TiflowError, Unavailable
from tiflow.jobs.framework.port import CANCELED, DRAINED, PAUSED
from tiflow.master.archive import Archive
from tiflow.master.clients import Clients
from tiflow.master.events import task_event
from tiflow.master.leases import Leases
from tiflow.master.members import MemberDesk
from tiflow.master.proposer import Proposer
from tiflow.master.schedules import due_fires, next_fire_in_ms
from tiflow.master.session import Session, TaskTimes, key_of, revoked_tasks
from tiflow.parts import in_parts
from tiflow.raft.node import RaftNode
from tiflow.rpc import convert
from tiflow.rpc import tiflow_pb2 as pb
from tiflow.sched.commands import (
    CloseGroups,
    ExpireExecutor,
    ExpireJob,
    Place,
    PlaceTasks,
    RegisterExecutor,
    SetFormat,
    TaskEvents,
)
from tiflow.sched.duties import due, next_due_ms, recalled
from tiflow.sched.executors import validate_registration
from tiflow.sched.explain import Explanation, explain
from tiflow.sched.looks import Looks
from tiflow.sched.machine import Machine
from tiflow.sched.model import (
    BACKLOG_PER_SLOT_MAX,
    ERROR_CHARS_MAX,
    Executor,
    Placement,
    group_spec,
)
from tiflow.sched.plan import plan
from tiflow.sched.room import room_max

REST_MIN_S = 0.005
NO_SPACE_PAUSE_S = 1.0
GRANT_GATHER_S = 0.02  #: heartbeats that arrive within this time share one majority round
TASKS_PER_PLAN_MAX = 10_000
BATCHES_TAKEN_MAX = 8  #: of events of one executor that wait to be committed; an honest one has 2 on their way
ASSIGNMENTS_BYTES = 4 << 20  #: of one message, unless a single assignment is larger; gRPC's limit is 16 MiB

log = structlog.get_logger()


class Leader:
    """One term of leadership. Made when the term's first entry is applied; `run` is cancelled when the term ends."""

    def __init__(
        self,
        term: int,
        raft: RaftNode,
        machine: Machine,
        proposer: Proposer,
        *,
        ttl_s: float,
        keepalive_s: float,
        masters: tuple[str, ...],
        archive: Archive,
    ) -> None:
        self.term = term
        self.sessions: dict[str, Session] = {}
        self._raft = raft
        self._machine = machine
        self._proposer = proposer
        self._ttl_s = ttl_s
        self._keepalive_s = keepalive_s
        self._masters = masters
        self._archive = archive
        self._leases = Leases(ttl_s)
        self.clients = Clients(asyncio.get_running_loop().time)
        self._times = TaskTimes()
        self._looks = Looks()
        self._wake = asyncio.Event()
        self._grants: list[tuple[Session, int]] = []
        self._grants_wait = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._revoked: set[int] = set()  #: uids of closed jobs whose executors were told
        self._recalled: set[int] = set()  #: placements that drained executors were told to stop
        self._paused: set[int] = set()  #: placements of members of paused jobs, whose executors were told
        self.members = MemberDesk(term, machine, self.sessions)

    def wake(self) -> None:
        """Something changed that may give the loop work."""
        self._wake.set()

    async def run(self) -> None:
        """Lead until cancelled, or until leadership turns out to be lost."""
        now_s = asyncio.get_running_loop().time()
        for executor in self._machine.state.executors.values():
            if executor.alive:
                self._leases.grant(executor.uid, executor.incarnation, now_s)
        self.clients.begin_term(self._machine.state)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._schedule_while_there_is_room())
                group.create_task(self._grant_leases())
                group.create_task(self.members.run())
        except* TiflowError as errors:
            log.info("leading_ended", term=self.term, reason=str(errors.exceptions[0]))
        finally:
            for session in list(self.sessions.values()):
                session.close(_redirect(self._raft))
            self.sessions.clear()
            for task in list(self._tasks):
                task.cancel()

    # ---- the loop

    async def _schedule_while_there_is_room(self) -> None:
        """A leader whose disk is nearly full, and who can not give the lead away, goes on renewing leases."""
        while True:
            try:
                await self._schedule()
            except NoSpace as error:
                log.warning("scheduling_waits", reason=str(error))
                await asyncio.sleep(NO_SPACE_PAUSE_S)

    async def _schedule(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._wake.clear()
            state = self._machine.state
            now_ms = self._proposer.now_ms()
            lost = [
                (uid, incarnation)
                for uid, incarnation in self._leases.expired(loop.time())
                if not self._drop_dead_lease(uid, incarnation)
            ]
            for command in due(state, lost, now_ms, self.clients.gone(state)):
                await self._propose_duty(command)
            await self._fire_schedules()
            await self._raise_format(state.format)
            self._revoke_closed()
            self._revoke_paused()
            self._recall(now_ms)
            self._times.forget_all_but(state)
            quiet = self._quiet_ms(now_ms) > 0
            plan_more = False
            if not quiet and (places := self._plan(now_ms)):
                placed = await self._proposer.propose_own(PlaceTasks(tuple(places)))
                self._dispatch(placed)
                plan_more = bool(placed)
            if plan_more or (self._looks.cut and not quiet):
                await asyncio.sleep(0)
            else:
                await self._rest(loop)

    def _plan(self, now_ms: int) -> list[Place]:
        state = self._machine.state
        return plan(state, now_ms, self._targets(), TASKS_PER_PLAN_MAX, self._depth, self._looks)

    async def _fire_schedules(self) -> None:
        """Those that are due now go into one log entry."""
        commands = due_fires(self._machine.state, self._proposer.wall_ms())
        jobs = await asyncio.gather(*(self._proposer.propose_own(command) for command in commands))
        for command, job in zip(commands, jobs, strict=True):
            if job is not None:
                log.info("schedule_started", schedule=command.name, job=job.id)

    async def _raise_format(self, format: int) -> None:
        """New commands may be used as soon as the last master of a rolling upgrade understands them."""
        understood = self._raft.format_of_all or 0
        if understood > format:
            await self._proposer.propose_own(SetFormat(understood))
            log.info("format_raised", format=understood)

    async def _rest(self, loop: asyncio.AbstractEventLoop) -> None:
        """Until something happens, or the next lease, retry, deadline or schedule falls due."""
        waits = [1.0]
        leases_s = (self._leases.next_s(), self.clients.next_s())
        waits += [lease_s - loop.time() for lease_s in leases_s if lease_s is not None]
        now_ms = self._proposer.now_ms()
        if (due_ms := next_due_ms(self._machine.state, now_ms)) is not None:
            waits.append((due_ms - now_ms) / 1_000)
        if (fire_ms := next_fire_in_ms(self._machine.state, self._proposer.wall_ms())) is not None:
            waits.append(fire_ms / 1_000)
        if (quiet_ms := self._quiet_ms(now_ms)) > 0:
            waits.append(quiet_ms / 1_000)
        try:
            async with asyncio.timeout(max(min(waits), REST_MIN_S)):
                await self._wake.wait()
        except TimeoutError:
            pass

    def _quiet_ms(self, now_ms: int) -> int:
        """How long nothing is placed yet: executors of the lost cluster, whose jobs these are, may run them still."""
        state = self._machine.state
        return state.restored_at_ms + int(self._leases.view_s * 1_000) - now_ms if state.restored_from else 0

    def _drop_dead_lease(self, uid: str, incarnation: int) -> bool:
        """Forget the lease of an incarnation that the state no longer holds alive."""
        executor = self._machine.state.executors.get(uid)
        if executor is not None and executor.alive and executor.incarnation == incarnation:
            return False
        self._leases.forget(uid, incarnation)
        return True

    async def _propose_duty(self, command: object) -> None:
        if isinstance(command, ExpireExecutor):
            await self._expire(command)
        elif isinstance(command, CloseGroups):
            if await self._proposer.propose_own(command):
                log.info("job_failed", uid=command.uid, reason=command.failure)
        elif isinstance(command, ExpireJob):
            if reason := await self._proposer.propose_own(command):
                log.info("job_failed", uid=command.uid, reason=reason)
        else:
            raise AssertionError(f"unknown duty {command!r}")

    async def _expire(self, command: ExpireExecutor) -> None:
        executor = self._machine.state.executors.get(command.uid)
        await self._proposer.propose_own(command)
        self._leases.forget(command.uid, command.incarnation)
        log.warning("executor_expired", executor=executor.name if executor else command.uid, reason=command.reason)
        session = self.sessions.get(command.uid)
        if session is not None and session.incarnation == command.incarnation:  # not that of its successor
            del self.sessions[command.uid]
            session.close(pb.LeaderMessage(expired=pb.Expired()))
        self.wake()

    # ---- placement and dispatch

    def _targets(self) -> dict[str, int]:
        """Executors that can take work now, and how much at most: only those that can be told of it, and want it."""
        executors = self._machine.state.executors
        return {
            uid: room_max(executors[uid])
            for uid, session in self.sessions.items()
            if uid in executors and not (session.draining or session.unhealthy or session.congested)
        }

    def _depth(self, uid: int, group: str) -> int:
        return self._times.backlog(key_of(self._machine.state, uid, group), BACKLOG_PER_SLOT_MAX)

    def _dispatch(self, placed: tuple[Placement, ...]) -> None:
        batches: dict[str, list[Placement]] = {}
        for placement in placed:
            batches.setdefault(placement.executor, []).append(placement)
        for uid, placements in batches.items():
            session = self.sessions.get(uid)
            if session is not None and session.incarnation == placements[0].incarnation:
                self._assign(session, placements)

    def _assign(self, session: Session, placements: Iterable[Placement]) -> None:
        for part in in_parts(map(self._assignment, placements), pb.Assignment.ByteSize, ASSIGNMENTS_BYTES):
            session.send(pb.LeaderMessage(assignments=pb.Assignments(term=self.term, assignments=part)))

    def _assignment(self, placement: Placement) -> pb.Assignment:
        state = self._machine.state
        group = state.groups[placement.uid, placement.group]
        spec = group_spec(state.jobs[placement.job_id], group)
        full = (1 << (placement.stop - placement.start)) - 1
        message = pb.Assignment(
            placement=placement.id,
            job_id=placement.job_id,
            job_uid=placement.uid,
            group=placement.group,
            start=placement.start,
            stop=placement.stop,
            attempt=placement.attempt,
            count=group.count,
            timeout_ms=spec.timeout_ms,
            grace_ms=spec.grace_ms,
            limits=convert.limits_to_proto(spec.limits),
        )
        convert.put_work(message, spec.work)
        if spec.items:
            message.items = convert.items_slice(spec.items, placement.start, placement.stop)
        if placement.left != full:
            message.left = placement.left.to_bytes((full.bit_length() + 7) // 8, "little")
        return message

    def _revoke_closed(self) -> None:
        """Once per job and term, when what was placed before is dispatched; `_welcome` tells those who come later."""
        closing = self._machine.state.closing
        for uid in closing:
            if uid not in self._revoked:
                self._revoke_job(uid)
        self._revoked = set(closing)

    def _revoke_job(self, uid: int) -> None:
        """Tell the executors that hold tasks of a job that was canceled, or failed early, to drop and kill them."""
        by_executor: dict[str, list[int]] = {}
        for placement in self._machine.state.placements_of(uid):
            by_executor.setdefault(placement.executor, []).append(placement.id)
        for executor, placements in by_executor.items():
            if session := self.sessions.get(executor):
                session.send(pb.LeaderMessage(revoke=pb.Revoke(term=self.term, placements=sorted(placements))))

    def _revoke_paused(self) -> None:
        """Members do not end by themselves: those of a paused job are told to, and wait until it is resumed."""
        state = self._machine.state
        paused = {
            placement.id: placement
            for uid in state.framework
            if state.jobs[state.job_ids[uid]].paused
            for placement in state.placements_of(uid)
        }
        for id, placement in paused.items():
            if id not in self._paused and (session := self.sessions.get(placement.executor)):
                session.send(pb.LeaderMessage(revoke=pb.Revoke(term=self.term, placements=[id], reason=PAUSED)))
        self._paused = set(paused)

    def _recall(self, now_ms: int) -> None:
        """Let executors stop, with their grace, what a drain takes from them; they report it as canceled, and so it
        waits again. Once per session; `_welcome` tells those that come later."""
        late = recalled(self._machine.state, now_ms)
        for uid, ids in late.items():
            placements = [id for id in ids if id not in self._recalled]
            if placements and (session := self.sessions.get(uid)):
                revoke = pb.Revoke(term=self.term, placements=placements, reason=DRAINED)
                session.send(pb.LeaderMessage(revoke=revoke))
                log.info("executor_recalled", executor_uid=uid, placements=len(placements))
        self._recalled = {id for ids in late.values() for id in ids}

    def explain(self, uid: int) -> Iterator[Explanation]:
        """Why the waiting tasks of a job wait, as the next plan will see it."""
        return explain(self._machine.state, uid, self._proposer.now_ms(), self._targets(), self._depth)

    def revoke_withdrawn(self, uid: int, group: str) -> None:
        """Tell the executors which tasks of a group are to end; `_welcome` tells those who come later."""
        for placement in self._machine.state.placements_of(uid):
            session = self.sessions.get(placement.executor)
            if placement.group == group and placement.withdrawn and session is not None:
                tasks = [revoked_tasks(placement)]
                session.send(pb.LeaderMessage(revoke=pb.Revoke(term=self.term, tasks=tasks)))

    # ---- sessions

    async def open_session(self, hello: pb.Hello) -> Session:
        """Admit an executor: register it, or take up its incarnation again, and queue all that it should know.

        Raises:
            Rejected: it is not admitted (its name is taken by another one).
            NotLeader, OutcomeUnknown: it should try again, elsewhere perhaps.
        """
        if hello.gone:
            return self._bury(hello)
        if hello.cluster_id not in ("", self._raft.cluster_id):
            if hello.cluster_id != self._machine.state.restored_from:
                raise FailedPrecondition(_foreign(self._raft.cluster_id, hello.cluster_id))
            if hello.incarnation:  # of the lost cluster: whatever it runs must end
                session = Session(hello.uid, hello.incarnation, self.term)
                session.close(pb.LeaderMessage(expired=pb.Expired()))
                return session
        now_s = asyncio.get_running_loop().time()
        executor = self._machine.state.executors.get(hello.uid)
        if hello.incarnation:
            known = executor is not None and executor.alive and executor.incarnation == hello.incarnation
            if not known or not self._leases.grant(hello.uid, hello.incarnation, now_s):
                session = Session(hello.uid, hello.incarnation, self.term)
                session.close(pb.LeaderMessage(expired=pb.Expired()))
                return session
            assert executor is not None
        else:
            executor = await self._register(hello)
            self._leases.grant(executor.uid, executor.incarnation, asyncio.get_running_loop().time())
        if (old := self.sessions.pop(hello.uid, None)) is not None:
            old.close()
        session = Session(executor.uid, executor.incarnation, self.term)
        session.draining = hello.draining
        self.sessions[executor.uid] = session
        self._welcome(session, executor, set(hello.held))
        log.info("session_opened", executor=executor.name, incarnation=executor.incarnation, held=len(hello.held))
        self.wake()
        return session

    def _bury(self, hello: pb.Hello) -> Session:
        """Hear the last words of an incarnation: what had ended, and a goodbye, which ends it at once. Who says so
        has killed its tasks, so the lease need not be waited for. Of an incarnation that is over already nothing is
        heard."""
        if hello.cluster_id != self._raft.cluster_id:
            raise FailedPrecondition(_foreign(self._raft.cluster_id, hello.cluster_id))
        session = Session(hello.uid, hello.incarnation, self.term)
        executor = self._machine.state.executors.get(hello.uid)
        if executor is None or not executor.alive or executor.incarnation != hello.incarnation:
            session.close(pb.LeaderMessage(expired=pb.Expired()))
            return session
        old = self.sessions.get(hello.uid)
        if old is not None and old.incarnation == hello.incarnation:  # nothing more is placed there
            del self.sessions[hello.uid]
            old.close()
        session.last_words = True
        return session

    async def _register(self, hello: pb.Hello) -> Executor:
        command = RegisterExecutor(
            uid=hello.uid,
            boot_id=hello.boot_id,
            name=hello.name,
            address=hello.address,
            slots=hello.slots,
            labels=dict(sorted(hello.labels.items())),
            version=hello.version,
            capacity=dict(sorted(hello.capacity.items())),
        )
        validate_registration(command)
        executor = await self._proposer.propose_own(command)
        assert isinstance(executor, Executor)
        return executor

    def _welcome(self, session: Session, executor: Executor, held: set[int]) -> None:
        state = self._machine.state
        mine = [p for p in state.placements_on(executor.uid) if p.incarnation == executor.incarnation]
        session.send(
            pb.LeaderMessage(
                welcome=pb.Welcome(
                    cluster_id=self._raft.cluster_id,
                    replaces=state.restored_from,
                    incarnation=executor.incarnation,
                    term=self.term,
                    ttl_ms=int(self._ttl_s * 1_000),
                    keepalive_ms=int(self._keepalive_s * 1_000),
                    masters=self._masters,
                    unknown=sorted(held - {p.id for p in mine}),
                )
            )
        )
        self._assign(session, [p for p in mine if p.id not in held])
        recall = recalled(state, self._proposer.now_ms()).get(executor.uid, ())
        ending: dict[str, list[int]] = {}
        for p in mine:
            job = state.jobs[p.job_id]
            paused = job.paused and job.spec.framework
            if reason := CANCELED if job.closed else DRAINED if p.id in recall else PAUSED if paused else "":
                ending.setdefault(reason, []).append(p.id)
        for reason, ids in ending.items():
            revoke = pb.Revoke(term=self.term, placements=sorted(ids), reason=reason)
            session.send(pb.LeaderMessage(revoke=revoke))
        if tasks := [revoked_tasks(p) for p in mine if p.withdrawn]:
            session.send(pb.LeaderMessage(revoke=pb.Revoke(term=self.term, tasks=tasks)))

    async def read_session(self, session: Session, messages: AsyncIterator[pb.ExecutorMessage]) -> None:
        """Take what the executor says until its stream ends."""
        loop = asyncio.get_running_loop()
        taking: set[asyncio.Task[None]] = set()
        async for message in messages:
            if session.closed:
                return
            kind = message.WhichOneof("body")
            if kind == "heartbeat":
                session.unhealthy = message.heartbeat.unhealthy[:ERROR_CHARS_MAX]
                if self._leases.grant(session.executor_uid, session.incarnation, loop.time()):
                    self._grants.append((session, message.heartbeat.seq))
                    self._grants_wait.set()
            elif kind == "events":
                if len(taking) >= BATCHES_TAKEN_MAX:  # it is read no further
                    await asyncio.wait(taking, return_when=asyncio.FIRST_COMPLETED)
                task = self._spawn(self._take_events(session, message.events))
                taking.add(task)
                task.add_done_callback(taking.discard)
            elif kind == "report":
                self.members.take_report(session, message.report)
            elif kind == "draining":
                session.draining = True
            elif kind == "held":
                placed = self._machine.state.on_executor.get(session.executor_uid, ())
                if not session.agrees(placed, message.held.placements):
                    log.error("session_disagrees", executor_uid=session.executor_uid)
                    session.close()  # it comes back with a Hello, and is told what it should know
            elif kind == "kept":
                self._spawn(self._answer_kept(session, list(message.kept.job_uids)))
            elif kind == "goodbye":
                await asyncio.gather(*taking)  # what had ended counts
                if not session.closed:
                    await self._end(session)
                return

    def job_deleted(self, uid: int) -> None:
        """Executors remove what they keep of the job; who misses this word asks (`Kept`)."""
        for session in self.sessions.values():
            self._say_deleted(session, [uid])

    def groups_dropped(self, uid: int, groups: list[str]) -> None:
        """As `job_deleted`, of some groups; who misses this word keeps them as long as the job is there."""
        for session in self.sessions.values():
            session.send(pb.LeaderMessage(deleted=pb.Deleted(job_uids=[uid], groups=groups)))

    async def _answer_kept(self, session: Session, uids: list[int]) -> None:
        try:
            deleted = await self._archive.deleted(uids)
        except Unavailable:
            return  # of what has left the masters the database alone knows; the executor asks again
        self._say_deleted(session, deleted)

    @staticmethod
    def _say_deleted(session: Session, uids: list[int]) -> None:
        if uids:
            session.send(pb.LeaderMessage(deleted=pb.Deleted(job_uids=uids)))

    async def _end(self, session: Session) -> None:
        reason = "its agent died, and its tasks were killed" if session.last_words else "it said goodbye"
        await self._expire(ExpireExecutor(session.executor_uid, session.incarnation, reason))
        session.close(pb.LeaderMessage(expired=pb.Expired()))

    def close_session(self, session: Session) -> None:
        """Its stream has ended. The lease goes on: the executor may be back."""
        session.close()
        if self.sessions.get(session.executor_uid) is session:
            del self.sessions[session.executor_uid]
            log.info("session_closed", executor_uid=session.executor_uid, incarnation=session.incarnation)

    def _spawn(self, work: "asyncio._CoroutineLike[None]") -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _take_events(self, session: Session, events: pb.Events) -> None:
        """Propose one batch and acknowledge it when it is committed. Batches of a session are proposed in order, and
        so acknowledged in order."""
        state = self._machine.state
        self.members.take_ends(events.events)
        for event in events.events:
            if event.run_us and event.stop > event.start and (p := state.placements.get(event.placement)):
                self._times.measured(key_of(state, p.uid, p.group), event.stop - event.start, event.run_us)
        command = TaskEvents(
            session.executor_uid, session.incarnation, tuple(task_event(event) for event in events.events)
        )
        await session.room.wait()
        try:
            await self._propose_events(session, command)
        except (Unavailable, OutcomeUnknown):
            session.close(_redirect(self._raft))  # it comes back, and sends the batch again
            return
        except Rejected as error:
            # the batch can never be taken: acknowledge it, or the executor would send it for ever
            log.error("events_rejected", executor_uid=session.executor_uid, reason=str(error))
        session.send(pb.LeaderMessage(events_ack=pb.EventsAck(seq=events.seq)))
        self.wake()

    async def _propose_events(self, session: Session, command: TaskEvents) -> None:
        """One batch waits for room, and those that come later behind it: an executor whose session was closed instead
        would lose its lease."""
        waited = False
        try:
            while True:
                try:
                    await self._proposer.propose_own(command)
                    return
                except NoSpace:
                    if session.closed or not (waited or session.room.is_set()):
                        raise
                    waited = True
                    session.room.clear()
                    await asyncio.sleep(NO_SPACE_PAUSE_S)
        finally:
            if waited:
                session.room.set()

    async def _grant_leases(self) -> None:
        """Acknowledge heartbeats, each after a majority round that began after its receipt: a leader that was paused
        and replaced must not renew a lease that its successor lets expire."""
        while True:
            await self._grants_wait.wait()
            await asyncio.sleep(GRANT_GATHER_S)
            self._grants_wait.clear()
            grants, self._grants = self._grants, []
            await self._raft.barrier()
            for session, seq in grants:
                session.send(pb.LeaderMessage(lease_grant=pb.LeaseGrant(seq=seq, term=self.term)))


def _foreign(own: str, other: str) -> str:
    return f"this is cluster {own}, and the executor is of {other}; let join name the masters of one cluster only"


def _redirect(raft: RaftNode) -> pb.LeaderMessage:
    leader = raft.leader
    address = leader.address if leader is not None and not raft.is_leader else ""
    return pb.LeaderMessage(redirect=pb.Redirect(leader=address))
