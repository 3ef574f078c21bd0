"""Do the tests notice? Each mutant is an edit of one place that must make some test fail.

Run by hand, some minutes: `python tests/unit/mutants.py [--machine] [WORD …]`. `--machine` asks the hypothesis test
of the machine alone; words select the mutants whose text holds one. A new handler adds one.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS = tuple(
    f"tests/unit/sched/test_{name}.py"
    for name in (
        "stories",
        "state",
        "executors",
        "life_cycle",
        "framework",
        "dependencies",
        "schedules",
        "projects",
        "pools",
        "specs",
        "plan",
        "candidates",
        "machine",
    )
)

#: file in tiflow/sched, what stands there, what is put there. The first occurrence is replaced.
MUTANTS: tuple[tuple[str, str, str], ...] = (
    # fencing
    ("tasks.py", "or placement.executor != command.executor", "or False"),
    ("tasks.py", "or placement.incarnation != command.incarnation", "or False"),
    ("tasks.py", "and executor.incarnation == place.incarnation", ""),
    ("tasks.py", "executor.alive\n        and", "True\n        and"),
    ("executors.py", "or executor.incarnation != command.incarnation", ""),
    ("executors.py", "    if old is not None:\n        _lose_all(draft, old)\n", ""),
    ("executors.py", "old.alive and old.boot_id", "old.boot_id"),
    ("executors.py", "and old.boot_id == command.boot_id", ""),
    ("executors.py", "if holder not in (None, command.uid):", "if False:"),
    # placing
    ("tasks.py", "if taken > room_max(executor):", "if False:"),
    ("tasks.py", "out.get(executor.uid, state.out(executor.uid))", "state.out(executor.uid)"),
    ("tasks.py", "if place.start < cursor or place.stop > group.count:", "if place.stop > group.count:"),
    ("tasks.py", "if place.start < cursor or place.stop > group.count:", "if place.start < cursor:"),
    ("tasks.py", "if gone & skipped != skipped or not left:", "if not left:"),
    ("tasks.py", "if gone & skipped != skipped or not left:", "if gone & skipped != skipped:"),
    ("tasks.py", "left &= ~(gone >> (place.start - cursor))", "left &= ~gone"),
    ("tasks.py", "or retry.attempt != place.attempt", ""),
    ("tasks.py", "or retry.due_at_ms > draft.state.now_ms", ""),
    ("tasks.py", "if (retry.failures, retry.losses) != (taken[0].failures, taken[0].losses):", "if False:"),
    ("tasks.py", "if position > place.stop:", "if False:"),
    ("tasks.py", "or not group.waiting or not _takes", "or not _takes"),
    ("tasks.py", "or group.held or", "or"),
    # projects
    ("plan.py", "            self._reserve(priority)\n", ""),
    ("plan.py", "weights = [self._state.project(name).weight for name in names]", "weights = [1 for _ in names]"),
    ("plan.py", "if at >= priority]", "]"),
    ("plan.py", "slots = group.out / (1 + self._depth(uid, group.name))", "slots = group.out"),
    ("plan.py", "max(1, self._slots // jobs) - supply.out", "10_000"),
    ("plan.py", "self._drawn(sorted(lines)) if", "sorted(lines) if"),
    ("plan.py", "min(share, self._quota(name))", "share"),
    ("tasks.py", "if 0 < project.slots_max < has:", "if False:"),
    ("projects.py", "usage.jobs >= project.jobs_max", "usage.jobs > project.jobs_max"),
    ("projects.py", "usage.waiting + tasks > project.tasks_max", "tasks > project.tasks_max"),
    ("projects.py", "if live and command.name != DEFAULT_PROJECT:", "if False:"),
    ("jobs.py", "    check_quotas(state, spec)\n", ""),
    ("state.py", "jobs=_lives(job) - _lives(old)", "jobs=not old"),
    # all specs together
    ("jobs.py", '    check_specs(state, f"job {spec.id}", spec_bytes)\n', ""),
    ("pools.py", "    check_specs(state,", "    (lambda *_: None)(state,"),
    ("pools.py", "bytes_ - dropped_bytes)", "bytes_)"),
    ("schedules.py", "    check_specs(state,", "    (lambda *_: None)(state,"),
    ("jobs.py", "if state.format >= SPECS_FORMAT and", "if"),
    ("state.py", "self.spec_bytes -= self.spec_sizes.pop(job.uid) + self.jobs[job.id].added_bytes", "pass"),
    ("state.py", "            self.spec_bytes += job.added_bytes - old.added_bytes", "            pass"),
    # schedules
    ("schedules.py", "schedule.uid != command.uid or", ""),
    ("schedules.py", "schedule.paused or not schedule.next_at_ms", "not schedule.next_at_ms"),
    ("schedules.py", "or not schedule.next_at_ms:", ":"),
    ("schedules.py", "command.due_at_ms != schedule.next_at_ms or", ""),
    ("schedules.py", "<= command.at_ms <= state.wall_ms", "<= command.at_ms"),
    ("schedules.py", "if 0 < command.next_at_ms <= command.at_ms:", "if False:"),
    ("schedules.py", "if live and", "if"),
    ("schedules.py", "    if len(live) >= SCHEDULE_LIVE_MAX:", "    if False:"),
    ("schedules.py", 'if schedule.overlap == "replace":', "if False:"),
    ("schedules.py", "next_at_ms=command.next_at_ms, note=note", "note=note"),
    ("schedules.py", "if isinstance(job, Job) and job.uid == state.revision:", "if isinstance(job, Job):"),
    ("schedules.py", "len(ended) - schedule.keep", "len(ended) - 1 - schedule.keep"),
    ("schedules.py", "if known.token == command.token:", "if True:"),
    ("schedules.py", "if schedule.paused is not command.paused:", "if True:"),
    ("state.py", "and not schedule.paused else None", "else None"),
    ("state.py", "            del self.fires[bisect_left(self.fires, time)]", "            pass"),
    # groups after groups
    ("dependencies.py", "if group.held and not _not_ended", "if not _not_ended"),
    ("dependencies.py", "if group.held and not group.closed", "if group.held"),
    ("dependencies.py", 'after.on == "success" and', ""),
    ("dependencies.py", "was_skipped=skipped", "was_skipped=False"),
    ("dependencies.py", "by_name[group.name] = replace", "_ = replace"),
    ("settle.py", "        if not job.closed:\n            _decide", "        if True:\n            _decide"),
    ("jobs.py", "held=bool(group.after)", "held=False"),
    ("state.py", "and not group.held and not", "and not"),
    ("views.py", "if row.was_skipped:", "if False:"),
    ("tasks.py", "if not job.started_at_ms:", "if False:"),
    ("tasks.py", "<= PLACEMENT_TASKS_MAX", "<= 10 * PLACEMENT_TASKS_MAX"),
    # events
    ("tasks.py", "min(group.cpu_us + event.cpu_us, AMOUNT_MAX)", "event.cpu_us"),
    ("tasks.py", "most = max(group.memory_bytes, event.memory_bytes)", "most = event.memory_bytes"),
    ("tasks.py", "bits = named & placement.left", "bits = named"),
    ("tasks.py", "or (event.results and not whole)", ""),
    ("tasks.py", "not placement.start <= event.start", "not True"),
    ("tasks.py", "event.stop <= placement.stop", "True"),
    ("tasks.py", "started=placement.started & left", "started=placement.started"),
    ("tasks.py", "and bits & ~placement.started", "and bits"),
    ("tasks.py", "placement.started | bits", "bits"),
    ("tasks.py", "failures = 1 if healthy else placement.failures + 1", "failures = 1"),
    ("tasks.py", "failures = 1 if healthy else placement.failures + 1", "failures = placement.failures + 1"),
    ("tasks.py", "0 < spec.retry.reset_ms <= event.run_ms", "0 < spec.retry.reset_ms < event.run_ms"),
    ("tasks.py", "if group.closed or failures", "if failures"),
    ("tasks.py", "if event.final or (", "if ("),
    ("tasks.py", "event.exit_code in spec.retry.final_exit_codes", "False"),
    ("tasks.py", 'event.error.partition(":")[0] in', "event.error in"),
    ("tasks.py", "failures >= spec.retry.attempts_max", "failures > spec.retry.attempts_max"),
    ("tasks.py", "job.spec.retries_max - job.retries)", "job.spec.retries_max)"),
    ("tasks.py", "if again != bits:", "if not again:"),
    ("tasks.py", "bits & ~again", "bits"),
    ("tasks.py", "    if job.paused:\n        return None\n", ""),
    ("tasks.py", ", queue_deadline_at_ms=0", ""),
    ("tasks.py", "    if not group.closed:\n        _wait", "    if True:\n        _wait"),
    ("tasks.py", "start, placement.attempt + 1, due_at_ms", "start, placement.attempt, due_at_ms"),
    (
        "tasks.py",
        "draft.state.now_ms + wait_ms, failures, placement.losses",
        "draft.state.now_ms + wait_ms, failures, 0",
    ),
    (
        "tasks.py",
        "draft.state.now_ms, placement.failures, placement.losses)",
        "draft.state.now_ms, 0, placement.losses)",
    ),
    ("tasks.py", "        yield chunk + 1, high", "        yield chunk, high"),
    ("tasks.py", "succeeded=ended.succeeded | mask)", "succeeded=mask)"),
    ("tasks.py", "failed=ended.failed | mask)", "failed=mask)"),
    ("tasks.py", "else ERROR_CHARS_MAX]", "else None]"),
    ("tasks.py", "ERROR_CHARS_LATER if many else ERROR_CHARS_MAX", "ERROR_CHARS_MAX"),
    ("tasks.py", "and draft.state.format >= ERRORS_FORMAT", ""),
    ("tasks.py", "draft.touched[placement.uid] = None", "pass"),
    # losses and backoff
    ("tasks.py", "1 if healthy else placement.losses + 1", "1"),
    ("tasks.py", "1 if healthy else placement.losses + 1", "placement.losses + 1"),
    ("tasks.py", "ran_ms >= LOST_RESET_MS", "ran_ms > LOST_RESET_MS"),
    ("tasks.py", "healthy = placement.uid in draft.state.framework and", "healthy ="),
    ("tasks.py", "if losses < LOST_MAX:", "if True:"),
    ("tasks.py", "    if group.closed or not bits:\n        return\n    if losses", "    if losses"),
    ("tasks.py", "draft.state.now_ms, placement.failures, losses)", "draft.state.now_ms, 0, losses)"),
    ("tasks.py", "% 2_001 - 1_000", "% 1"),
    ("tasks.py", "return min(micros, most)", "return micros"),
    ("tasks.py", "for _ in range(failures - 1):", "for _ in range(failures):"),
    # jobs
    ("jobs.py", "if living.token == token:", "if living.spec == spec:"),
    ("jobs.py", "if state.now_ms - token_at_ms > SUBMIT_WINDOW_MS:", "if False:"),
    ("jobs.py", "if not job.closed and job_state(job, draft.state.groups_of(job)) not in JOB_TERMINAL:", "if True:"),
    (
        "jobs.py",
        "if not job.closed and job_state(job, draft.state.groups_of(job)) not in JOB_TERMINAL:",
        "if not job.closed:",
    ),
    (
        "jobs.py",
        "        _set_paused(draft, job, paused=True)\n",
        "        draft.jobs[job.id] = replace(job, paused=True)\n",
    ),
    (
        "jobs.py",
        "        _set_paused(draft, job, paused=False)\n",
        "        draft.jobs[job.id] = replace(job, paused=False)\n",
    ),
    ("jobs.py", "if 0 < job.deadline_at_ms <= now_ms:", "if 0 < job.deadline_at_ms:"),
    ("jobs.py", "if 0 < job.deadline_at_ms <= now_ms:", "if 0 < job.deadline_at_ms < now_ms:"),
    ("jobs.py", "elif 0 < job.queue_deadline_at_ms <= now_ms:", "elif job.queue_deadline_at_ms <= now_ms:"),
    ("settle.py", "failed >= job.spec.max_failures", "failed > job.spec.max_failures"),
    ("settle.py", "and not job.closed:\n            job =", "and True:\n            job ="),
    ("settle.py", "                paused=False,\n", ""),
    ("settle.py", "                deadline_at_ms=0,\n", ""),
    ("jobs.py", "replace(job, paused=False, deadline_at_ms=0, queue_deadline_at_ms=0)", "job"),
    (
        "jobs.py",
        "    draft.retries = {key: retry for key, retry in draft.retries.items() if key[0] != job.uid}\n",
        "",
    ),
    ("settle.py", "            draft.jobs.setdefault(job.id, job)", "            pass"),
    ("jobs.py", "        draft.closed.append(key)\n", ""),
    ("jobs.py", "    draft.touched[job.uid] = None\n", ""),
    ("jobs.py", "if stands not in JOB_TERMINAL:", "if False:"),
    ("jobs.py", "if command.uid in draft.state.deleted:", "if False:"),
    ("jobs.py", "or uid not in (0, job.uid)", ""),
    ("jobs.py", "if rerun & bit or job.closed:", "if job.closed:"),
    ("jobs.py", "if rerun & bit or job.closed:", "if rerun & bit:"),
    ("jobs.py", "and executor.incarnation == row.incarnation", ""),
    ("jobs.py", "row.attempt + 1", "row.attempt"),
    ("jobs.py", "replace(job, ended_at_ms=0)", "job"),
    ("jobs.py", "rerun | bit)", "bit)"),
    (
        "settle.py",
        "not any(group.out or group.waiting for group in groups):",
        "not any(g.waiting for g in groups):",
    ),
    # state
    ("state.py", "self.jobs.pop(job.id, None)  # so that it moves to the end", "self.jobs.get(job.id)"),
    ("state.py", " and not self.jobs[self.job_ids[group.uid]].paused", ""),
    ("state.py", "                self.closing.pop(row.uid, None)\n", "                pass\n"),
    ("state.py", "for uid, _ in draft.closed if uid in self.of_job)", "for uid, _ in draft.closed)"),
    ("state.py", "            self._set_alarm(retry.due_at_ms)\n", ""),
    ("state.py", "            self.alarm_set.discard(heappop(self.alarms))\n", "            heappop(self.alarms)\n"),
    ("state.py", "            heappop(self.deadlines)\n", "            break\n"),
    ("state.py", "if len(self.deadlines) > 4 * len(self.jobs) + _STALE_DUES_MAX:", "if False:"),
    ("duties.py", "(now_ms + 1, 0))\n    late", "(now_ms, 0))\n    late"),
    ("duties.py", "if state.is_deadline(at_ms, uid)}", "}"),
    ("duties.py", "beyond.append(heap[i])", "pass"),
    ("state.py", "            self.due.pop(key, None)\n", ""),
    ("state.py", "while not _valid(rows, heap[0]):", "while False:"),
    ("state.py", "        self.next_placement = draft.next_placement\n", ""),
    ("state.py", "        self.dead.pop(executor.uid, None)\n", ""),
    ("state.py", "if old is not None and self.names.get(old.name) == old.uid:", "if False:"),
    ("state.py", "if executor.alive:\n                self.names", "if True:\n                self.names"),
    ("state.py", "insort(queue, group.uid)", "queue.append(group.uid)"),
    ("state.py", "        for row in self.rows_of.pop(key, ()):\n            del self.results[group.uid, row]\n", ""),
    ("state.py", "        self.deleted[job.uid] = Deleted", "        Deleted"),
    ("state.py", "changed[stop].mod_revision == changed[stop - 1].mod_revision", "False"),
    ("state.py", "if len(self.dead) > EXECUTORS_DEAD_MAX:", "if False:"),
    # the machine and its snapshots
    ("machine.py", "state.now_ms = max(state.now_ms, decoded.at_ms)", "state.now_ms = decoded.at_ms"),
    ("machine.py", "        settle(draft)\n", ""),
    ("machine.py", "    except (MemoryError, RecursionError):\n        raise", "    except ():\n        raise"),
    ("machine.py", "        check_format(state, command)\n", ""),
    ("snapshot.py", '_Frozen("jobs", state.jobs.copy()', '_Frozen("jobs", state.jobs'),
    ("snapshot.py", '        _Frozen("deleted", state.deleted.copy(), _value),\n', ""),
    ("snapshot.py", "    state.rebuild_indexes()\n", ""),
    ("snapshot.py", 'in ("left", "started", "withdrawn")', 'in ("left", "started")'),
    # the plan
    ("candidates.py", "or not executor.alive or executor.name in state.drains", "or executor.name in state.drains"),
    ("candidates.py", "or not executor.alive or executor.name in state.drains", "or not executor.alive"),
    ("candidates.py", "min(share, demand.still(room.executor))", "min(share, NO_BOUND)"),
    ("candidates.py", "self.held.get(executor.uid, 0) + count", "count"),
    ("candidates.py", "return (slots or _LAST, free, i)", "return (slots or 1, free, i)"),
    ("candidates.py", "if got < wanted:", "if True:"),
    ("candidates.py", "if not heap and needs and", "if False and"),
    ("candidates.py", "needs.get(resource, 0) >= need", "needs.get(resource, 0) <= need"),
    ("candidates.py", "demand.in_zone.get(zone, 0) for", "0 for"),
    # resources
    ("tasks.py", "if room.addable(tuple(spec.resources.items())) < count:", "if False:"),
    ("tasks.py", "self._room(executor).take(count, tuple(spec.resources.items()))", "pass"),
    ("tasks.py", "held[executor.uid] = held.get(executor.uid, 0) + count", "pass"),
    ("tasks.py", "self._held_by(group).get(executor.uid, 0) + count <= most", "count <= most"),
    ("tasks.py", "and executor.name not in state.drains", ""),
    ("room.py", "slots * need <= capacity", "slots * need < capacity"),
    (
        "room.py",
        "needed_at_once(smaller, slots - count) <= capacity",
        "needed_at_once(smaller, slots - count) < capacity",
    ),
    ("room.py", "unless_given = NO_BOUND if resource in UNLIMITED_UNLESS_GIVEN else 0", "unless_given = NO_BOUND"),
    ("state.py", "load[amount] = load.get(amount, 0) + change", "load[amount] = load.get(amount, 0) + 1"),
    # drains
    ("executors.py", "min(deadlines, default=0)", "max(deadlines, default=0)"),
    ("executors.py", "draft.drains[command.name] = None", "pass"),
    ("duties.py", "0 < drain.deadline_at_ms <= now_ms", "drain.deadline_at_ms <= now_ms"),
    (
        "duties.py",
        "[*alarms, *(at_ms for at_ms, _ in deadlines), *drains]",
        "[*alarms, *(at_ms for at_ms, _ in deadlines)]",
    ),
    # reasons
    ("explain.py", "if not keeps(executor)}", "if keeps(executor)}"),
    ("explain.py", "executor.name not in state.drains", "True"),
    ("plan.py", "if due_at_ms > now_ms:", "if False:"),
    ("room.py", "min(target, room_max(executor)) - out", "min(target, room_max(executor))"),
    ("plan.py", "stop == retry.index and _alike(held, retry)", "stop == retry.index"),
    ("plan.py", "for priority in sorted(queues, reverse=True)", "for priority in sorted(queues)"),
    ("candidates.py", "min(_slots_or_backlog(top, pack), share_max, left)", "min(max(1, -top[1]), share_max, left)"),
    ("plan.py", "share = max(1, left // self._count)", "share = left"),
    ("plan.py", "    if len(queue) <= min(budget, PLACES_MAX):\n", "    if True:\n"),
    ("plan.py", "min(count, PLACEMENT_TASKS_MAX)", "count"),
    # views
    ("views.py", "waits = placement.left & ~placement.started", "waits = placement.left"),
    ("views.py", "if result is not None), limit))", "if result is not None), None))"),
    ("views.py", "if ended.withdrawn & bit:", "if False:"),
    # pools
    ("pools.py", "if command.number <= job.added:", "if command.number == job.added:"),
    ("pools.py", "if command.number != job.added + 1:", "if False:"),
    ("pools.py", "    if not job.takes_groups:\n        stands", "    if False:\n        stands"),
    ("pools.py", "group.spec is None or group.out or group.waiting", "group.spec is None or group.waiting"),
    ("pools.py", "group.spec is None or group.out or group.waiting", "group.spec is None or group.out"),
    ("pools.py", "dropped_failed=job.dropped_failed + group.failed", "dropped_failed=job.dropped_failed"),
    ("pools.py", "if (job.uid, command.group.name) in state.groups:", "if False:"),
    ("pools.py", "if len(living) >= POOL_GROUPS_MAX:", "if False:"),
    ("pools.py", "if job.added_bytes + bytes_ > POOL_BYTES_MAX:", "if False:"),
    ("pools.py", "job.added_bytes - check_size", "job.added_bytes - 0 * check_size"),
    ("pools.py", "job is None or job.closed or job_state", "job is None or job_state"),
    ("pools.py", "        draft.touched[job.uid] = None\n", ""),
    ("pools.py", "if group is None or group.closed or start >= stop:", "if group is None or start >= stop:"),
    ("pools.py", "    draft.touched[group.uid] = None\n", ""),
    ("pools.py", "        draft.retries[(*key, retry.index)] = None\n", ""),
    ("pools.py", "((retry.index, first), (last, retry.stop))", "((retry.index, retry.stop),)"),
    (
        "tasks.py",
        "if succeeded or over else bits & placement.withdrawn",
        "if over else bits & placement.withdrawn",
    ),
    ("tasks.py", "withdrawn=placement.withdrawn & left", "withdrawn=placement.withdrawn"),
    ("tasks.py", "    return group, bits & ~gone\n", "    return group, bits\n"),
    ("jobs.py", "if not command.missing and (alive or len(result) > 2):", "if alive or len(result) > 2:"),
    ("jobs.py", "if not command.missing and (alive or len(result) > 2):", "if not command.missing and alive:"),
    ("jobs.py", 'if job.spec.on_lost_result == "fail":', "if False:"),
    ("settle.py", "    return job.dropped_failed + sum", "    return sum"),
    ("settle.py", "if not job.takes_groups and not any", "if not any"),
    ("duties.py", "and not job.closed and not job.ended_at_ms", ""),
    # framework jobs
    ("commands.py", "and command.spec.framework:", "and False:"),
    ("framework.py", "if out == [attempt]:", "if out:"),
    ("framework.py", "if out == [attempt]:", "if True:"),
    ("framework.py", "if out and out[0] > attempt:", "if out:"),
    ("framework.py", "if row.group == MASTER_GROUP]", "]"),
    ("framework.py", "    if not job.takes_groups:\n", "    if False:\n"),
    ("framework.py", "if command.number < settled:", "if False:"),
    ("framework.py", "if command.number < settled:", "if command.number <= settled:"),
    ("framework.py", "if job.asked_attempt == asked.attempt else 0", ""),
    ("framework.py", "replace(known.spec, retry=spec.retry) != spec", "known.spec != spec"),
    ("framework.py", "replace(known.spec, retry=spec.retry) != spec", "False"),
    ("framework.py", "    check_workers(job, spec)\n", ""),
    ("framework.py", "if group.name == MASTER_GROUP:", "if False:"),
    ("framework.py", "or work.type != master.type:", ":"),
    ("framework.py", "or not work.kind or", "or"),
    ("framework.py", "if command.group == MASTER_GROUP:", "if False:"),
    ("framework.py", "command.start, command.stop, force=True)", "command.start, command.stop, force=False)"),
    ("framework.py", "    if command.forget:\n", "    if True:\n"),
    ("framework.py", "            draft.jobs[job.id] = dropped\n", "            pass\n"),
    ("framework.py", "or key in draft.dropped", ""),
    ("framework.py", "    if master.succeeded:\n", "    if False:\n"),
    ("framework.py", "    elif master.failed:\n", "    elif False:\n"),
    ("framework.py", "job = replace(job, done=True, sealed=True)", "job = replace(job, sealed=True)"),
    ("framework.py", "    close_job(draft, job)\n", "    draft.jobs[job.id] = job\n"),
    ("framework.py", "and row.group == MASTER_GROUP)", ")"),
    ("settle.py", "            job = follow_master(draft, job)\n", "            follow_master(draft, job)\n"),
    ("model.py", " or bool(self.failure) or self.done", " or bool(self.failure)"),
    ("model.py", "return JobState.RUNNING if sums.out else JobState.FINISHED", "return JobState.FINISHED"),
    ("jobs.py", "    if job.spec.framework:\n", "    if False:\n"),
    ("pools.py", "    if job.spec.framework:\n", "    if False:\n"),
    ("pools.py", "if isinstance(group.work, Framework):", "if False:"),
    ("pools.py", "group = draft.group((job.uid, name))", "group = draft.state.groups.get((job.uid, name))"),
    ("draft.py", "        if not self.dropped:\n", "        if True:\n"),
    ("state.py", "            self.framework.pop(job.uid, None)\n", ""),
    ("state.py", "        elif old is None and job.spec.framework:\n", "        elif False:\n"),
    ("state.py", "job.spec.framework and not job.ended_at_ms", "job.spec.framework"),
    (
        "state.py",
        "in_order = (self.jobs[job_id] for job_id in self.job_ids.values())",
        "in_order = self.jobs.values()",
    ),
    # who gave the commands
    ("history.py", ' if state.format >= WHO_FORMAT else ""', ""),
    ("history.py", "return by[:EVENT_BY_CHARS_MAX]", "return by"),
    ("history.py", "if isinstance(command, FireSchedule | TriggerSchedule):", "if False:"),
    ("snapshot.py", "_value if state.format >= WHO_FORMAT else _pack_events", "_value"),
    ("snapshot.py", "_value if state.format >= WHO_FORMAT else _pack_events", "_pack_events"),
    ("commands.py", "if format < WHO_FORMAT and", "if"),
    ("commands.py", "_WITH_BY = (SubmitJob, CancelJob,", "_WITH_BY = (SubmitJob,"),
    ("snapshot.py", "if value.asked_attempt:", "if True:"),
    ("duties.py", "if late or row.uid in state.framework", "if late"),
    ("duties.py", "if late or row.uid in state.framework", ""),
    ("validate.py", "    check_framework(spec)\n", ""),
    ("validate.py", "or master.count != 1 or", "or"),
    ("validate.py", "or master.name != MASTER_GROUP or", "or"),
    ("validate.py", "if not spec.open or spec.client_ttl_ms:", "if spec.client_ttl_ms:"),
    ("validate.py", "if bool(group.items) != bool(group.work.kind):", "if False:"),
    ("candidates.py", "0 if uid in state.framework else", ""),
    # nothing lies behind what holds its slot for long
    ("candidates.py", "                room.hold(placement.left.bit_count())\n", "                pass\n"),
    ("candidates.py", "                room.hold(share)\n", "                pass\n"),
    ("candidates.py", "count -= room.brief", "count -= room.executor.slots"),
    ("plan.py", "            hold_slots(self._state, self._rooms, self._depth)\n", "            pass\n"),
    ("explain.py", "        hold_slots(state, rooms.values(), depth)\n", "        pass\n"),
    ("room.py", "self.brief - count if self.brief > count else 0", "self.brief - count"),
)


def main(arguments: list[str]) -> int:
    tests = TESTS[-1:] if "--machine" in arguments else TESTS
    words = [argument for argument in arguments if not argument.startswith("--")]
    survivors = 0
    with tempfile.TemporaryDirectory() as directory:
        tree = Path(directory)
        for name in ("tiflow", "tests", "docs"):
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", tree)
        if not _passes(tree, tests):
            print("the tests fail without any mutant")
            return 2
        for mutant in MUTANTS:
            if words and not any(word in " ".join(mutant) for word in words):
                continue
            survived = _survives(tree, mutant, tests)
            survivors += survived
            file, old, new = mutant
            print(f"{'SURVIVED' if survived else 'caught':9} {file}: {old.strip()!r} -> {new.strip()!r}", flush=True)
    print(f"{survivors} survived")
    return min(survivors, 1)


def _survives(tree: Path, mutant: tuple[str, str, str], tests: tuple[str, ...]) -> bool:
    file, old, new = mutant
    path = tree / "tiflow" / "sched" / file
    original = path.read_text()
    assert old in original, f"{file} does not contain {old!r}"
    path.write_text(original.replace(old, new, 1))
    try:
        return _passes(tree, tests)
    finally:
        path.write_text(original)


def _passes(tree: Path, tests: tuple[str, ...]) -> bool:
    environment = {**os.environ, "TIFLOW_HYPOTHESIS_NO_SHRINK": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    try:
        return subprocess.run(command, cwd=tree, env=environment, capture_output=True, timeout=300).returncode == 0
    except subprocess.TimeoutExpired:
        return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
