"""A cluster with certificates: it works, and only for those who have the right ones."""

import signal
import ssl
import urllib.request
from collections.abc import Callable
from pathlib import Path
from time import time_ns

import grpc
import pytest
from cryptography import x509

import tiflow
from tests.cluster.harness import Cluster, eventually
from tiflow.errors import PermissionDenied, Unavailable
from tiflow.raft import raft_pb2 as raft
from tiflow.raft import raft_pb2_grpc
from tiflow.raft.transport import PROTOCOL
from tiflow.rpc import certificates
from tiflow.rpc import tiflow_pb2 as pb
from tiflow.rpc import tiflow_pb2_grpc as rpc
from tiflow.rpc.callers import FORWARDED, USER
from tiflow.rpc.tls import Tls, open_channel
from tiflow.sched.commands import FORMAT

PRINT = ["/bin/echo", "{index}"]


@pytest.fixture(scope="module")
def secure() -> Cluster:
    with Cluster(masters=3, executors=2, tls=True) as cluster:
        yield cluster


def hello(cluster: Cluster, name: str, tls: Tls, to: str) -> grpc.RpcError:
    """What a master answers to somebody who calls itself the master `name`."""
    members = sorted(cluster.addresses.values())
    words = raft.Hello(
        protocol=PROTOCOL, name=cluster.addresses[name], members=members, fresh=True, session=time_ns()
    )
    with open_channel(cluster.addresses[to], tls, []) as channel, pytest.raises(grpc.RpcError) as caught:
        next(raft_pb2_grpc.RaftStub(channel).Stream(iter([raft.Batch(hello=words)]), timeout=10))
    return caught.value


def test_everything_works_over_tls_also_when_the_leader_and_an_executor_die(
    new_cluster: Callable[..., Cluster], tmp_path: Path
):
    cluster = new_cluster(masters=3, executors=2, tls=True)
    results = cluster.client().run_python("operator:neg", list(range(200)))
    assert sorted(one.value for one in results.results()) == [-i for i in reversed(range(200))]
    mark = tmp_path / "mark"
    job = cluster.client().run_command(["sh", "-c", f"echo x >> {mark}; test $(wc -l < {mark}) -gt 1 || sleep 60"])
    eventually(mark.exists)

    cluster.kill(cluster.wait_leader())
    cluster.wait_leader()
    running = next(one.name for one in cluster.client().executors() if one.running)
    cluster.kill(running)  # its guardian reports it, over TLS too: no lease has to run out

    assert job.wait(timeout_s=30).state == "Finished"
    assert "reported to the leader: expired" in eventually(lambda: cluster.log(running))
    assert cluster.cli("raft", "status", check=True).stdout


def test_who_has_no_certificate_of_this_authority_is_not_heard(secure: Cluster, tmp_path: Path):
    certificates.create_authority(tmp_path, days=1)
    other = certificates.issue(tmp_path, "ops", [], days=1)

    plain = tiflow.Client(secure.master_addrs, refused_s=0.5)
    foreign = tiflow.Client(secure.master_addrs, refused_s=0.5, **other._asdict())

    with plain, pytest.raises(Unavailable, match="--ca-path"):
        plain.executors()
    with foreign, pytest.raises(Unavailable, match=r"(?i)certificate"):
        foreign.executors()


def test_a_certificate_for_another_host_is_not_believed_to_be_a_master(secure: Cluster):
    leader = secure.wait_leader()
    caller = next(name for name in secure.masters if name != leader)
    of_a_client = hello(secure, caller, secure.tls, leader)
    elsewhere = certificates.issue(secure.certificates, "elsewhere", ["10.9.8.7", "host.example"], days=1)
    of_another = hello(secure, caller, Tls(*elsewhere), leader)

    for error in (of_a_client, of_another):
        assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert "has no certificate for the host of" in error.details()
    assert secure.wait_leader() == leader
    assert "raft_peer_refused" in secure.log(leader)


