"""Mutual TLS: both sides of every connection show a certificate that the cluster's own CA has signed.

A certificate says who may speak at all, and for which hosts: whom a client dials must be named in the server's, and a
master that calls another must be named in its own (`is_for`). The files are read again when they have changed, so
that certificates are renewed without a restart.
"""

import inspect
import ipaddress
import os
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import grpc
import grpc.aio
import structlog
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from msgspec import Struct

from tiflow.errors import InvalidArgument

log = structlog.get_logger()

FILE_BYTES_MAX = 1 << 20
LOOK_S = 1.0  #: to connect, and for the handshake, when a failure is looked into
#: words of gRPC's account of a connection that failed for somebody's certificate
_TROUBLE = ("handshake", "verification check", "certificate", "ssl server name", "peer name")


class Tls(Struct, frozen=True):
    """Paths of PEM files: the CAs that are trusted, our chain, its key; and the common names that may call us (empty:
    whoever has a certificate)."""

    ca_path: str
    cert_path: str
    key_path: str
    allowed_cn: tuple[str, ...] = ()

    @classmethod
    def given(cls, ca_path: str, cert_path: str, key_path: str, allowed_cn: Sequence[str] = ()) -> Self | None:
        """None if no path is given. Raises InvalidArgument when only some are, or when they do not fit together."""
        if not (ca_path or cert_path or key_path):
            return None
        tls = cls(ca_path, cert_path, key_path, tuple(allowed_cn))
        tls.check()
        return tls

    def check(self, host: str | None = None) -> None:
        """See that the files can be read and belong together, and that others can know us by them as `host`.

        Raises InvalidArgument, which names the file and what is wrong with it.
        """
        ca_pem, chain_pem, key_pem = self._read()
        authorities = _certificates("ca-path", self.ca_path, ca_pem)
        chain = _certificates("cert-path", self.cert_path, chain_pem)
        try:
            key: Any = load_pem_private_key(key_pem, None)
        except (ValueError, TypeError) as error:
            raise InvalidArgument(
                f"key-path = {self.key_path}: is not a PEM key without a password ({error})"
            ) from None
        if key.public_key() != chain[0].public_key():
            raise InvalidArgument(
                f"key-path = {self.key_path}: is not the key of cert-path = {self.cert_path}; name the pair that was "
                "made together"
            )
        first, last, now = chain[0].not_valid_before_utc, chain[0].not_valid_after_utc, datetime.now(UTC)
        if not first <= now <= last:
            raise InvalidArgument(
                f"cert-path = {self.cert_path}: is valid from {first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC, "
                f"and it is {now:%Y-%m-%d %H:%M}; renew it, or set the clock"
            )
        if not any(_issued(chain[-1], authority) for authority in authorities):
            raise InvalidArgument(
                f"cert-path = {self.cert_path}: was not signed by the CA in ca-path = {self.ca_path}, so nobody here "
                "would accept it"
            )
        names = _names_of(chain[0])
        if host is not None and not any(_covers(name, host) for name in names):
            raise InvalidArgument(
                f"cert-path = {self.cert_path}: is for {', '.join(names) or 'no host'}, and others know us "
                f"as {host}; make one that has {host} among its subject alternative names"
            )

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """For one connection attempt; with the files as they are now."""
        ca, chain, key = self._read()
        return grpc.ssl_channel_credentials(ca, key, chain)

    def server_credentials(self, host: str | None = None) -> grpc.ServerCredentials:
        """For a port. Looks at the files at each handshake; `host`: new ones must name it."""
        seen = self.stamp()

        def configuration() -> Any:
            ca, chain, key = self._read()
            return grpc.ssl_server_certificate_configuration([(key, chain)], ca)

        def renewed() -> Any:
            nonlocal seen
            stamp = self.stamp()
            if stamp == seen:
                return None
            seen = stamp
            try:
                self.check(host)
                new = configuration()
            except InvalidArgument as error:
                log.error("certificates_not_renewed", reason=str(error))
                return None
            log.info("certificates_renewed", cert_path=self.cert_path)
            return new

        return grpc.dynamic_ssl_server_credentials(configuration(), renewed, require_client_authentication=True)

    def explain(self, address: str, details: str) -> str:
        """Why no connection to `address` came about, in one line; empty if it is not for a certificate, as far as
        gRPC's account `details` says. Looks at what is shown at that port, and so may take 2 s."""
        if not any(word in details.lower() for word in _TROUBLE):
            return ""
        host = address.rpartition(":")[0].strip("[]")
        try:
            names = self._shown_at(address)
        except ssl.SSLCertVerificationError as error:
            return (
                f"{address} shows a certificate that does not hold before ca-path = {self.ca_path} "
                f"({error.verify_message}); use one that this CA has signed, or name the CA that signed it"
            )
        except (OSError, ValueError, InvalidArgument):
            return " ".join(details.split())
        if any(_covers(name, host) for name in names):
            return " ".join(details.split())
        return (
            f"{address} shows a certificate for {', '.join(names) or 'no host'}, not for {host}; dial a name that it "
            f"has, or make one that names {host} (`tiflow cert issue --host {host}`)"
        )

    def _shown_at(self, address: str) -> list[str]:
        """The hosts in the certificate of who listens there, if our CA has signed it. Raises OSError, ValueError."""
        host, _, port = address.rpartition(":")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False  # to see the names is what we are here for
        context.load_verify_locations(self.ca_path)
        context.load_cert_chain(self.cert_path, self.key_path)
        context.set_alpn_protocols(["h2"])
        with socket.create_connection((host.strip("[]"), int(port)), LOOK_S) as raw:
            raw.settimeout(LOOK_S)
            with context.wrap_socket(raw) as shown:
                return _names_of(x509.load_der_x509_certificate(shown.getpeercert(binary_form=True) or b""))

    def is_for(self, context: Any, host: str) -> bool:
        """Whether the certificate of who calls (`context`: of a server's method) names `host`."""
        names = context.auth_context().get("x509_subject_alternative_name", ())
        return any(_covers(name.decode(errors="replace"), host) for name in names)

    def interceptors(self) -> list[grpc.aio.ServerInterceptor]:
        """For a server, so that only those in `allowed_cn` are served."""
        return [_AllowedNames(self.allowed_cn)] if self.allowed_cn else []

    def stamp(self) -> tuple[tuple[int, int], ...]:
        """Changes when a file does."""
        stamps = []
        for path in (self.ca_path, self.cert_path, self.key_path):
            try:
                stat = os.stat(path)
            except OSError:
                stamps.append((0, 0))
            else:
                stamps.append((stat.st_mtime_ns, stat.st_ino))
        return tuple(stamps)

    def _read(self) -> tuple[bytes, bytes, bytes]:
        return (
            _read("ca-path", self.ca_path),
            _read("cert-path", self.cert_path),
            _read("key-path", self.key_path),
        )


