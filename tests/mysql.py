"""A private MariaDB or MySQL server in a directory of its own. It never touches a database of the machine.

TIFLOW_TEST_MYSQL: a root file system with a genuine MySQL in it (`make mysql_test`); empty: this machine's MariaDB.
"""

import getpass
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pymysql
import pytest

from tests.ports import free_port

MYSQL_ROOT = os.environ.get("TIFLOW_TEST_MYSQL", "")
START_S = 60.0
USER, PASSWORD = "tiflow", "a:secret@word"  # what URLs must escape, and logs must not show


def require_server() -> None:
    """Skips the test on a machine without a server. CI must not skip: there the test fails."""
    missing = [name for name in ("mariadbd", "mariadb-install-db") if _program(name) is None]
    if MYSQL_ROOT or not missing:
        return
    text = f"{' and '.join(missing)} not found: apt-get install mariadb-server-core"
    if os.environ.get("CI") == "true":
        pytest.fail(text, pytrace=False)
    pytest.skip(text)


def new_server(*options: str, redo_mb: int = 32, directory: Path | None = None) -> "Server":
    """One that has not been started. `options`: of the server, such as --max-connections=10. `redo_mb`: the size of
    its redo log. `directory`: an empty one, which stays."""
    if MYSQL_ROOT:
        return MySql(Path(MYSQL_ROOT), f"--innodb-redo-log-capacity={redo_mb}M", *options, directory=directory)
    return MariaDb(f"--innodb-log-file-size={redo_mb}M", *options, directory=directory)


class Server:
    """start, stop, kill and start again: data and port stay the same."""

    def __init__(self, *options: str, directory: Path | None) -> None:
        self._options = options
        # short: a socket's path has 107 bytes
        self.directory = directory or Path(tempfile.mkdtemp(prefix="tiflow-mysql-"))
        self._own_directory = directory is None
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        assert self._process is None, "already started"
        if fresh := not self._data.exists():
            self._run(self._install())
        command = [
            *self._server(),
            f"--socket={self.socket_path}",
            f"--pid-file={self.directory / 'pid'}",
            f"--port={self.port}",
            "--bind-address=127.0.0.1",
            f"--log-error={self._log}",
            "--innodb-buffer-pool-size=32M",
            "--performance-schema=OFF",
            *self._options,
        ]
        with (self.directory / "out.log").open("ab") as out:
            self._process = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)
        self._wait_until_it_answers()
        if fresh:
            self.execute(f"CREATE USER '{USER}'@'%' IDENTIFIED BY '{PASSWORD}'")
            self.execute(f"GRANT ALL ON *.* TO '{USER}'@'%'")

    def stop(self) -> None:
        """In order."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """As a power cut."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """SIGSTOP: connections stay open, and nothing answers."""
        assert self._process is not None, "not started"
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None, "not started"
        self._process.send_signal(signal.SIGCONT)

    def revive(self) -> None:
        """Start it again if it has given up by itself."""
        assert self._process is not None, "not started"
        if self._process.poll() is not None:
            self._process = None
            self.start()

    def restart(self) -> None:
        self.kill()
        self.start()

    @property
    def running(self) -> bool:
        return self._process is not None

    def remove(self) -> None:
        if self._process is not None:
            self.kill()
        if self._own_directory:
            shutil.rmtree(self.directory, ignore_errors=True)

    def create_database(self, name: str) -> str:
        """An empty database; its SQLAlchemy URL."""
        self.execute(f"CREATE DATABASE `{name}`")
        return f"mysql+pymysql://{USER}:{quote(PASSWORD)}@127.0.0.1:{self.port}/{name}"

    def execute(self, statement: str) -> tuple[tuple[Any, ...], ...]:
        """As root, over the socket."""
        with (
            pymysql.connect(user="root", unix_socket=str(self.socket_path)) as connection,
            connection.cursor() as cursor,
        ):
            cursor.execute(statement)
            return cursor.fetchall()

    @property
    def socket_path(self) -> Path:
        return self.directory / "s.sock"

    @property
    def _data(self) -> Path:
        return self.directory / "data"

    @property
    def _log(self) -> Path:
        return self.directory / "error.log"

    def _install(self) -> Sequence[str]:
        """The command that makes the data directory, in which root has no password."""
        raise NotImplementedError

    def _server(self) -> Sequence[str]:
        """The beginning of the server's command."""
        raise NotImplementedError

    def _run(self, command: Sequence[str]) -> None:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"

    def _wait_until_it_answers(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError as error:
                if self._process.poll() is None and time.monotonic() < deadline:
                    time.sleep(0.02)
                    continue
                log = self._log.read_text(errors="replace") if self._log.exists() else ""
                self.kill()
                raise AssertionError(f"the server did not start ({error}):\n{log[-3000:]}") from error

    def _end(self, how: signal.Signals) -> None:
        assert self._process is not None, "not started"
        self._process.send_signal(how)
        self._process.wait(START_S)
        self._process = None


class MariaDb(Server):
    """This machine's."""

    def _install(self) -> Sequence[str]:
        return [
            *self._command("mariadb-install-db"),
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
        ]

    def _server(self) -> Sequence[str]:
        return self._command("mariadbd")

    def _command(self, program: str) -> list[str]:
        path = _program(program)
        assert path is not None, program
        # mariadbd refuses to run as root unless it is told to.
        return [path, "--no-defaults", f"--datadir={self._data}", f"--user={getpass.getuser()}"]


class MySql(Server):
    """Of another system than this machine's: run with that one's own loader and libraries, in place."""

    def __init__(self, root: Path, *options: str, directory: Path | None) -> None:
        super().__init__(*options, directory=directory)
        self._root = root

    def start(self) -> None:
        # names a process that may have been killed, and whose number another one may have by now
        self.socket_path.with_suffix(".sock.lock").unlink(missing_ok=True)
        super().start()

    def _install(self) -> Sequence[str]:
        return [*self._server(), "--initialize-insecure"]

    def _server(self) -> Sequence[str]:
        usr = self._root / "usr"
        (loader,) = (usr / "lib64").glob("ld-linux-*.so.2")
        (libraries,) = (usr / "lib").glob("*-linux-gnu")
        return [
            *(str(loader), "--library-path", str(libraries), str(usr / "sbin" / "mysqld")),
            "--no-defaults",
            f"--basedir={usr}",
            f"--datadir={self._data}",
            f"--user={getpass.getuser()}",
            "--mysqlx=OFF",
            "--secure-file-priv=NULL",
        ]


def _program(name: str) -> str | None:
    # Debian has servers in sbin, which is not in everyone's PATH.
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