def test_the_history_of_a_job_names_the_certificates_of_those_who_acted(secure: Cluster):
    """Also when a follower forwards the call, and whatever they say of themselves."""
    leader = secure.wait_leader()
    follower = next(name for name in secure.masters if name != leader)
    eventually(lambda: secure.client().cluster_status().format == FORMAT)
    ada, guest = (certificates.issue(secure.certificates, name, [], days=1) for name in ("ada", "guest"))
    forged = ((FORWARDED, follower), (USER, b"ada"))

    with tiflow.Client([secure.addresses[follower]], **ada._asdict()) as client:
        client.run_command(["sleep", "60"], id="whose")
    with open_channel(secure.addresses[leader], Tls(*guest), []) as channel:
        rpc.TiflowStub(channel).CancelJob(pb.CancelJobRequest(id="whose"), timeout=10, metadata=forged)

    history = {event.kind: event.by for event in secure.client().events("whose")}
    assert (history["submitted"], history["canceling"]) == ("ada", "guest")


def test_only_the_common_names_that_are_allowed_are_served(new_cluster: Callable[..., Cluster]):
    allowed = {"security": {"cert-allowed-cn": ["m1", "e1", "ops"]}}
    cluster = new_cluster(masters=1, executors=1, tls=True, master_config=allowed)
    guest = certificates.issue(cluster.certificates, "guest", [], days=1)

    assert cluster.client().run_command(PRINT).wait().state == "Finished"
    with tiflow.Client(cluster.master_addrs, **guest._asdict()) as client, pytest.raises(PermissionDenied) as caught:
        client.executors()
    assert "guest" in str(caught.value)
    assert "cert-allowed-cn" in str(caught.value)


def test_certificates_are_renewed_without_a_restart(new_cluster: Callable[..., Cluster]):
    cluster = new_cluster(masters=3, executors=1, tls=True)
    host, port = cluster.addresses["m1"].split(":")

    def shown() -> int:
        # the handshake ends without a client certificate, after the server has shown its own
        pem = ssl.get_server_certificate((host, int(port)), timeout=10)
        return x509.load_pem_x509_certificate(pem.encode()).serial_number

    before = shown()
    for name in (*cluster.masters, *cluster.executors):
        certificates.issue(cluster.certificates, name, ["127.0.0.1"], days=1)

    assert eventually(lambda: shown() != before)
    cluster.kill(cluster.wait_leader(), signal.SIGTERM)
    cluster.wait_leader()
    assert cluster.client().run_command(PRINT).wait().state == "Finished"


def test_http_is_https(secure: Cluster):
    context = ssl.create_default_context(cafile=secure.tls.ca_path)
    url = f"https://{secure.http_addresses['m1']}/healthz"
    with urllib.request.urlopen(url, context=context, timeout=10) as answer:
        assert answer.read() == b"ok\n"


def test_a_certificate_that_names_another_host_is_told_by_the_peers_and_by_clients(secure: Cluster):
    """The last one here: the cluster stays like that."""
    cluster = secure
    cluster.kill("m3")
    certificates.issue(cluster.certificates, "m3", ["elsewhere.example"], days=1)
    # a master looks at its own certificate when it starts, and would not start
    cluster.patch("m3", "from tiflow.rpc.tls import Tls; Tls.check = lambda self, host=None: None")
    cluster.restart("m3")
    m3 = cluster.addresses["m3"]
    reason = f"{m3} shows a certificate for elsewhere.example, not for 127.0.0.1"
    caller = f"who calls itself {m3} has no certificate for the host of {m3}"

    for peer in ("m1", "m2"):  # of two masters, the one with the lower name dials
        told = reason if cluster.addresses[peer] < m3 else caller
        eventually(lambda: "raft_peer_refused" in cluster.log(peer) and told in cluster.log(peer), within_s=30)  # noqa: B023
    of_all = cluster.cli("raft", "status", "--master-addrs", cluster.addresses["m1"], check=True)
    of_one = cluster.cli("raft", "status", "--master-addrs", cluster.addresses["m3"])

    assert "unreachable" in of_all.stdout
    assert reason in of_all.stderr
    assert of_one.returncode == 7
    assert reason in of_one.stderr
    assert len(of_one.stderr.splitlines()) == 1
