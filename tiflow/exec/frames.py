"""Messages between agent and guardian: a length, then JSON; file descriptors travel beside it.

Standard library only: the guardian imports this.
"""

import json
import socket
import struct
from collections import deque
from collections.abc import Iterator
from typing import Any, TypeAlias

Message: TypeAlias = dict[str, Any]

_LENGTH = struct.Struct("!I")
_FD = struct.Struct("i")
_ANCILLARY_BYTES = socket.CMSG_SPACE(64 * _FD.size)  #: one read takes 64 descriptors at most; a message has three
_READ_BYTES = 1 << 16


def encode(message: Message) -> bytes:
    body = json.dumps(message).encode()
    return _LENGTH.pack(len(body)) + body


class Reader:
    """Puts messages together from what a socket delivers."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._buffer = bytearray()
        self._fds: deque[int] = deque()
        self.closed = False  #: the other side is gone

    def read(self) -> Iterator[tuple[Message, list[int]]]:
        """The messages that are complete, each with its descriptors, after one non-blocking read."""
        try:
            # not socket.recv_fds: in Python 3.11 it drops the flags, and would block the guardian
            data, ancillary, _, _ = self._sock.recvmsg(_READ_BYTES, _ANCILLARY_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except ConnectionError:
            self.closed = True
            return
        if not data:
            self.closed = True
            return
        self._buffer += data
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                self._fds.extend(fd for (fd,) in _FD.iter_unpack(content[: len(content) // _FD.size * _FD.size]))
        while len(self._buffer) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer)
            if len(self._buffer) < _LENGTH.size + length:
                return
            message = json.loads(self._buffer[_LENGTH.size : _LENGTH.size + length])
            del self._buffer[: _LENGTH.size + length]
            # descriptors arrive with the first byte of their message, and in order
            yield message, [self._fds.popleft() for _ in range(message.get("fds", 0))]
