"""Run by test_names.py in a mount namespace of its own, where /etc/hosts is a file of the test."""

import sys
from pathlib import Path
from typing import Any, cast

from tests.cluster.harness import Cluster, eventually

NAMES = ("m1", "m2", "m3")


class Hosts:
    """What the harness wants of a network: names instead of addresses; all are on this machine."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.addresses = {name: f"{name}.test" for name in NAMES}
        self._where = {name: f"127.0.1.{number}" for number, name in enumerate(NAMES, 1)}
        self._write()

    def on(self, name: str) -> list[str]:
        return []

    def move(self, name: str, address: str) -> None:
        self._where[name] = address
        self._write()

    def _write(self) -> None:
        lines = ["127.0.0.1 localhost", *(f"{self._where[name]} {name}.test" for name in NAMES)]
        self._file.write_text("\n".join(lines) + "\n")  # in place: it is mounted


def main(file: Path) -> None:
    hosts = Hosts(file)
    with Cluster(executors=0, network=cast(Any, hosts)) as cluster:
        cluster.wait_leader()
        cluster.kill("m3")
        hosts.move("m3", "127.0.1.33")
        cluster.restart("m3")
        eventually(lambda: len(connected(cluster)) == 3)
        cluster.kill("m1")
        assert cluster.wait_leader() in ("m2", "m3")
        cluster.client().run_command(["true"], id="j")
        assert cluster.client().get("j").state == "Created"


def connected(cluster: Cluster) -> set[str]:
    """Those who lead or follow, without lag."""
    statuses = cluster.status()
    leader = next((status for status in statuses.values() if status.role == "leader"), None)
    if leader is None:
        return set()
    return {leader.name, *(peer.name for peer in leader.peers if peer.connected and peer.lag == 0)}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
