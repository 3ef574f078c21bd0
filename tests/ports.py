"""Ports for the servers that tests start, some of which are killed and started again at the same port."""

import os
import random
import socket
from contextlib import suppress
from pathlib import Path

# pytest-xdist's; each worker draws from ports of its own, since what was drawn may be taken much later
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, outside of the range from which the kernel takes those of outgoing connections:
    else, while a killed process is away, somebody who tries to reach it could get its port, and even connect to
    himself."""
    first_ephemeral = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    candidates = range(max(1_024, first_ephemeral - 20_000) + _WORKER, first_ephemeral, _WORKERS)
    ports: list[int] = []
    for port in random.SystemRandom().sample(candidates, min(1_000, len(candidates))):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            ports.append(port)
        if len(ports) == count:
            return ports
    raise AssertionError(f"no {count} free ports below {first_ephemeral}")


def free_port() -> int:
    return free_ports(1)[0]
