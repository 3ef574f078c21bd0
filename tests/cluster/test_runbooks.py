"""What docs/runbooks.md says, followed to the letter."""

import shutil
import signal
import urllib.request
from collections.abc import Callable
from pathlib import Path

from tests.cluster.harness import Cluster, eventually
from tiflow.sched.commands import FORMAT

NEWER = f"import tiflow.sched.commands as commands; commands.FORMAT = {FORMAT + 1}"
KEPT = list(range(30))


def stop_all(cluster: Cluster, sig: signal.Signals = signal.SIGTERM) -> None:
    for name in (*cluster.executors, *cluster.masters):
        if cluster.running(name):
            cluster.kill(name, sig)


def move(old: Cluster, new: Cluster, backed_up: list[str], **cli: bool) -> None:
    """Back up the members that are named, and make those of the other cluster from the files."""
    files = [str(old.directory / f"{name}.backup") for name in backed_up]
    for name, file in zip(backed_up, files, strict=True):
        old.cli("raft", "backup", str(old.data_dir(name)), file, check=True)
    for name, address in new.addresses.items():
        where = ["--data-dir", str(new.data_dir(name)), "--advertise-addr", address, "--peers", new.master_addrs]
        new.cli("raft", "restore", *files, *where, check=True)


def format_of(cluster: Cluster, name: str) -> int:
    with urllib.request.urlopen(f"http://{cluster.http_addresses[name]}/metrics", timeout=5) as answer:
        line = next(line for line in answer.read().decode().splitlines() if line.startswith("tiflow_format "))
    return int(float(line.split()[1]))


def test_from_one_master_to_three(new_cluster: Callable[..., Cluster], tmp_path: Path):
    one = new_cluster(masters=1, executors=1)
    ended = one.client().run_python("operator:neg", KEPT, id="ended")
    assert ended.wait(timeout_s=20).state == "Finished"
    waiting = one.client().run_command(["sleep", "60"], count=3, id="waiting")
    one.client().pause("waiting")
    before = one.client().get("waiting")
    stop_all(one)

    three = Cluster(masters=3, executors=0)
    move(one, three, ["m1"])
    with three:
        client = three.client()
        assert [result.value for result in client.results("ended", ordered=True)] == [-i for i in KEPT]
        after = client.get("waiting")
        assert (after.uid, after.state in ("Pausing", "Paused")) == (before.uid, True)
        three.add_executor("e9")
        three.kill(three.wait_leader())
        assert client.run_command(["true"]).wait(timeout_s=20).state == "Finished"
        assert waiting.uid == client.cancel("waiting").uid


def test_three_masters_at_new_addresses(new_cluster: Callable[..., Cluster]):
    old = new_cluster(masters=3, executors=0)
    leader = old.wait_leader()
    behind = next(name for name in old.masters if name != leader)
    old.kill(behind)
    for number in range(20):
        old.client().run_command(["true"], id=f"job-{number}")
    stop_all(old, signal.SIGKILL)
    ahead = next(name for name in old.masters if name not in (leader, behind))

    new = Cluster(masters=3, executors=1)
    move(old, new, [behind, ahead])
    with new:
        jobs = {f"job-{number}": new.client().wait(f"job-{number}", timeout_s=30).state for number in range(20)}
        assert set(jobs.values()) == {"Finished"}
        assert all(status.term > 1 for status in new.status().values())


def test_a_minority_is_not_restored_by_the_way(new_cluster: Callable[..., Cluster], tmp_path: Path):
    old = new_cluster(masters=3, executors=0)
    old.client().run_command(["true"], id="j")
    eventually(lambda: len({status.applied_index for status in old.status().values()}) == 1)
    stop_all(old, signal.SIGKILL)
    file = str(tmp_path / "backup")
    old.cli("raft", "backup", str(old.data_dir("m2")), file, check=True)

    def restore(*options: str) -> object:
        where = ["--data-dir", str(tmp_path / "new"), "--advertise-addr", "127.0.0.1:1"]
        return old.cli("raft", "restore", file, *where, *options)

    refused = restore()
    assert (refused.returncode, "--allow-loss" in refused.stderr) == (5, True)
    assert restore("--allow-loss").returncode == 0
    assert restore("--allow-loss").returncode == 4  # never over what is there


def test_a_dead_master_is_replaced_at_its_address(new_cluster: Callable[..., Cluster]):
    cluster = new_cluster(masters=3, executors=1)
    job = cluster.client().run_python("operator:neg", KEPT, id="before")
    job.wait(timeout_s=20)
    dead = cluster.wait_leader()
    cluster.kill(dead)
    shutil.rmtree(cluster.data_dir(dead))
    cluster.wait_leader()

    cluster.restart(dead)

    def caught_up() -> bool:
        statuses = cluster.status().values()
        roles = sorted(status.role for status in statuses)
        return roles == ["follower", "follower", "leader"] and not any(status.learner for status in statuses)

    eventually(caught_up, within_s=20)
    cluster.kill(cluster.wait_leader())
    cluster.wait_leader(within_s=20)
    assert [result.value for result in cluster.client().results("before", ordered=True)] == [-i for i in KEPT]
    assert cluster.client().run_command(["true"]).wait(timeout_s=20).state == "Finished"


def test_a_rolling_upgrade_uses_new_commands_when_the_last_master_has_it(new_cluster: Callable[..., Cluster]):
    cluster = new_cluster(masters=3, executors=1)
    for name in ("m1", "m2"):
        cluster.patch(name, NEWER)
        cluster.kill(name, signal.SIGTERM)
        cluster.restart(name)
        cluster.wait_leader()
    assert cluster.client().run_command(["true"]).wait(timeout_s=20).state == "Finished"
    eventually(lambda: [format_of(cluster, name) for name in cluster.masters] == [FORMAT] * 3, retry=(OSError,))

    cluster.patch("m3", NEWER)
    cluster.kill("m3", signal.SIGTERM)
    cluster.restart("m3")

    eventually(lambda: [format_of(cluster, name) for name in cluster.masters] == [FORMAT + 1] * 3, retry=(OSError,))
    cluster.patch("m3", "")
    cluster.kill("m3", signal.SIGTERM)
    cluster.restart("m3")
    assert cluster.wait_exit("m3") == 5
    assert "upgrade it" in cluster.log("m3")
    assert cluster.client().run_command(["true"]).wait(timeout_s=20).state == "Finished"
