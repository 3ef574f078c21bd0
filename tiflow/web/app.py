"""HTTP on `--http-addr`: health, readiness and metrics. REST and the dashboard come to live here."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from tiflow.raft.api import NodeStatus
from tiflow.rpc import tiflow_pb2 as pb
from tiflow.rpc.tls import Tls
from tiflow.sched.model import job_state
from tiflow.sched.state import State
from tiflow.web.members import METHODS, MemberRoutes

#: how far behind the commit index a ready follower may be, in entries
READY_LAG_MAX = 1_000


def readiness(node: NodeStatus) -> tuple[bool, str]:
    """Ready: knows a leader and has caught up."""
    if node.leader is None:
        return False, f"no leader is known ({node.role}, term {node.term})"
    if node.commit_index - node.applied_index > READY_LAG_MAX:
        return False, f"applied {node.applied_index} of {node.commit_index} entries"
    return True, f"{node.role} in term {node.term}"


class MasterMetrics(Collector):
    """Read from the state when asked, so that nothing has to be counted twice."""

    def __init__(
        self,
        state: Callable[[], State],
        node: Callable[[], NodeStatus],
        lag: Callable[[], float],
        metadata: Callable[[], Any],
        samples: Callable[[], Iterable[tuple[str, str, pb.Sample]]],
    ) -> None:
        self._metadata = metadata
        self._samples = samples
        self._state = state
        self._node = node
        self._lag = lag

    def collect(self) -> Iterable[Metric]:
        node, state = self._node(), self._state()
        for name, help_text, value in (
            ("tiflow_raft_term", "Current term", node.term),
            ("tiflow_raft_is_leader", "1 on the leader", int(node.role == "leader")),
            ("tiflow_raft_has_leader", "1 if a leader is known", int(node.leader is not None)),
            ("tiflow_raft_commit_index", "Commit index", node.commit_index),
            ("tiflow_raft_applied_index", "Applied index", node.applied_index),
            ("tiflow_raft_log_bytes", "Bytes of the log on disk", node.log_bytes),
            ("tiflow_raft_disk_free_bytes", "Free space where the log is", node.disk.free_bytes),
            ("tiflow_loop_lag_seconds", "Longest delay of the event loop in the last 5 s", self._lag()),
            ("tiflow_revision", "Commands applied", state.revision),
            ("tiflow_format", "Format of commands that all masters understand", state.format),
            ("tiflow_spec_bytes", "Of the specs of all jobs, pools and schedules", state.spec_bytes),
        ):
            yield GaugeMetricFamily(name, help_text, value)
        yield from self._database()
        for peer in node.peers:
            lag = GaugeMetricFamily("tiflow_raft_peer_lag", "Entries not acknowledged", labels=["peer"])
            lag.add_metric([peer.name], peer.lag)
            yield lag
        jobs = GaugeMetricFamily("tiflow_jobs", "Jobs by state", labels=["state"])
        counts: dict[str, int] = {}
        for job in state.jobs.values():
            name = str(job_state(job, state.groups_of(job)))
            counts[name] = counts.get(name, 0) + 1
        for name, count in sorted(counts.items()):
            jobs.add_metric([name], count)
        yield jobs
        out = sum(group.out for group in state.groups.values())
        yield GaugeMetricFamily("tiflow_tasks_running", "Tasks placed or running", out)
        ended = CounterMetricFamily("tiflow_tasks_ended", "Tasks of the jobs that are kept", labels=["outcome"])
        for outcome in ("succeeded", "failed", "canceled", "skipped"):
            ended.add_metric([outcome], sum(getattr(group, outcome) for group in state.groups.values()))
        yield ended
        cpu_s = sum(group.cpu_us for group in state.groups.values()) / 1e6
        yield CounterMetricFamily("tiflow_tasks_cpu_seconds", "CPU time of ended attempts of the kept jobs", cpu_s)
        memory = GaugeMetricFamily("tiflow_tasks_memory_peak_bytes", "Most memory that an ended attempt had")
        memory.add_metric([], max((group.memory_bytes for group in state.groups.values()), default=0))
        yield memory
        executors = GaugeMetricFamily("tiflow_executors", "Executors by state", labels=["state"])
        alive = sum(executor.alive for executor in state.executors.values())
        executors.add_metric(["alive"], alive)
        executors.add_metric(["gone"], len(state.executors) - alive)
        yield executors
        yield from self._members()

    def _members(self) -> Iterable[Metric]:
        """What job masters and workers measure, as long as they run. Of the leader: it alone is told."""
        families: dict[str, Metric] = {}
        for job, worker, sample in self._samples():
            name = f"tiflow_job_{sample.name}"
            family = families.setdefault(name, Metric(name, "Of a job master or worker", sample.kind or "gauge"))
            labels = {**sample.labels, "job": job, "worker": worker}
            suffix = "_total" if family.type == "counter" else ""
            family.add_sample(f"{family.name}{suffix}", labels, sample.value)
        yield from families.values()

    def _database(self) -> Iterable[Metric]:
        """Of the leader: it alone writes."""
        database = self._metadata()
        if "behind" in database:
            up = database["state"] == "available"
            yield GaugeMetricFamily("tiflow_metadata_available", "1 if the metadata database answers", int(up))
            yield GaugeMetricFamily("tiflow_metadata_lag", "Revisions that it has not got yet", database["behind"])
        pruned = self._state().pruned_total
        yield CounterMetricFamily("tiflow_jobs_pruned", "Jobs that left the masters for the database", pruned)


def build(
    state: Callable[[], State],
    node: Callable[[], NodeStatus],
    lag: Callable[[], float],
    metadata: Callable[[], Any],
    samples: Callable[[], Iterable[tuple[str, str, pb.Sample]]],
    members: MemberRoutes,
) -> Starlette:
    """The ASGI application of one master."""
    registry = CollectorRegistry()
    registry.register(MasterMetrics(state, node, lag, metadata, samples))

    async def healthz(_: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(_: Request) -> Response:
        status = node()
        ready, reason = readiness(status)
        body = {
            "ready": ready,
            "reason": reason,
            "name": status.name,
            "role": status.role,
            "term": status.term,
            "leader": status.leader,
            "metadata": metadata(),
        }
        return JSONResponse(body, status_code=200 if ready else 503)

    async def metrics(_: Request) -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    async def member(request: Request) -> Response:
        return await members(request)

    return Starlette(
        routes=[
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/metrics", metrics),
            Route("/api/v1/jobs/{id}/{path:path}", member, methods=METHODS),
        ]
    )


class WebServer(uvicorn.Server):
    """uvicorn without its signal handlers: the process's own main decides when to stop."""

    def __init__(self, app: Starlette, tls: Tls | None = None) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                lifespan="off",
                timeout_graceful_shutdown=2,
                # no certificate is asked of the caller: what scrapes metrics and probes health has none
                ssl_certfile=tls.cert_path if tls is not None else None,
                ssl_keyfile=tls.key_path if tls is not None else None,
            )
        )

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
