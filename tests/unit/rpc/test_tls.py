"""What is wrong with certificates is told at the start, by the name of the file."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import grpc
import pytest

from tiflow import Client
from tiflow.errors import AlreadyExists, FailedPrecondition, InvalidArgument, Unavailable
from tiflow.rpc import certificates
from tiflow.rpc.channel import TIMEOUT_S
from tiflow.rpc.tls import Tls, _covers


@pytest.fixture
def tls(tmp_path: Path) -> Tls:
    certificates.create_authority(tmp_path, days=1)
    return Tls(*certificates.issue(tmp_path, "m0", ["m0.example", "10.0.0.1", "::1", "*.cluster.local"], days=1))


def wrong(tls: Tls, host: str | None = None) -> str:
    with pytest.raises(InvalidArgument) as caught:
        tls.check(host)
    return str(caught.value)


@pytest.mark.parametrize("host", [None, "m0.example", "M0.Example.", "10.0.0.1", "::1", "m1.cluster.local"])
def test_what_fits_is_taken(tls: Tls, host: str | None):
    tls.check(host)
    assert Tls.given(tls.ca_path, tls.cert_path, tls.key_path) == tls


def test_no_path_means_no_tls():
    assert Tls.given("", "", "") is None


@pytest.mark.parametrize("host", ["m1.example", "10.0.0.2", "a.b.cluster.local", "cluster.local"])
def test_a_certificate_for_other_hosts_is_refused(tls: Tls, host: str):
    assert f"others know us as {host}" in wrong(tls, host)
    assert "m0.example, 10.0.0.1, ::1, *.cluster.local" in wrong(tls, host)


def test_each_file_is_named_with_what_is_wrong_with_it(tls: Tls, tmp_path: Path):
    other = Tls(*certificates.issue(tmp_path, "m1", [], days=1))
    garbage = tmp_path / "garbage"
    garbage.write_bytes(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n\xff")

    assert "key-path" in wrong(Tls(tls.ca_path, tls.cert_path, other.key_path))
    assert "is not the key of" in wrong(Tls(tls.ca_path, tls.cert_path, other.key_path))
    for key, broken in (
        ("ca-path", Tls(str(garbage), tls.cert_path, tls.key_path)),
        ("cert-path", Tls(tls.ca_path, str(garbage), tls.key_path)),
        ("key-path", Tls(tls.ca_path, tls.cert_path, str(garbage))),
    ):
        assert f"{key} = {garbage}: is not a PEM" in wrong(broken)
    assert f"key-path = {tmp_path}: cannot be read" in wrong(Tls(tls.ca_path, tls.cert_path, str(tmp_path)))
    with pytest.raises(InvalidArgument, match="key-path is empty"):
        Tls.given(tls.ca_path, tls.cert_path, "")


def test_a_certificate_of_another_authority_is_refused(tls: Tls, tmp_path: Path):
    certificates.create_authority(tmp_path / "other", days=1)
    foreign = certificates.issue(tmp_path / "other", "m0", [], days=1)

    assert "was not signed by the CA" in wrong(Tls(tls.ca_path, foreign.cert_path, foreign.key_path))


def test_what_has_expired_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    certificates.create_authority(tmp_path, days=1)
    monkeypatch.setattr(certificates, "CLOCK_SKEW", timedelta(days=3))
    paths = certificates.issue(tmp_path, "m0", [], days=-1)

    assert "is valid from" in wrong(Tls(*paths))


@pytest.fixture
def serve() -> Iterator[Callable[[Tls], str]]:
    """Starts a server without methods. Returns: its address."""
    with ExitStack() as stack:

        def start(tls: Tls) -> str:
            server = grpc.server(stack.enter_context(ThreadPoolExecutor(1)))
            port = server.add_secure_port("127.0.0.1:0", tls.server_credentials())
            server.start()
            stack.callback(lambda: server.stop(0).wait())
            return f"127.0.0.1:{port}"

        yield start


def test_whom_a_client_dials_under_a_name_that_the_certificate_has_not_is_told_at_once(
    tls: Tls, tmp_path: Path, serve: Callable[[Tls], str]
):
    ours = certificates.issue(tmp_path, "ops", [], days=1)
    certificates.create_authority(tmp_path / "other", days=1)
    foreign = certificates.issue(tmp_path / "other", "m0", ["127.0.0.1"], days=1)
    elsewhere, strange = serve(tls), serve(Tls(*foreign))

    began_s = time.monotonic()
    with Client(f"{elsewhere},{strange}", **ours._asdict()) as client, pytest.raises(Unavailable) as caught:
        client.list()

    assert time.monotonic() - began_s < TIMEOUT_S / 2, "asking again would not help"
    told = str(caught.value)
    assert (
        f"{elsewhere} shows a certificate for m0.example, 10.0.0.1, ::1, *.cluster.local, not for 127.0.0.1" in told
    )
    assert "(`tiflow cert issue --host 127.0.0.1`)" in told
    assert f"{strange} shows a certificate that does not hold before ca-path = {tls.ca_path}" in told
    assert "\n" not in told


def test_other_failures_are_no_matter_of_certificates(tls: Tls, serve: Callable[[Tls], str]):
    address = serve(tls)

    assert not tls.explain(address, "failed to connect to all addresses; … Connection refused (111)")
    assert tls.explain("127.0.0.1:1", "Ssl handshake\nfailed") == "Ssl handshake failed", "nobody there to look at"


def test_a_renewed_certificate_for_another_host_is_not_taken(tls: Tls, tmp_path: Path):
    server = grpc.server(ThreadPoolExecutor(1))
    ours = Tls(*certificates.issue(tmp_path, "e0", ["127.0.0.1"], days=1))
    port = server.add_secure_port("127.0.0.1:0", ours.server_credentials("127.0.0.1"))
    server.start()
    try:
        assert tls._shown_at(f"127.0.0.1:{port}") == ["127.0.0.1"]
        certificates.issue(tmp_path, "e0", ["elsewhere.example"], days=1)
        assert tls._shown_at(f"127.0.0.1:{port}") == ["127.0.0.1"]
        certificates.issue(tmp_path, "e0", ["127.0.0.1", "new.example"], days=1)
        assert tls._shown_at(f"127.0.0.1:{port}") == ["127.0.0.1", "new.example"]
    finally:
        server.stop(0).wait()


def test_an_authority_is_never_replaced_and_never_made_by_the_way(tmp_path: Path):
    with pytest.raises(FailedPrecondition, match="tiflow cert ca"):
        certificates.issue(tmp_path, "m0", [], days=1)
    certificates.create_authority(tmp_path, days=1)
    with pytest.raises(AlreadyExists, match=r"ca\.pem"):
        certificates.create_authority(tmp_path, days=1)
    assert (tmp_path / "ca-key.pem").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("name", "hosts"), [("ca", []), ("../m0", []), ("", []), ("m0", ["h:1"]), ("m0", ["a b"]), ("m0", ["h"] * 65)]
)
def test_names_and_hosts_that_cannot_be_are_refused(tmp_path: Path, name: str, hosts: list[str]):
    certificates.create_authority(tmp_path, days=1)
    with pytest.raises(InvalidArgument):
        certificates.issue(tmp_path, name, hosts, days=1)


def test_a_star_stands_for_one_label_only():
    assert _covers("*.a.b", "x.a.b")
    assert not any(_covers("*.a.b", host) for host in ("a.b", ".a.b", "x.y.a.b", "xa.b", "10.0.0.1"))


def test_a_star_right_below_the_top_is_not_believed():
    """As gRPC does not: what we took here, no client could dial."""
    assert not _covers("*.b", "x.b")
