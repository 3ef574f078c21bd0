"""`tiflow job`: submit jobs, follow them, get their results."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import IO, TYPE_CHECKING

import click

from tiflow.cli.common import (
    ago,
    client_options,
    connect,
    print_fields,
    print_json,
    print_table,
    size,
    span,
)
from tiflow.errors import InvalidArgument
from tiflow.values import parse_duration_ms

if TYPE_CHECKING:
    from tiflow.client import Client, JobInfo, Result

SHOWN_RESULTS = 10
SHOWN_FAILURES = 5
SHOWN_MEMBERS = 100
CELL_CHARS = 80


@click.group()
def job() -> None:
    """Submit jobs, follow them, get their results.

    A job is described by a TOML file; examples/ has some.
    """


@job.command()
@click.argument("file", type=click.Path())
@click.option("--id", "job_id", default="", metavar="ID", help="Its id. Default: the file's, or a new one.")
@click.option("--output", metavar="FILE", help="Write all results to it, one JSON object per line; - is stdout.")
@client_options
def run(file: str, job_id: str, output: str | None, master_addrs: str | None, as_json: bool) -> int:
    """Submit a job, follow it until it has ended, and show its results.

    Ctrl-C leaves the job running. The exit code is 0 if every task succeeded, else 1.

    \b
    Examples:
      tiflow job run examples/wordcount.toml
      tiflow job run examples/wordcount.toml --output counts.jsonl
    """
    from tiflow.cli.progress import follow
    from tiflow.jobs.spec import load_job

    spec = load_job(file, id=job_id)
    with connect(master_addrs) as client, _results_file(output) as results_file:
        handle = client.submit(spec)
        click.echo(f"job {handle.id} is submitted", err=True)
        try:
            info = follow(client.watch(handle.id))
        except KeyboardInterrupt:
            click.echo(
                f"job {handle.id} goes on; `tiflow job wait {handle.id}` waits for it, "
                f"`tiflow job cancel {handle.id}` ends it",
                err=True,
            )
            raise
        if results_file is not None:
            _write_results(results_file, handle.results())
        if as_json:
            print_json(info)
        else:
            if results_file is None and info.type != "command":
                _show_results(client, info)
            _show_failures(client, info)
        click.echo(_verdict(info), err=True)
    return 0 if info.state == "Finished" else 1


@job.command()
@click.argument("file", type=click.Path())
@click.option("--id", "job_id", default="", metavar="ID", help="Its id. Default: the file's, or a new one.")
@client_options
def submit(file: str, job_id: str, master_addrs: str | None, as_json: bool) -> None:
    """Submit a job and print its id.

    \b
    Example: tiflow job submit examples/command.toml --id nightly
    """
    from tiflow.jobs.spec import load_job

    spec = load_job(file, id=job_id)
    with connect(master_addrs) as client:
        handle = client.submit(spec)
    if as_json:
        print_json({"id": handle.id, "uid": handle.uid})
    else:
        click.echo(handle.id)


@job.command(name="list")
@click.option("--state", default="", help="Only jobs in this state: Running, Finished, Failed, …")
@click.option("--limit", default=100, type=click.IntRange(1, 1000), help="How many, the newest first. Default: 100.")
@click.option("--before", default=0, metavar="UID", help="Older ones: the uid that the page before ended with.")
@client_options
def list_(state: str, limit: int, before: int, master_addrs: str | None, as_json: bool) -> None:
    """Show jobs, the newest first, those too that the metadata database alone has.

    \b
    Example: tiflow job list --state Running
    """
    with connect(master_addrs) as client:
        jobs = client.list(limit=limit, state=state, before_uid=before)
    if jobs.warning:
        click.echo(jobs.warning, err=True)
    if as_json:
        print_json(tuple(jobs))
        return
    print_table(
        ("ID", "STATE", "TYPE", "TASKS", "OK", "FAILED", "RUNNING", "SUBMITTED", "TOOK"),
        [
            (
                one.id,
                one.state,
                one.type,
                one.total,
                one.succeeded,
                one.failed,
                one.running,
                ago(one.submitted_at_ms or None),
                _took(one),
            )
            for one in jobs
        ],
    )
    if jobs.next:
        click.echo(f"there may be more: --before {jobs.next}", err=True)


@job.command()
@click.argument("job_id", metavar="ID")
@client_options
def events(job_id: str, master_addrs: str | None, as_json: bool) -> None:
    """Show what happened to a job, when, and by whom (-: by tiflow itself).

    \b
    Example: tiflow job events nightly
    """
    with connect(master_addrs) as client:
        found = tuple(client.events(job_id))
    if as_json:
        print_json(found)
        return
    rows = [(ago(one.at_ms or None), one.revision, one.kind, one.by or "-", one.message) for one in found]
    print_table(("WHEN", "REVISION", "WHAT", "BY", "WHY"), rows)


@job.command()
@click.argument("job_id", metavar="ID")
@client_options
def get(job_id: str, master_addrs: str | None, as_json: bool) -> None:
    """Show where a job stands, and why its waiting tasks wait; of a framework job also how its members go.

    \b
    Example: tiflow job get nightly
    """
    with connect(master_addrs) as client:
        info = client.get(job_id)
    if as_json:
        print_json(info)
    else:
        _show_job(info)


@job.command()
@click.argument("job_id", metavar="ID")
@client_options
def explain(job_id: str, master_addrs: str | None, as_json: bool) -> None:
    """Show why the waiting tasks of a job wait: which executors each condition removes.

    REMOVES counts the executors that do not meet the condition, LEAVES those that meet it and all above it.

    \b
    Example: tiflow job explain nightly
    """
    with connect(master_addrs) as client:
        reasons = client.explain(job_id)
    if as_json:
        print_json(reasons)
        return
    if not reasons:
        click.echo(f"no task of job {job_id} waits")
    for reason in reasons:
        click.echo(reason.summary)
        if not reason.executors:
            continue
        print_table(
            ("FILTER", "WANTS", "REMOVES", "LEAVES"),
            [
                ("alive", "", "-", reason.executors),
                *((one.name, one.wants, one.removes, one.leaves) for one in reason.filters),
            ],
        )


@job.command()
@click.argument("job_id", metavar="ID")
@click.option("--timeout", "timeout_s", type=float, metavar="SECONDS", help="Give up after it. Default: never.")
@client_options
def wait(job_id: str, timeout_s: float | None, master_addrs: str | None, as_json: bool) -> int:
    """Wait until a job has ended. The exit code is 0 if every task succeeded, else 1; 8 after the timeout.

    \b
    Example: tiflow job wait nightly --timeout 60
    """
    with connect(master_addrs) as client:
        info = client.wait(job_id, timeout_s=timeout_s)
    if as_json:
        print_json(info)
    else:
        click.echo(_verdict(info))
    return 0 if info.state == "Finished" else 1


@job.command()
@click.argument("job_id", metavar="ID")
@client_options
def cancel(job_id: str, master_addrs: str | None, as_json: bool) -> None:
    """Cancel a job: what runs gets SIGTERM, and SIGKILL after its grace period.

    \b
    Example: tiflow job cancel nightly
    """
    with connect(master_addrs) as client:
        info = client.cancel(job_id)
    if as_json:
        print_json(info)
    else:
        click.echo(f"job {info.id} is {info.state}")


@job.command()
@click.argument("job_id", metavar="ID")
@client_options
def pause(job_id: str, master_addrs: str | None, as_json: bool) -> None:
    """Pause a job: nothing more of it is started; what runs goes on to its end.

    It is Pausing while tasks run, then Paused. A paused job can be resumed and canceled; its timeouts go on. Members
    of framework jobs are stopped, and go on from their checkpoints when it is resumed.

    \b
    Example: tiflow job pause nightly
    """
    with connect(master_addrs) as client:
        info = client.pause(job_id)
    if as_json:
        print_json(info)
    else:
        click.echo(f"job {info.id} is {info.state}")


@job.command()
@click.argument("job_id", metavar="ID")
@client_options
def resume(job_id: str, master_addrs: str | None, as_json: bool) -> None:
    """Go on with a job that was paused.

    \b
    Example: tiflow job resume nightly
    """
    with connect(master_addrs) as client:
        info = client.resume(job_id)
    if as_json:
        print_json(info)
    else:
        click.echo(f"job {info.id} is {info.state}")


@job.command()
@click.argument("job_id", metavar="ID")
@client_options
def delete(job_id: str, master_addrs: str | None, as_json: bool) -> None:
    """Forget a job that has ended; its id can be used again.

    \b
    Example: tiflow job delete nightly
    """
    with connect(master_addrs) as client:
        client.delete(job_id)
    if as_json:
        print_json({"id": job_id, "deleted": True})
    else:
        click.echo(f"job {job_id} is deleted")


@job.command()
@click.argument("job_id", metavar="ID")
@click.option("--output", default="-", metavar="FILE", help="Where to write them. Default: - (stdout).")
@click.option("--unordered", is_flag=True, help="As they come, not in the order of the tasks.")
@client_options
def results(job_id: str, output: str, unordered: bool, master_addrs: str | None, as_json: bool) -> int:
    """Print the results, one JSON object per task and line, as soon as they are known, until the job has ended.

    The exit code is 0 if every task succeeded, else 1.

    \b
    Examples:
      tiflow job results nightly | jq .value
      tiflow job results nightly --output results.jsonl
    """
    del as_json  # JSON it is
    with connect(master_addrs) as client, _results_file(output) as file:
        assert file is not None, "output has a default"
        ok = _write_results(file, client.results(job_id, ordered=not unordered))
    return 0 if ok else 1


@job.command()
@click.argument("job_id", metavar="ID")
@click.option("--group", default="", help="Only tasks of this group.")
@click.option("--start", default=0, type=click.IntRange(0), help="From this index on. Default: 0.")
@click.option("--limit", default=100, type=click.IntRange(1, 1000), help="How many. Default: 100.")
@client_options
def tasks(job_id: str, group: str, start: int, limit: int, master_addrs: str | None, as_json: bool) -> None:
    """Show the tasks of a job: state, attempt, executor, and which groups they wait for; CPU time and peak memory of
    those that have ended.

    Short Python tasks are measured together and show their share. Commands that succeeded show none; `tiflow job get`
    has the sums.

    \b
    Example: tiflow job tasks nightly --start 500 --limit 20
    """
    with connect(master_addrs) as client:
        rows = client.tasks(job_id, group=group, start=start, limit=limit)
    if as_json:
        print_json(rows)
        return
    print_table(
        ("GROUP", "TASK", "STATE", "ATTEMPT", "EXECUTOR", "CPU", "MEMORY", "REASON"),
        [
            (
                one.group,
                one.index,
                one.state,
                one.attempt or "-",
                one.executor or "-",
                "-" if one.cpu_s is None else span(one.cpu_s),
                "-" if one.memory_bytes is None else size(one.memory_bytes),
                one.reason or "-",
            )
            for one in rows
        ],
    )


@job.command()
@click.argument("job_id", metavar="ID")
@click.option("--task", "index", type=click.IntRange(0), metavar="N", help="Its index. Default: the only one, or 0.")
@click.option("--group", default="", help="Its group. Default: the first.")
@click.option("--attempt", default=0, type=click.IntRange(0), metavar="K", help="Default: the newest one.")
@click.option("-f", "--follow", is_flag=True, help="Go on until the attempt has ended.")
@click.option("--since", metavar="DURATION", help="Only what was written lately, as 10m. Default: all that is kept.")
@click.option("--stdout", "only_stdout", is_flag=True, help="Only what was written to stdout.")
@click.option("--stderr", "only_stderr", is_flag=True, help="Only what was written to stderr.")
@client_options
def logs(
    job_id: str,
    index: int | None,
    group: str,
    attempt: int,
    follow: bool,
    since: str | None,
    only_stdout: bool,
    only_stderr: bool,
    master_addrs: str | None,
    as_json: bool,
) -> None:
    """Print what a task wrote: its stdout to stdout, its stderr to stderr.

    \b
    Examples:
      tiflow job logs nightly --task 3
      tiflow job logs nightly --task 3 -f --stderr
      tiflow job logs nightly --task 3 --attempt 1 --since 10m
    """
    since_s = parse_duration_ms(since, "--since", 1, 366 * 86_400_000) / 1_000 if since else 0.0
    stream = "" if only_stdout == only_stderr else "stdout" if only_stdout else "stderr"
    with connect(master_addrs) as client:
        chunks = client.logs(
            job_id, index or 0, group=group, attempt=attempt, follow=follow, stream=stream, since_s=since_s
        )
        for chunk in chunks:
            if as_json:
                text = chunk.data.decode(errors="replace")
                print_json({"stream": chunk.stream, "attempt": chunk.attempt, "data": text})
                continue
            # as the task wrote it: bytes, at once
            target = sys.stderr if chunk.stream == "stderr" else sys.stdout
            target.buffer.write(chunk.data)
            target.buffer.flush()


# ---- showing


def _show_job(info: "JobInfo") -> None:
    print_fields(
        [
            ("id", info.id),
            ("state", info.state),
            ("type", info.type),
            ("project", info.project if info.project != "default" else ""),
            ("submitted", ago(info.submitted_at_ms or None)),
            ("started", ago(info.started_at_ms)),
            ("ended", ago(info.ended_at_ms)),
            ("took", _took(info)),
            ("error", info.error),
            *(("waiting", reason) for reason in info.waiting),
        ]
    )
    click.echo()
    print_table(
        ("GROUP", "TASKS", "OK", "FAILED", "CANCELED", "SKIPPED", "RUNNING", "WAITING", "CPU", "MEMORY"),
        [
            (
                one.name,
                one.total,
                one.succeeded,
                one.failed,
                one.canceled,
                one.skipped,
                one.running,
                one.waiting,
                span(one.cpu_s),
                size(one.memory_bytes) if one.memory_bytes else "-",
            )
            for one in info.groups
        ],
    )
    if info.members:
        _show_members(info)


def _show_members(info: "JobInfo") -> None:
    click.echo()
    print_table(
        ("MEMBER", "STATE", "ATTEMPT", "EXECUTOR", "STATUS", "ERROR"),
        [
            (
                one.name,
                one.state,
                one.attempt or "-",
                one.executor or "-",
                " ".join(f"{key}={_cell(value)}" for key, value in one.status.items()) or "-",
                _cell_text(one.error) or "-",
            )
            for one in info.members[:SHOWN_MEMBERS]
        ],
    )
    if len(info.members) > SHOWN_MEMBERS:
        click.echo(f"… {len(info.members)} in all: --json has them")


def _show_results(client: "Client", info: "JobInfo") -> None:
    results = client.results(info.id)
    shown = [result for result in islice(results, SHOWN_RESULTS) if result.ok]
    results.close()
    if not shown:
        return
    print_table(("GROUP", "TASK", "RESULT"), [(one.group, one.index, _cell(one.value)) for one in shown])
    if info.total > SHOWN_RESULTS:
        click.echo(f"… {info.total} in all: `tiflow job results {info.id}`, or --output FILE")


def _show_failures(client: "Client", info: "JobInfo") -> None:
    if not info.failed:
        return
    for one in client.failures(info.id, limit=SHOWN_FAILURES):
        click.echo(f"{one.group}/{one.index} failed at attempt {one.attempt}: {_printable(one.error)}", err=True)
    if info.failed > SHOWN_FAILURES:
        click.echo(f"… {info.failed} failed in all: `tiflow job results {info.id}` has their errors", err=True)


def _printable(text: str) -> str:
    """Without what would move the cursor or change colours: it comes from a task."""
    return "".join(char if char.isprintable() or char in "\n\t" else "�" for char in text.strip())


def _verdict(info: "JobInfo") -> str:
    parts = [f"{info.succeeded} of {info.total} tasks succeeded"]
    parts += [f"{info.failed} failed"] if info.failed else []
    parts += [f"{info.canceled} canceled"] if info.canceled else []
    parts += [f"{info.skipped} skipped"] if info.skipped else []
    return f"job {info.id} is {info.state}: {', '.join(parts)}; it took {_took(info)}"


def _took(info: "JobInfo") -> str:
    if info.ended_at_ms is None or not info.submitted_at_ms:
        return "-"
    return span((info.ended_at_ms - info.submitted_at_ms) / 1_000)


def _cell(value: object) -> str:
    return _cell_text(repr(value))


def _cell_text(text: str) -> str:
    """On one line, and not too long."""
    text = " ".join(_printable(text).split())
    return text if len(text) <= CELL_CHARS else f"{text[: CELL_CHARS - 1]}…"


@contextmanager
def _results_file(output: str | None) -> Iterator[IO[bytes] | None]:
    """Opened before anything is submitted, so that a wrong name costs nothing."""
    if output is None:
        yield None
    elif output == "-":
        yield sys.stdout.buffer
    else:
        try:
            file = open(output, "wb")  # noqa: SIM115  # closed below
        except OSError as error:
            raise InvalidArgument(
                f"--output = {output}: cannot be written ({error.strerror}); name another file, or - for stdout"
            ) from None
        with file:
            yield file


def _write_results(file: IO[bytes], results: "Iterable[Result]") -> bool:
    """Write them as JSON lines. Returns whether all tasks succeeded."""
    import msgspec

    encode, ok = msgspec.json.Encoder().encode, True
    for result in results:
        file.write(encode(result) + b"\n")
        if file is sys.stdout.buffer:
            file.flush()  # a pipe wants each result when it is there
        ok = ok and result.ok
    return ok
