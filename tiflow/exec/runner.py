"""Does what the agent decides: workers and commands through the guardian, and what becomes of them."""

import asyncio
import os
import signal
from collections.abc import Callable, Iterable, Sequence

import structlog
from msgspec import to_builtins
from msgspec.structs import replace

from tiflow.exec import capacity, link, logs, procs, store
from tiflow.exec.actions import Action, Kill, KillAll, Run, Skip, Terminate
from tiflow.exec.agent import Agent
from tiflow.exec.frames import Message
from tiflow.exec.guardian_client import GuardianClient
from tiflow.exec.journal import Journal
from tiflow.exec.members import Members, MemberSlot
from tiflow.exec.outbox import Result, Used
from tiflow.exec.slots import CommandSlot, WorkerSlot, filled_in
from tiflow.exec.verdicts import in_words
from tiflow.exec.worker import Settings
from tiflow.jobs import shared
from tiflow.sched.model import ERROR_CHARS_MAX, Command, Framework

log = structlog.get_logger()


def now() -> float:
    """Seconds by the agent's and the guardian's common clock (CLOCK_BOOTTIME)."""
    return procs.boot_ns() / 1e9


class Runner:
    """The shell around one agent. `on_change` is called whenever there may be reports to send."""

    def __init__(
        self,
        agent: Agent,
        guardian: GuardianClient,
        journal: Journal,
        settings: Settings,
        members: Members,
    ) -> None:
        self.agent = agent
        self.members = members
        self.settings = settings  #: work_dir is the directory of all slots
        self.on_change: Callable[[], None] = lambda: None
        self._guardian = guardian
        self._journal = journal
        self._to_preload = bool(settings.preload)
        self._oom_kills = capacity.oom_kills()
        self._workers: dict[int, WorkerSlot] = {}  #: by slot
        self._commands: dict[int, CommandSlot] = {}  #: by slot
        self._by_token: dict[str, int] = {}  #: of every child that has not been reported as ended
        self._tokens = 0
        self._read: list[str] = []  #: tokens of children that are done with; the journal may not have all of them yet
        self._timer: asyncio.TimerHandle | None = None
        self._killed = asyncio.Event()
        self._killed.set()
        self._killing: asyncio.Task[None] | None = None
        self._ending: set[asyncio.Task[None]] = set()

    def attach(self, on_death: Callable[[], None]) -> None:
        self._guardian.attach(self._child_ended, on_death)

    def do(self, actions: Iterable[Action]) -> None:
        """Do what the agent said, in order."""
        self._guardian.renew(self.agent.lease_until)  # before anything starts under it
        if self._to_preload and now() < self.agent.lease_until:
            self._to_preload = False
            for slot in range(self.agent.slots):
                self._start_worker(slot)
        for action in actions:
            match action:
                case Run():
                    self._run(action)
                case Skip(slot, number):
                    if slot in self._workers:
                        self._workers[slot].skip(number)
                case Terminate(slot, reason):
                    self._terminate(slot, reason)
                case Kill(slot):
                    self._signal(slot, signal.SIGKILL)
                case KillAll():
                    self._killed.clear()
                    self._killing = asyncio.get_running_loop().create_task(self._kill_all())
        self._journal.keep(self.agent.outbox)  # before it is sent, and once for all that was learned together
        while self._read:
            self._guardian.have_read(self._read.pop())
        self._set_timer()
        self.on_change()

    def farewell(self, report: str) -> None:
        """What the guardian is to report when this process is gone."""
        self._guardian.farewell(report)

    def last_look(self) -> None:
        """The guardian is gone, and with it what runs: keep what had ended."""
        actions: list[Action] = []
        for slot in list(self._workers):
            actions += self._collect(slot)
        self._journal.keep(self.agent.outbox)

    def kept_jobs(self) -> list[int]:
        """The jobs that there are results or logs of."""
        return store.job_uids(self.settings.data_dir)

    def remove_jobs(self, job_uids: Sequence[int], groups: Sequence[str] = ()) -> None:
        """Remove the results and logs of jobs that were deleted, or of some groups of one, in the background."""
        asyncio.get_running_loop().run_in_executor(None, self._remove_jobs, job_uids, groups)

    def _remove_jobs(self, job_uids: Sequence[int], groups: Sequence[str]) -> None:
        data_dir, url = self.settings.data_dir, self.settings.results_url.rstrip("/")
        for uid in job_uids:
            try:
                for group in (groups or ("",)) if url and store.has_shared(data_dir, uid) else ():
                    shared.remove(f"{url}/{uid}/{group}".rstrip("/"))
            except Exception as error:  # noqa: BLE001  fsspec's backends raise their own
                log.warning("results_not_removed", job_uid=uid, store=url, error=str(error))
                continue  # the mark stays, so that it is tried again when the leader is asked next
            store.remove_job(data_dir, uid, groups)

    async def all_killed(self) -> None:
        """Returns when nothing is being killed any more."""
        await self._killed.wait()

    async def close(self) -> None:
        """Kill everything."""
        if self._timer is not None:
            self._timer.cancel()
        await self._guardian.kill_all()
        self._forget_children()

    # ---- starting and stopping

    def _run(self, run: Run) -> None:
        if isinstance(run.assignment.work, Command):
            self._run_command(run)
        elif isinstance(run.assignment.work, Framework):
            self._run_member(run)
        else:
            worker = self._workers.get(run.slot) or self._start_worker(run.slot)
            worker.start(run)

    def _start_worker(self, slot: int) -> WorkerSlot:
        worker = WorkerSlot(self._token(slot, "w"), lambda: self._look(slot))
        path = logs.worker_log_path(self.settings.data_dir, slot)
        if os.path.exists(path) and os.path.getsize(path) > self.settings.log_bytes_max:
            os.truncate(path, 0)
        settings = to_builtins(replace(self.settings, work_dir=f"{self.settings.work_dir}/{slot}"))
        self._guardian.start_worker(worker.token, worker.worker_sock, worker.memory_fd, path, settings)
        worker.handed_over()
        self._workers[slot] = worker
        return worker

    def _run_command(self, run: Run) -> None:
        argv, env, cwd = filled_in(run)
        settings = self.settings
        command = CommandSlot(self._token(run.slot, "c"), run, now(), settings.data_dir, settings.log_bytes_max)
        self._start_command(command, argv, env, cwd)

    def _run_member(self, run: Run) -> None:
        settings = self.settings
        member = MemberSlot(self._token(run.slot, "m"), run, now(), settings.data_dir, settings.log_bytes_max)
        self._start_command(member, procs.tiflow_program("member"), {}, "")
        self.members.begin(member)

    def _start_command(self, command: CommandSlot, argv: list[str], env: dict[str, str], cwd: str) -> None:
        run, assignment = command.run, command.run.assignment
        variables = {
            "TIFLOW_JOB_ID": assignment.job_id,
            "TIFLOW_JOB_UID": str(assignment.job_uid),
            "TIFLOW_GROUP": assignment.group,
            "TIFLOW_INDEX": str(run.start),
            "TIFLOW_ATTEMPT": str(assignment.attempt),
        }
        self._commands[run.slot] = command
        env = self.settings.env | variables | env
        cwd = cwd or command.work_dir
        task = (assignment.placement, run.start) if isinstance(assignment.work, Command) else None
        self._guardian.start_command(command.token, argv, env, cwd, assignment.limits, command.child_fds, task)
        command.handed_over()

    def _token(self, slot: int, kind: str) -> str:
        self._tokens += 1
        token = f"{kind}{self._tokens}"
        self._by_token[token] = slot
        return token

    def _terminate(self, slot: int, reason: str) -> None:
        command = self._commands.get(slot)
        if isinstance(command, MemberSlot):
            self.members.stop(command, reason)
            return
        if slot in self._workers:
            self._workers[slot].stop()
        self._signal(slot, signal.SIGTERM)

    def _signal(self, slot: int, signum: int) -> None:
        child = self._commands.get(slot) or self._workers.get(slot)
        if child is not None:
            self._guardian.signal(child.token, signum)

    async def _kill_all(self) -> None:
        await self._guardian.kill_all()
        self._forget_children()
        self._killed.set()
        self.do(self.agent.all_killed(now()))

    def _forget_children(self) -> None:
        for worker in self._workers.values():
            worker.close()
        for command in self._commands.values():
            command.close()
            if isinstance(command, MemberSlot):
                self.members.forget(command)
        self._workers.clear()
        self._commands.clear()
        self._by_token.clear()

    # ---- what becomes of them

    def _look(self, slot: int) -> None:
        self.do(self._collect(slot))

    def _collect(self, slot: int) -> list[Action]:
        """Take what a worker has left in the shared memory to the agent."""
        worker = self._workers[slot]
        run = worker.run
        if run is None:
            return []
        actions: list[Action] = []
        done = worker.done  # before the ends: all of them are there when it is
        results: list[Result] = []
        run_us = cpu_us = memory_bytes = 0
        for end in worker.ends():
            if end.result is not None:
                results.append(end.result)
                run_us += end.run_us
                cpu_us += end.cpu_us
                memory_bytes = max(memory_bytes, end.memory_bytes)
                continue
            if results:
                actions += self.agent.succeeded(
                    slot, run.number, results, run_us, now(), cpu_us=cpu_us, memory_bytes=memory_bytes
                )
                results, run_us, cpu_us, memory_bytes = [], 0, 0, 0
            used = Used(cpu_us=end.cpu_us, memory_bytes=end.memory_bytes)
            if end.stopped:
                actions += self.agent.stopped(slot, run.number, end.run_us, now(), **used)
            else:
                actions += self.agent.failed(slot, run.number, end.error, end.final, end.run_us, now(), **used)
                self._log_failure(run, end.error)
        if results:
            actions += self.agent.succeeded(
                slot, run.number, results, run_us, now(), cpu_us=cpu_us, memory_bytes=memory_bytes
            )
        if done:
            worker.run = None
            if worker.worn:
                self._retire(slot)
            actions += self.agent.batch_ended(slot, run.number, now())
        return actions

    def _retire(self, slot: int) -> None:
        """A worker that has served long enough ends when its socket is closed. The next batch gets a fresh one."""
        worker = self._workers.pop(slot)
        self._by_token.pop(worker.token, None)
        self._read.append(worker.token)
        worker.close()

    def _child_ended(self, message: Message) -> None:
        """The guardian says that a child is gone, or could not be started."""
        if message.get("lease") and self.agent.busy_slots:  # it acted before we did
            self.do(self.agent.expire())
        slot = self._by_token.pop(message["token"], None)
        if slot is None:
            return
        if message["token"].startswith("w"):
            self._worker_ended(slot, message)
        elif message["token"].startswith("m"):
            task = asyncio.get_running_loop().create_task(self._member_ended(slot, message))
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)
        else:
            self._command_ended(slot, message)

    def _worker_ended(self, slot: int, message: Message) -> None:
        actions = self._collect(slot)  # what it finished counts
        self._read.append(message["token"])
        worker = self._workers.pop(slot, None)
        if worker is None:
            self.do(actions)
            return
        if worker.run is not None:
            run, position = worker.run, worker.position()
            running = position[0] if position is not None else None
            error = f"worker {self._how_it_ended(message)}"
            level = "debug" if worker.stopping else "warning"
            getattr(log, level)("worker_died", slot=slot, error=error, job=run.assignment.job_id, task=running)
            memory_bytes = message.get("memory_bytes", 0)
            actions += self.agent.worker_died(slot, run.number, running, error, now(), memory_bytes=memory_bytes)
        worker.close()
        self.do(actions)

    def _command_ended(self, slot: int, message: Message) -> None:
        command = self._commands.pop(slot)
        final = message.get("final", False) and os.path.isdir(command.work_dir)  # else another executor may have room
        ended = now()
        error, exit_code = self._verdict(message)
        if "error" in message:
            command.note(f"tiflow: {error}")
        command.close()
        if error:
            self._log_failure(command.run, error)
        run_us = int((ended - command.started) * 1e6)
        used = Used(cpu_us=message.get("cpu_us", 0), memory_bytes=message.get("memory_bytes", 0))
        self._read.append(message["token"])
        self.do(self.agent.command_ended(slot, command.run.number, exit_code, error, final, run_us, ended, **used))

    async def _member_ended(self, slot: int, message: Message) -> None:
        member, ended = self._commands[slot], now()
        assert isinstance(member, MemberSlot)
        await self.members.ended(member)
        if self._commands.get(slot) is not member:
            return  # all was killed meanwhile
        del self._commands[slot]
        error, exit_code = self._verdict(message)
        last = member.end or link.End(error=error or "it ended without a word")
        error = last.error or ("it was stopped" if last.result is None else "")
        if member.end is None:
            member.note(f"tiflow: {last.error}")
        member.close()
        if error:
            self._log_failure(member.run, error)
        run_us = int((ended - member.started) * 1e6)
        used = Used(cpu_us=message.get("cpu_us", 0), memory_bytes=message.get("memory_bytes", 0))
        final = last.final or message.get("final", False)
        exit_code = exit_code if member.end is None else 0
        number = member.run.number
        self.do(
            self.agent.command_ended(slot, number, exit_code, error, final, run_us, ended, result=last.result, **used)
        )

    def _log_failure(self, run: Run, error: str) -> None:
        log.debug("task_failed", job=run.assignment.job_id, group=run.assignment.group, error=error)

    # ---- time

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        at = self.agent.next_tick()
        if at is not None:
            delay = max(0.001, at - now())
            self._timer = asyncio.get_running_loop().call_later(delay, self._tick)

    def _tick(self) -> None:
        actions: list[Action] = []
        positions = {}
        for slot, worker in list(self._workers.items()):
            actions += self._collect(slot)
            if worker.run is not None and (position := worker.position()) is not None:
                positions[slot] = (worker.run.number, *position)
        for slot, command in self._commands.items():
            positions[slot] = (command.run.number, command.run.start, command.started)
        self.do(actions + self.agent.tick(positions, now()))

    def _verdict(self, message: Message) -> tuple[str, int]:
        """Error (empty: none) and exit code of a command."""
        if "error" in message:
            return message["error"][:ERROR_CHARS_MAX], 127
        exit_code = os.waitstatus_to_exitcode(message["status"])
        return ("" if exit_code == 0 else self._how_it_ended(message)), exit_code

    def _how_it_ended(self, message: Message) -> str:
        text = in_words(message)
        if text.endswith("SIGKILL"):
            kills, self._oom_kills = capacity.oom_kills() - self._oom_kills, capacity.oom_kills()
            if kills > 0:
                return f"{text}, as memory ran out"
        return text
