"""The tables come to be, and change, with what is in them."""

import threading
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from structlog.testing import capture_logs

from tests.meta.conftest import CLUSTER, State
from tests.meta.test_projector import in_database, projector_of, running, until
from tiflow.errors import InvalidArgument
from tiflow.meta import schema
from tiflow.meta.store import Stand, Store
from tiflow.meta.tables import METADATA, open_engine

OLD_JOB = {
    "uid": 7,
    "id": "old",
    "cluster_id": CLUSTER,
    "state": "Finished",
    "type": "command",
    "spec": b"\x00\xff" * 30_000,
    "priority": 50,
    "total": 1,
    "succeeded": 1,
    "failed": 0,
    "canceled": 0,
    "submitted_at_ms": 1_700_000_000_000,
    "started_at_ms": 1_700_000_000_001,
    "ended_at_ms": 1_700_000_000_002,
    "mod_revision": 9,
}
OLD_EVENT = {"uid": 7, "revision": 9, "seq": 1, "at_ms": 1_700_000_000_002, "kind": "ended", "message": "☃"}


@pytest.fixture
def engine(url: str) -> Any:
    engine = open_engine(url)
    yield engine
    engine.dispose()


def before_versions(engine: sa.Engine) -> None:
    """A database of the first tiflow, which knew no versions, with a job in it."""
    schema.migrate(engine, "0001")
    with engine.begin() as connection:
        connection.execute(sa.text("DROP TABLE alembic_version"))
        connection.execute(
            sa.text("INSERT INTO projection (id, cluster_id, revision) VALUES (1, :id, 9)"), {"id": CLUSTER}
        )
        for table, row in (("jobs", OLD_JOB), ("job_events", OLD_EVENT)):
            values = ", ".join(f":{name}" for name in row)
            connection.execute(sa.text(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({values})"), row)


def old_job(engine: sa.Engine) -> dict[str, Any]:
    with engine.connect() as connection:
        event = connection.execute(sa.text("SELECT * FROM job_events")).mappings().one()
        assert {name: event[name] for name in OLD_EVENT} == OLD_EVENT
        assert event.get("by_whom", "") == ""
        row = connection.execute(sa.text("SELECT * FROM jobs")).mappings().one()
        return {name: row[name] for name in OLD_JOB}


def test_the_steps_lead_to_the_tables_that_the_code_knows(engine: sa.Engine) -> None:
    assert schema.current(engine) == "base"
    assert schema.ensure(engine) == "base"
    assert schema.current(engine) == schema.known()[-1]
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []
    assert schema.ensure(engine) == schema.known()[-1], "nothing is left to do"


def test_what_is_in_the_tables_survives_the_way_up_and_down(engine: sa.Engine) -> None:
    before_versions(engine)
    assert schema.ensure(engine) == "base"
    assert old_job(engine) == OLD_JOB
    store = Store(engine, CLUSTER)
    assert store.stand() == Stand(0, 0), "all jobs are written again, with their archives"
    for version in schema.known()[-2::-1]:
        schema.migrate(engine, version)
        assert schema.current(engine) == version
        assert old_job(engine) == OLD_JOB
    schema.migrate(engine, "head")
    assert old_job(engine) == OLD_JOB
    schema.migrate(engine, "base")
    assert set(sa.inspect(engine).get_table_names()) <= {"alembic_version"}


def test_a_step_that_was_cut_off_is_done_again(engine: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """MySQL has committed half of it; the version says that it was not done."""
    before_versions(engine)
    for version in schema.known():
        schema.migrate(engine, version)
        with engine.begin() as connection:
            earlier = schema.known()[: schema.known().index(version)]
            connection.execute(sa.text("DELETE FROM alembic_version"))
            if earlier:
                connection.execute(
                    sa.text("INSERT INTO alembic_version (version_num) VALUES (:v)"), {"v": earlier[-1]}
                )
        schema.migrate(engine, version)
    assert old_job(engine) == OLD_JOB


def test_of_many_migrators_one_migrates(url: str) -> None:
    before: list[str] = []
    errors: list[Exception] = []

    def run() -> None:
        engine = open_engine(url)
        try:
            before.append(schema.ensure(engine))
        except Exception as error:  # noqa: BLE001
            errors.append(error)
        finally:
            engine.dispose()

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert sorted(set(before)) in (["base"], [schema.known()[-1], "base"])


def test_the_statements_can_be_read_before(engine: sa.Engine) -> None:
    schema.migrate(engine, "0001")
    text = schema.sql(engine, "head")
    assert "job_archives" in text
    assert "CREATE TABLE IF NOT EXISTS jobs " not in text
    assert "DROP TABLE" in schema.sql(engine, "base")
    assert schema.current(engine) == "0001", "nothing was executed"
    with pytest.raises(InvalidArgument, match="there are base, 0001, 0002, 0003 and head"):
        schema.sql(engine, "9999")


async def test_a_newer_schema_is_refused_and_scheduling_goes_on(url: str) -> None:
    state = State()
    state.put("job")
    engine = open_engine(url)
    schema.ensure(engine)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    projector = projector_of(url, state)
    with capture_logs() as logs:
        async with running(projector):
            await until(lambda: not projector.available)
            assert "the database's schema is 9999, and this tiflow knows" in str(projector.last_error)
            with engine.begin() as connection:
                connection.execute(sa.text("UPDATE alembic_version SET version_num = :v"), {"v": schema.known()[-1]})
            await until(lambda: projector.revision == 1)
    engine.dispose()
    assert [entry["event"] for entry in logs] == ["metadata_refused", "metadata_available"]
    assert in_database(url) == state.jobs
