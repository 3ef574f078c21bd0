"""Scheduling does not notice that the metadata database is away, and the database does not notice that it was.

TIFLOW_OUTAGE_S: how long it is away at least (`make chaos-metadata`: a minute).
"""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa

from tests.cluster.harness import SLOWDOWN, Cluster, eventually
from tests.mysql import Server
from tiflow.client import Client
from tiflow.errors import TiflowError
from tiflow.master.metadata import StateSource
from tiflow.meta.records import JobRow
from tiflow.meta.tables import JOB_ARCHIVES, JOB_EVENTS, JOBS, open_engine
from tiflow.raft.backup import read_member
from tiflow.sched.machine import Machine

OUTAGE_S = float(os.environ.get("TIFLOW_OUTAGE_S", "0"))

pytestmark = pytest.mark.mysql


class Load:
    """A user who submits jobs, waits for them, deletes some, and never wants to see an error."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.error: Exception | None = None
        self.kept: list[str] = []
        self.slowest_s = 0.0

    def __enter__(self) -> "Load":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        number = 0
        try:
            while not self._stop.is_set():
                began_s = time.monotonic()
                id, number = f"load-{number}", number + 1
                self._client.run_python("operator:neg", [number, number], id=id)
                assert self._client.wait(id, timeout_s=30 * SLOWDOWN).state == "Finished"
                self.slowest_s = max(self.slowest_s, time.monotonic() - began_s)
                if number % 5 == 0:
                    self._client.delete(id)
                else:
                    self.kept.append(id)
        except (TiflowError, AssertionError) as error:
            self.error = error

    def goes_on(self) -> None:
        """Some more jobs are finished from now on."""
        seen = len(self.kept)
        eventually(lambda: self.error or len(self.kept) > seen + 1, within_s=60)
        assert self.error is None, self.error


def metadata(client: Client) -> Any:
    return client.cluster_status().metadata


def judge(cluster: Cluster, url: str, ids: list[str]) -> None:
    """All rows are what the masters know, after they have been stopped."""
    newest = Machine()
    for name in cluster.masters:
        machine = Machine()
        read_member(cluster.data_dir(name) / "raft", machine)
        newest = max(newest, machine, key=lambda one: one.state.revision)
    written = list(StateSource(newest, cluster_id(url)).batch(0, 1_000_000).written)
    engine = open_engine(url)
    with engine.connect() as connection:
        columns = [JOBS.c[name] for name in JobRow.__struct_fields__]
        rows = {row["uid"]: JobRow(**row) for row in connection.execute(sa.select(*columns)).mappings()}
        archives = dict(connection.execute(sa.select(JOB_ARCHIVES.c.uid, JOB_ARCHIVES.c.body)).all())
        history: dict[int, list[str]] = {}
        events = sa.select(JOB_EVENTS.c.uid, JOB_EVENTS.c.kind).order_by(JOB_EVENTS.c.revision, JOB_EVENTS.c.seq)
        for uid, kind in connection.execute(events):
            history.setdefault(uid, []).append(kind)
    engine.dispose()
    assert rows == {one.job.uid: one.job for one in written}
    assert archives == {one.job.uid: one.archive for one in written if one.archive is not None}
    assert set(ids) <= {row.id for row in rows.values()}
    assert set(history) == set(rows)
    for row in rows.values():
        if row.id in ids:
            assert history[row.uid] == ["submitted", "started", "ended"], row.id


def cluster_id(url: str) -> str:
    engine = open_engine(url)
    with engine.connect() as connection:
        id: str = connection.execute(sa.text("SELECT cluster_id FROM projection")).scalar_one()
    engine.dispose()
    return id


def test_nothing_waits_for_the_database(new_cluster: Callable[..., Cluster], own_server: Server, tmp_path: Path):
    """It is killed, and then, when all is well again, stopped."""
    own_server.start()
    url = own_server.create_database(f"tiflow_{uuid4().hex[:12]}")
    hasty = f"{url}?read_timeout=2&write_timeout=2"  # a server that is stopped takes so long to be noticed
    cluster = new_cluster(masters=3, executors=1, slots=2, metadata_url=hasty, data_dir=tmp_path)
    client = cluster.client()
    with Load(client) as load:
        load.goes_on()
        for take_away, bring_back in ((own_server.kill, own_server.start), (own_server.pause, own_server.resume)):
            eventually(lambda: metadata(client).state == "available", within_s=60)
            away_s = time.monotonic()
            take_away()
            load.goes_on()
            eventually(lambda: metadata(client).state == "unavailable", within_s=60)
            assert metadata(client).behind > 0
            assert metadata(client).error
            leader = cluster.wait_leader()
            cluster.kill(leader)
            cluster.wait_leader(other_than=leader)
            load.goes_on()
            cluster.restart(leader)
            while time.monotonic() - away_s < OUTAGE_S:
                load.goes_on()
            bring_back()
            load.goes_on()
    assert load.error is None, load.error
    eventually(lambda: metadata(client).state == "available" and metadata(client).behind == 0, within_s=60)
    cluster.stop()
    judge(cluster, url, load.kept)
    print(f"{len(load.kept)} jobs, the slowest took {load.slowest_s:.2f} s")


def test_a_database_that_comes_later_than_the_masters(
    new_cluster: Callable[..., Cluster], own_server: Server, tmp_path: Path
):
    own_server.start()
    url = own_server.create_database("late")
    own_server.kill()
    cluster = new_cluster(masters=1, executors=1, metadata_url=url, data_dir=tmp_path)
    client = cluster.client()
    ids = [client.run_command(["true"]).wait(timeout_s=20).id for _ in range(3)]
    eventually(lambda: metadata(client).state == "unavailable", within_s=20)
    assert "Can't connect to MySQL server" in metadata(client).error
    assert "secret" not in cluster.cli("cluster", "status", check=True).stdout
    assert [job.id for job in client.list()] == ids[::-1]
    own_server.start()
    eventually(lambda: metadata(client).state == "available" and metadata(client).behind == 0, within_s=30)
    cluster.stop()
    judge(cluster, url, ids)
