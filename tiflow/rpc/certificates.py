"""A small certificate authority: a key and a certificate in a directory, and what they sign."""

import ipaddress
import os
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tiflow.errors import AlreadyExists, FailedPrecondition, InvalidArgument
from tiflow.values import show

CA: Final = "ca"
HOSTS_MAX: Final = 64
CLOCK_SKEW: Final = timedelta(minutes=10)  #: valid from a little earlier than now


class Paths(NamedTuple):
    """Of one certificate, as `[security]` wants them."""

    ca_path: str
    cert_path: str
    key_path: str


def create_authority(directory: Path, days: int) -> Path:
    """Make `ca.pem` and `ca-key.pem`. Returns the path of the first. Raises AlreadyExists, if there is one."""
    directory.mkdir(parents=True, exist_ok=True)
    target, key_target = _files(directory, CA)
    for path in (target, key_target):
        if path.exists():
            raise AlreadyExists(f"{path} exists: what it signed would be worthless; use it, or another directory")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tiflow CA")])
    usage = {key: key in ("key_cert_sign", "crl_sign") for key in _KEY_USAGES}
    certificate = (
        _builder(name, name, key, days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.KeyUsage(**usage), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    _write(target, certificate.public_bytes(Encoding.PEM), key_target, key)
    return target


def issue(directory: Path, name: str, hosts: Sequence[str], days: int) -> Paths:
    """Sign a certificate for client and server use, with common name `name`, for `hosts` (names or addresses).

    Raises InvalidArgument, and FailedPrecondition if `directory` holds no authority.
    """
    if name == CA or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        raise InvalidArgument(
            f"NAME = {show(name)}: must be 1 to 64 letters, digits, '.', '_' or '-', and not 'ca', which is the CA's"
        )
    if len(hosts) > HOSTS_MAX:
        raise InvalidArgument(f"--host: {len(hosts)} are given, {HOSTS_MAX} is the most")
    names = [_general_name(host) for host in dict.fromkeys(hosts)]
    authority, signer = _authority(directory)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    usage = {key: key == "digital_signature" for key in _KEY_USAGES}
    uses = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    builder = (
        _builder(subject, authority.subject, key, days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(**usage), critical=True)
        .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    target, key_target = _files(directory, name)
    _write(target, builder.sign(signer, hashes.SHA256()).public_bytes(Encoding.PEM), key_target, key)
    return Paths(str(_files(directory, CA)[0]), str(target), str(key_target))


_KEY_USAGES: Final = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + timedelta(days=days))
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        pass
    if len(host) > 253 or not re.fullmatch(r"(\*\.)?[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?", host):
        raise InvalidArgument(f"--host = {show(host)}: must be an IP address or a host name, without a port")
    return x509.DNSName(host)


def _authority(directory: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    target, key_target = _files(directory, CA)
    try:
        certificate = x509.load_pem_x509_certificate(target.read_bytes())
        key = load_pem_private_key(key_target.read_bytes(), None)
    except FileNotFoundError as error:
        raise FailedPrecondition(
            f"{error.filename} is not there: make an authority with `tiflow cert ca {directory}`"
        ) from None
    except ValueError as error:
        raise FailedPrecondition(f"{directory}: its authority cannot be read ({error})") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise FailedPrecondition(f"{key_target}: is not a key that `tiflow cert ca` made")
    return certificate, key


def _files(directory: Path, name: str) -> tuple[Path, Path]:
    return directory / f"{name}.pem", directory / f"{name}-key.pem"


def _write(target: Path, pem: bytes, key_target: Path, key: ec.EllipticCurvePrivateKey) -> None:
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for path, data, mode in ((key_target, secret, 0o600), (target, pem, 0o644)):
        draft = path.with_name(f".{path.name}.new")
        draft.unlink(missing_ok=True)
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(data)
        draft.replace(path)
