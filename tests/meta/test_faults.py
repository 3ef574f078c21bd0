"""What goes wrong with a real server: the state says what it is, tries go on, and in the end nothing is missing."""

import asyncio
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

import pymysql
import pytest

from tests.meta.conftest import State, create_database
from tests.meta.test_projector import in_database, projector_of, running, until
from tests.mysql import MYSQL_ROOT, PASSWORD, USER, Server, new_server, require_server
from tiflow.meta.projector import Projector

pytestmark = pytest.mark.mysql


#: for a fresh server and some MiB more; MySQL's takes more room than MariaDB's
DISK_MB = 350 if MYSQL_ROOT else 200


async def judge(projector: Projector, state: State, url: str) -> None:
    """It heals by itself, and the database has all."""
    await until(lambda: projector.available and projector.revision == state.revision)
    assert in_database(url) == state.jobs


def says(projector: Projector, *words: str) -> bool:
    error = projector.last_error or ""
    return any(word in error for word in words)


async def test_a_wrong_password(server: Server) -> None:
    url = create_database(server)
    server.execute("CREATE USER 'late'@'%' IDENTIFIED BY 'old'")
    server.execute(f"GRANT ALL ON `{url.rsplit('/', 1)[1]}`.* TO 'late'@'%'")
    late = url.replace(f"{USER}:{quote(PASSWORD)}", "late:new")
    state = State()
    state.put("job")
    projector = projector_of(late, state)
    async with running(projector):
        await until(lambda: says(projector, "Access denied for user 'late'"))
        assert "new" not in str(projector.last_error)
        server.execute("ALTER USER 'late'@'%' IDENTIFIED BY 'new'")
        await judge(projector, state, url)
    server.execute("DROP USER 'late'@'%'")


async def test_a_database_that_does_not_exist_yet(server: Server) -> None:
    url = create_database(server)
    name = url.rsplit("/", 1)[1]
    server.execute(f"DROP DATABASE `{name}`")
    state = State()
    state.put("job")
    projector = projector_of(url, state)
    async with running(projector):
        await until(lambda: says(projector, f"Unknown database '{name}'"))
        server.execute(f"CREATE DATABASE `{name}`")
        await judge(projector, state, url)


async def test_tables_that_were_dropped(server: Server) -> None:
    """Not a fault that heals by itself: who drops tables brings them back."""
    url = create_database(server)
    name = url.rsplit("/", 1)[1]
    state = State()
    state.put("job")
    projector = projector_of(url, state)
    async with running(projector):
        await judge(projector, state, url)
        server.execute(f"RENAME TABLE `{name}`.jobs TO `{name}`.away")
        state.put("job", 1, state="Running")
        projector.wake(state.revision)
        await until(lambda: says(projector, "doesn't exist"))
        server.execute(f"RENAME TABLE `{name}`.away TO `{name}`.jobs")
        await judge(projector, state, url)


async def test_a_read_only_server(server: Server) -> None:
    url = create_database(server)
    server.execute("CREATE USER 'plain'@'%' IDENTIFIED BY 'plain'")  # GRANT ALL ON *.* would be above read_only
    server.execute(f"GRANT ALL ON `{url.rsplit('/', 1)[1]}`.* TO 'plain'@'%'")
    plain = url.replace(f"{USER}:{quote(PASSWORD)}", "plain:plain")
    state = State()
    state.put("job")
    projector = projector_of(plain, state)
    async with running(projector):
        await judge(projector, state, url)
        server.execute("SET GLOBAL read_only = 1")
        try:
            state.put("late")
            projector.wake(state.revision)
            await until(lambda: says(projector, "read-only", "read_only"))
        finally:
            server.execute("SET GLOBAL read_only = 0")
        await judge(projector, state, url)
    server.execute("DROP USER 'plain'@'%'")


async def test_too_many_connections(server: Server) -> None:
    url = create_database(server)
    state = State()
    state.put("job")
    server.execute("SET GLOBAL max_connections = 10")
    held: list[pymysql.Connection] = []  # type: ignore[type-arg]
    try:
        with suppress(pymysql.err.OperationalError):
            while True:
                connection = pymysql.connect(host="127.0.0.1", port=server.port, user=USER, password=PASSWORD)
                held.append(connection)
        projector = projector_of(url, state)
        async with running(projector):
            await until(lambda: says(projector, "Too many connections"))
            while held:
                held.pop().close()
            await judge(projector, state, url)
    finally:
        for connection in held:
            connection.close()
        server.execute("SET GLOBAL max_connections = 151")


async def test_a_connection_that_is_cut_in_the_middle_of_a_transaction(server: Server) -> None:
    url = create_database(server)
    name = url.rsplit("/", 1)[1]
    state = State()
    state.put("job")
    projector = projector_of(url, state)
    async with running(projector):
        await judge(projector, state, url)
        for number in range(2):
            with pymysql.connect(user="root", unix_socket=str(server.socket_path)) as root:
                cursor = root.cursor()
                cursor.execute(f"LOCK TABLES `{name}`.jobs WRITE")
                state.put(f"late-{number}")
                projector.wake(state.revision)
                waiting = (
                    f"SELECT id FROM information_schema.processlist WHERE db = '{name}' AND state LIKE 'Waiting%'"
                )
                await until(lambda waiting=waiting: bool(server.execute(waiting)))  # type: ignore[misc]
                ((victim,),) = server.execute(waiting)
                server.execute(f"KILL {victim}")
                await until(lambda: not projector.available)
                cursor.execute("UNLOCK TABLES")
            await judge(projector, state, url)


@contextmanager
def small_disk(directory: Path, megabytes: int) -> Iterator[Path]:
    directory.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tiflow-test", str(directory)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip(f"mount needs root: {mounted.stderr.decode().strip()}")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)


async def test_a_full_disk(tmp_path: Path) -> None:
    require_server()
    with small_disk(tmp_path / "d", DISK_MB) as disk:
        server = new_server(redo_mb=8, directory=disk)
        try:
            server.start()
            url = create_database(server)
            state = State()
            state.put("job")
            projector = projector_of(url, state)
            async with running(projector):
                await judge(projector, state, url)
                free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
                filler = disk / "filler"
                filler.write_bytes(bytes(free))
                for number in range(40):
                    state.put(f"large-{number}", spec=os.urandom(1 << 20))
                projector.wake(state.revision)
                # InnoDB refuses to write, or gives up altogether, as it happens
                await until(lambda: says(projector, "full", "No space", "Disk", "Lost connection", "Can't connect"))
                filler.unlink()
                await asyncio.to_thread(server.revive)
                await judge(projector, state, url)
        finally:
            server.remove()