def open_channel(address: str, tls: Tls | None, options: Sequence[tuple[str, Any]]) -> Any:
    """A channel for threads. Raises InvalidArgument if a certificate cannot be read any more."""
    if tls is None:
        return grpc.insecure_channel(address, options=options)
    return grpc.secure_channel(address, tls.channel_credentials(), options=options)


def open_aio_channel(address: str, tls: Tls | None, options: Sequence[tuple[str, Any]]) -> Any:
    """A channel for the event loop. Raises as `open_channel`."""
    if tls is None:
        return grpc.aio.insecure_channel(address, options=options)
    return grpc.aio.secure_channel(address, tls.channel_credentials(), options=options)


def add_port(server: grpc.aio.Server, address: str, tls: Tls | None, host: str | None = None) -> int:
    """Let `server` listen; others know it as `host`. Returns the port, 0 if that is not possible."""
    try:
        if tls is None:
            return int(server.add_insecure_port(address))
        return int(server.add_secure_port(address, tls.server_credentials(host)))
    except RuntimeError:
        return 0


class _AllowedNames(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = frozenset(name.encode() for name in names)

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], details: Any) -> Any:
        handler = await continuation(details)
        if handler is None:
            return None
        ways = (handler.request_streaming, handler.response_streaming)
        kind = "_".join("stream" if streaming else "unary" for streaming in ways)
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        return make(self._guarded(getattr(handler, kind)), handler.request_deserializer, handler.response_serializer)

    def _guarded(self, method: Callable[..., Any]) -> Callable[..., Any]:
        if inspect.isasyncgenfunction(method):

            async def generate(request: Any, context: Any) -> Any:
                await self._admit(context)
                async for reply in method(request, context):
                    yield reply

            return generate

        async def call(request: Any, context: Any) -> Any:
            await self._admit(context)
            return await method(request, context)

        return call

    async def _admit(self, context: Any) -> None:
        names = context.auth_context().get("x509_common_name", ())
        if not self._names.intersection(names):
            shown = b", ".join(names).decode(errors="replace") or "none"
            await context.abort(
                grpc.StatusCode.PERMISSION_DENIED,
                f"the common name of your certificate, {shown}, is not in [security] cert-allowed-cn of this process",
            )


def _read(key: str, path: str) -> bytes:
    if not path:
        raise InvalidArgument(f"{key} is empty: TLS needs ca-path, cert-path and key-path, all three")
    try:
        with Path(path).open("rb") as file:
            return file.read(FILE_BYTES_MAX)
    except OSError as error:
        raise InvalidArgument(f"{key} = {path}: cannot be read ({error.strerror}); name a PEM file") from None


def _certificates(key: str, path: str, pem: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise InvalidArgument(f"{key} = {path}: is not a PEM certificate ({error})") from None


def _issued(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _names_of(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [str(name.value) for name in names if isinstance(name, x509.DNSName | x509.IPAddress)]


def _covers(name: str, host: str) -> bool:
    """Whether a certificate's `name` is `host`'s. A `*` stands for one whole first label (RFC 6125, 6.4.3), and gRPC
    believes none whose rest is a single label, as of `*.local`."""
    try:
        return ipaddress.ip_address(name) == ipaddress.ip_address(host)
    except ValueError:
        pass
    name, host = name.lower().rstrip("."), host.lower().rstrip(".")
    if name.startswith("*."):
        first, _, rest = host.partition(".")
        return bool(first) and rest == name[2:] and "." in rest
    return name == host
