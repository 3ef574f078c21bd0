"""Jobs that are submitted all the time, and those of them that were acknowledged."""

import itertools
import threading

import tiflow
from tests.cluster.harness import Cluster, eventually
from tiflow.errors import TiflowError


class Submissions(threading.Thread):
    """Submits jobs until told to stop, and knows those that were acknowledged."""

    def __init__(self, client: tiflow.Client) -> None:
        super().__init__(name="submissions", daemon=True)
        self._client = client
        self._stopping = threading.Event()
        self.acknowledged: list[str] = []
        self.start()

    def run(self) -> None:
        for number in itertools.count():
            if self._stopping.is_set():
                return
            self._stopping.wait(0.02)
            try:
                self.acknowledged.append(self._client.run_command(["true"], id=f"job-{number}").id)
            except TiflowError:
                continue

    def more(self, count: int = 20, within_s: float = 20.0) -> None:
        """Wait until so many more are acknowledged."""
        goal = len(self.acknowledged) + count
        eventually(lambda: len(self.acknowledged) >= goal, within_s)

    def stop(self) -> None:
        self._stopping.set()
        self.join()


def assert_all_are_there(cluster: Cluster, submissions: Submissions) -> None:
    submissions.stop()
    cluster.wait_leader()
    client = cluster.client()
    for id in submissions.acknowledged:
        client.get(id)  # raises NotFound
