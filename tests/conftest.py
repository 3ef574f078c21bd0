"""Fixtures that more than one layer of tests uses."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.mysql import Server, new_server, require_server

# CI tries the same examples each time, so that what fails there is what was changed; elsewhere they are drawn anew
settings.register_profile("ci", derandomize=True, print_blob=True)
if os.environ.get("CI") == "true":
    settings.load_profile("ci")


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
