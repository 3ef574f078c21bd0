"""What docker asks a container for its health: health.py, at ports of the test's."""

import ssl
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from tests.deploy.tools import ENGINE, run
from tiflow.rpc import certificates

PROGRAM = (ENGINE / "docker" / "health.py").read_text()
UNUSED = 1  #: nobody listens there


class Master(ThreadingHTTPServer):
    answer = 200
    asked = 0


class Handler(BaseHTTPRequestHandler):
    server: Master

    def do_GET(self) -> None:
        self.server.asked += 1
        self.send_response(self.server.answer if self.path == "/readyz" else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def serve() -> Iterator[Callable[..., Master]]:
    with ExitStack() as stack:

        def start(context: ssl.SSLContext | None = None) -> Master:
            server = stack.enter_context(Master(("127.0.0.1", 0), Handler))
            if context is not None:
                server.socket = stack.enter_context(context.wrap_socket(server.socket, server_side=True))
            Thread(target=server.serve_forever, args=(0.05,)).start()
            stack.callback(server.shutdown)
            return server

        yield start


def healthy(http: int, executor: int = UNUSED) -> bool:
    text = PROGRAM.replace("10250", str(http)).replace("10241", str(executor))
    done = run(sys.executable, "-c", text)
    assert not done.stderr
    return done.returncode == 0


def test_a_master_is_healthy_when_it_is_ready_with_tls_or_without(serve: Callable[..., Master], tmp_path: Path):
    certificates.create_authority(tmp_path, days=1)
    _, cert_path, key_path = certificates.issue(tmp_path, "m0", ["m0.example"], days=1)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert_path, key_path)
    plain, secure = serve(), serve(context)

    assert healthy(plain.server_port)
    assert healthy(secure.server_port)

    plain.answer, plain.asked = 503, 0
    assert not healthy(plain.server_port, executor=plain.server_port)
    assert plain.asked == 1, "who says no over HTTP is not asked again over HTTPS"


def test_an_executor_is_healthy_when_it_listens(serve: Callable[..., Master]):
    assert healthy(UNUSED, executor=serve().server_port)
    assert not healthy(UNUSED)
