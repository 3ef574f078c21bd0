"""Who calls: for the history of jobs, not for deciding what somebody may do.

With TLS it is the common name of the caller's certificate, which its CA vouches for. Without it nobody is known: then
it is what the caller says of itself, or else where the call came from. A follower that forwards a call says whose it
is, and with TLS only a master is believed: whoever has a certificate for the host of one, as in Raft.
"""

import getpass
import os
import socket
from collections.abc import Iterable
from typing import Any
from urllib.parse import unquote

from tiflow.rpc.tls import Tls
from tiflow.sched.model import BY_CHARS_MAX

FORWARDED = "tiflow-forwarded"  #: metadata key: the call came from a follower, so it is not forwarded again
USER = "tiflow-user-bin"  #: metadata key: whose call it is, in UTF-8; plain values have room for ASCII alone


def own_name() -> str:
    """What a client says of itself: user@host."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user need not have a name
        user = str(os.getuid())
    return _printable(f"{user}@{socket.gethostname()}")


class Callers:
    """Knows those who call a master; `masters` are the addresses of all of them."""

    def __init__(self, tls: Tls | None, masters: Iterable[str]) -> None:
        self._tls = tls
        self._hosts = sorted({address.rpartition(":")[0].strip("[]") for address in masters})

    def name(self, context: Any) -> str:
        """Who calls (`context`: of a server's method), in BY_CHARS_MAX printable characters at most."""
        said = _printable(_metadata(context).get(USER, b"")) if self._believes(context) else ""
        return said or _common_name(context) or _printable(_host(context.peer()))

    def _believes(self, context: Any) -> bool:
        if self._tls is None:
            return True
        return was_forwarded(context) and any(self._tls.is_for(context, host) for host in self._hosts)


def was_forwarded(context: Any) -> bool:
    return FORWARDED in _metadata(context)


def _metadata(context: Any) -> dict[str, Any]:
    return dict(context.invocation_metadata() or ())


def _common_name(context: Any) -> str:
    return _printable(next(iter(context.auth_context().get("x509_common_name", ())), b""))


def _host(peer: str) -> str:
    """Of `ipv4:HOST:PORT` or `ipv6:[HOST]:PORT`, percent-encoded."""
    return unquote(peer).partition(":")[2].rpartition(":")[0].strip("[]")


def _printable(text: bytes | str) -> str:
    """Without what could move a terminal's cursor, or turn the direction of writing."""
    if isinstance(text, bytes):
        text = text.decode(errors="replace")
    return "".join(char for char in text if char.isprintable()).strip()[:BY_CHARS_MAX]
