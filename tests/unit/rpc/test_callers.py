"""Who calls, as far as that can be known."""

import getpass
import os
import socket
from typing import Any

import pytest

from tiflow.rpc.callers import FORWARDED, USER, Callers, own_name
from tiflow.rpc.tls import Tls

TLS = Tls("ca.pem", "cert.pem", "key.pem")
MASTERS = ["10.0.0.1:10240", "m2.example:10240", "[::1]:10240"]
BY_FOLLOWER = {FORWARDED: "m2", USER: b"ada"}


class Context:
    """What gRPC knows of a call."""

    def __init__(
        self, metadata: dict[str, Any], cn: str | None = None, hosts: tuple[str, ...] = (), peer: str = ""
    ) -> None:
        self._metadata = tuple(metadata.items())
        self._peer = peer or "ipv4:10.1.2.3:40000"
        self._auth = {"x509_common_name": [cn.encode()]} if cn is not None else {}
        self._auth["x509_subject_alternative_name"] = [host.encode() for host in hosts]

    def invocation_metadata(self) -> tuple[tuple[str, Any], ...]:
        return self._metadata

    def auth_context(self) -> dict[str, list[bytes]]:
        return self._auth

    def peer(self) -> str:
        return self._peer


@pytest.mark.parametrize(
    ("tls", "context", "name"),
    [
        (None, Context({USER: b"ada@laptop"}), "ada@laptop"),
        (None, Context(BY_FOLLOWER), "ada"),
        (None, Context({}), "10.1.2.3"),
        (None, Context({}, peer="ipv6:%5B::1%5D:40000"), "::1"),
        (None, Context({USER: b" \x1b\0\n"}), "10.1.2.3"),
        (None, Context({USER: "a\x1b[2J\nd\u202e\u00a0ä".encode()}), "a[2Jdä"),
        (None, Context({USER: b"\xff" + b"x" * 5_000}), "\ufffd" + "x" * 127),
        (TLS, Context({}, "ada"), "ada"),
        (TLS, Context({USER: b"root"}, "ada"), "ada"),
        (TLS, Context({**BY_FOLLOWER, USER: b"root"}, "eve"), "eve"),
        (TLS, Context({**BY_FOLLOWER, USER: b"root"}, "eve", ("10.9.9.9", "e1.example")), "eve"),
        (TLS, Context(BY_FOLLOWER, "m2", ("m2.example",)), "ada"),
        (TLS, Context(BY_FOLLOWER, "m3", ("::1",)), "ada"),
        (TLS, Context({USER: b"root"}, "m2", ("m2.example",)), "m2"),  # a person with the certificate of a master
        (TLS, Context({FORWARDED: "m2"}, "m2", ("m2.example",)), "m2"),
        (TLS, Context({USER: b"root"}), "10.1.2.3"),  # a certificate without a common name
    ],
)
def test_a_caller_is_whom_its_certificate_names_or_without_tls_whom_it_says(
    tls: Tls | None, context: Context, name: str
) -> None:
    assert Callers(tls, MASTERS).name(context) == name


def test_a_user_without_a_name_goes_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> str:
        raise OSError("no username set in the environment")

    monkeypatch.setattr(getpass, "getuser", nobody)

    assert own_name() == f"{os.getuid()}@{socket.gethostname()}"


def test_no_name_in_the_environment_keeps_a_client_from_calling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", os.fsdecode(b"a\xff\n" + b"b" * 50_000))

    assert own_name().encode() == b"a" + b"b" * 127
