"""Hosts of our own: one network namespace per process, on a bridge, so that links can be cut while everything runs.

All of it lives in a network namespace that this process entered first (`enter_own_network`), so the machine's own
network is never touched, and nothing is left when the process ends. It takes root and iproute2.
"""

import os
import shutil
import subprocess
import sys

BRIDGE = "tiflow0"
SUBNET = "10.77.0"
OUTSIDE = f"{SUBNET}.254"  #: where the test itself lives
_ENTERED = "TIFLOW_TEST_OWN_NETWORK"


def enter_own_network() -> None:
    """Run this program again, from its beginning, in namespaces of its own."""
    if os.environ.get(_ENTERED):
        return
    if os.getuid() != 0:
        raise SystemExit("network namespaces take root")
    os.environ[_ENTERED] = "1"
    module = sys.modules["__main__"].__spec__
    program = ["-m", module.name.removesuffix(".__main__")] if module else sys.argv[:1]
    os.execvp("unshare", ["unshare", "--net", "--mount", "--", sys.executable, *program, *sys.argv[1:]])


class Network:
    """Hosts by name. Cuts are one-way and silent: what is sent gets lost, and nobody is told."""

    def __init__(self, names: list[str]) -> None:
        assert os.environ.get(_ENTERED), "call enter_own_network first"
        self.addresses = {name: f"{SUBNET}.{number + 1}" for number, name in enumerate(names)}
        self._cut: set[tuple[str, str]] = set()
        self._undo: list[str] = []
        os.makedirs("/run/netns", exist_ok=True)
        _run("mount -t tmpfs tmpfs /run/netns")
        _run("ip link set lo up")
        _run(f"ip link add {BRIDGE} type bridge")
        _run(f"ip addr add {OUTSIDE}/24 dev {BRIDGE}")
        _run(f"ip link set {BRIDGE} up")
        for name, address in self.addresses.items():
            _run(f"ip netns add {name}")
            _run(f"ip link add v-{name} type veth peer name eth0 netns {name}")
            _run(f"ip link set v-{name} master {BRIDGE} up")
            _run(f"ip -n {name} addr add {address}/24 dev eth0")
            _run(f"ip -n {name} link set eth0 up")
            _run(f"ip -n {name} link set lo up")

    def on(self, name: str) -> list[str]:
        """What to put in front of a command that shall run on the host."""
        return ["ip", "netns", "exec", name]

    def cut(self, source: str, target: str) -> None:
        """What `source` sends to `target` is lost."""
        if (source, target) not in self._cut:
            self._cut.add((source, target))
            _run(f"ip -n {source} route add blackhole {self.addresses[target]}/32")

    def isolate(self, name: str, others: list[str]) -> None:
        """Between `name` and `others` nothing passes, in either direction."""
        for other in others:
            if other != name:
                self.cut(name, other)
                self.cut(other, name)

    def lose(self, name: str, share: float) -> None:
        """So much of what is sent to `name` is lost, by chance (0 to 1). Takes iptables."""
        rule = f"INPUT -i eth0 -m statistic --mode random --probability {share} -j DROP"
        _run(f"ip netns exec {name} iptables -w -A {rule}")
        self._undo.append(f"ip netns exec {name} iptables -w -D {rule}")

    def slow(self, name: str) -> None:
        """What `name` sends waits in a queue, up to 0.3 s, and is lost when that is full."""
        _run(f"tc -n {name} qdisc add dev eth0 root tbf rate 1mbit burst 8kb latency 300ms")
        self._undo.append(f"tc -n {name} qdisc del dev eth0 root")

    def heal(self) -> None:
        for command in self._undo:
            _run(command)
        self._undo.clear()
        for source, target in self._cut:
            _run(f"ip -n {source} route del blackhole {self.addresses[target]}/32")
        self._cut.clear()


def can_lose() -> bool:
    return shutil.which("iptables") is not None


def _run(command: str) -> None:
    done = subprocess.run(command.split(), check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{command}: {done.stderr.strip()}")
