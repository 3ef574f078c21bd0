"""Clusters for tests, and their logs when a test fails."""

from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.harness import Cluster
from tests.mysql import Server, new_server, require_server


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """3 masters and 2 executors that a module's tests share. For tests that do not hurt it."""
    with Cluster(masters=3, executors=2) as cluster:
        yield cluster


@pytest.fixture
def new_cluster() -> Iterator[Callable[..., Cluster]]:
    """Starts clusters of this test's own: new_cluster(masters=1, executors=1)."""
    with ExitStack() as stack:

        def start(**options: Any) -> Cluster:
            return stack.enter_context(Cluster(**options))

        yield start


@pytest.fixture
def own_server() -> Iterator[Server]:
    """A server that a test may kill and stop."""
    require_server()
    server = new_server()
    try:
        yield server
    finally:
        server.remove()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.cluster)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed and call.when == "call":
        for cluster in Cluster.living:
            cluster.failed = True
            report.sections.append(("logs of the cluster", cluster.tails()))
    return report
