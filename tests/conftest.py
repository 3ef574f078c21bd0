"""Fixtures that more than one layer of tests uses."""

from collections.abc import Iterator

import pytest

from tests.mysql import Server, new_server, require_server


@pytest.fixture(scope="session")
def mysql() -> Iterator[Server]:
    """One private server for the session. A test that stops it starts it again."""
    require_server()
    server = new_server()
    try:
        server.start()
        yield server
    finally:
        server.remove()
