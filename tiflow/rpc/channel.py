"""A client's way to the masters: any of them, the one that answers, again until it does.

Every command is idempotent, so a call that may or may not have happened is simply made again. A master that knows
of a better one says so (NotLeader), and is believed for the next attempt.
"""

import threading
import time
from collections.abc import Callable, Generator, Sequence
from types import TracebackType
from typing import Any, Self

import grpc

from tiflow.errors import NoSpace, NotLeader, OutcomeUnknown, TiflowError, Unavailable
from tiflow.rpc import tiflow_pb2_grpc as rpc
from tiflow.rpc.callers import USER, own_name
from tiflow.rpc.status import from_rpc_error, is_ours
from tiflow.rpc.tls import Tls, open_channel

TIMEOUT_S = 15.0
TRY_S_MAX = 5.0  #: of one attempt, so that a silent host does not use up the time of all
FIRST_TRY_S_MAX = 2.0  #: the same as long as there is another one that was not asked yet
STREAM_S_MAX = 10.0  #: after which a stream is opened anew: a silent one may be dead
BACKOFF_S_MIN, BACKOFF_S_MAX = 0.05, 0.5
MESSAGE_BYTES_MAX = 16 << 20

OPTIONS = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.min_reconnect_backoff_ms", 2_000),  # in truth the time that one connection attempt may take
    ("grpc.enable_http_proxy", 0),
    ("grpc.dns_min_time_between_resolutions_ms", 1_000),  # a pod that was moved is found again (default: 30 s)
)


class MasterChannel:
    """Thread-safe. `refused_s`: how long to go on while not one master lets us connect (default: `timeout_s`)."""

    def __init__(
        self,
        addresses: Sequence[str],
        timeout_s: float = TIMEOUT_S,
        *,
        refused_s: float | None = None,
        tls: Tls | None = None,
    ) -> None:
        self.addresses = tuple(addresses)
        self.timeout_s = timeout_s
        self.refused_s = timeout_s if refused_s is None else refused_s
        self.tls = tls
        #: of writes; with TLS our certificate says it
        self._metadata = ((USER, own_name().encode()),) if tls is None else None
        self._lock = threading.Lock()
        self._channels: dict[str, tuple[Any, Any]] = {}  # address → (channel, stub)
        self.good = self.addresses[0]  # answered last, or was named as the leader

    def call(
        self,
        method: str,
        request: Any,
        *,
        write: bool = False,
        timeout_s: float | None = None,
        done_if: type[TiflowError] | None = None,
    ) -> Any:
        """The answer of the first master that has one. Raises what it refuses, or Unavailable naming all that was
        tried, or OutcomeUnknown when a write may have happened.

        `done_if` is what a repeated write meets when the first had succeeded after all (NotFound after a deletion):
        then the answer is None.
        """
        search = _Search(self, timeout_s or self.timeout_s)
        while True:
            address = search.next_address()
            try:
                metadata = self._metadata if write else None
                reply = self._method(address, method)(request, timeout=search.try_s(), metadata=metadata)
            except grpc.RpcError as error:
                try:
                    search.failed(address, error, write=write)
                except TiflowError as verdict:
                    if search.perhaps and done_if is not None and isinstance(verdict, done_if):
                        return None
                    raise
            else:
                self.good = address
                return reply

    def stream(self, method: str, request: Callable[[], Any]) -> Generator[Any, None, None]:
        """The messages of a stream that is opened anew, with a new `request()`, whenever it breaks or is silent for
        long. Ends when a master ends it; raises as `call`, counted from the last message."""
        search = _Search(self, self.timeout_s)
        while True:
            address = search.next_address()
            heard = False
            call = self._method(address, method)(request(), timeout=STREAM_S_MAX)
            try:
                for message in call:
                    heard = True
                    self.good = address
                    yield message
            except grpc.RpcError as error:
                if heard:
                    search = _Search(self, self.timeout_s)
                if not (heard and error.code() is grpc.StatusCode.DEADLINE_EXCEEDED):
                    search.failed(address, error)
            else:
                return
            finally:
                call.cancel()

    @property
    def uses_tls(self) -> bool:
        return self.tls is not None

    def close(self) -> None:
        with self._lock:
            channels, self._channels = list(self._channels.values()), {}
        for channel, _ in channels:
            channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _method(self, address: str, method: str) -> Any:
        with self._lock:
            if address not in self._channels:
                opened = open_channel(address, self.tls, OPTIONS)
                self._channels[address] = (opened, rpc.TiflowStub(opened))
            return getattr(self._channels[address][1], method)


class _Search:
    """One search for a master that answers: whom to ask next, until when, and what to say in the end."""

    def __init__(self, master: MasterChannel, timeout_s: float) -> None:
        self._master = master
        self._timeout_s = timeout_s
        self._began = time.monotonic()
        self._queue = self._round()
        self._backoff_s = BACKOFF_S_MIN
        self._untried = set(master.addresses)
        self._distrusted: dict[str, str] = {}  #: why, by address: its certificate
        self._answered = False  # some master did, if only to say that there is no leader
        self.perhaps = False  # some attempt may have reached one

    def next_address(self) -> str:
        if not self._queue:
            time.sleep(max(0.0, min(self._backoff_s, self._left_s())))
            self._backoff_s = min(BACKOFF_S_MAX, self._backoff_s * 2)
            self._queue = self._round()
        return self._queue.pop(0)

    def try_s(self) -> float:
        most_s = FIRST_TRY_S_MAX if len(self._untried) > 1 else TRY_S_MAX
        return max(0.05, min(most_s, self._left_s()))

    def failed(self, address: str, failure: Any, *, write: bool = False) -> None:
        """Return if another attempt is worth it, else raise."""
        error = from_rpc_error(failure, write=write)
        if not isinstance(error, Unavailable | OutcomeUnknown):
            raise (error if is_ours(failure) else type(error)(f"{address}: {error}")) from None
        self.perhaps |= isinstance(error, OutcomeUnknown)
        self._answered |= is_ours(failure)
        self._untried.discard(address)
        if not is_ours(failure):
            self._look_into(address, failure.details() or "")
        if self._left_s() <= 0 or self._refused_long_enough() or self._nobody_is_trusted():
            raise self._verdict(error) from None
        if isinstance(error, NotLeader) and error.leader and error.leader != address:
            time.sleep(BACKOFF_S_MIN)  # two that name each other would keep us going without a pause
            self._queue = [error.leader, *(other for other in self._queue if other != error.leader)]

    def _look_into(self, address: str, details: str) -> None:
        tls = self._master.tls
        if tls is None or address in self._distrusted:
            return
        if why := tls.explain(address, details):
            self._distrusted[address] = why

    def _refused_long_enough(self) -> bool:
        if self._answered or self.perhaps or self._untried:
            return False
        return time.monotonic() - self._began >= self._master.refused_s

    def _nobody_is_trusted(self) -> bool:
        """Asking again would not help: it takes another certificate, or other addresses."""
        return not self._answered and self._distrusted.keys() >= set(self._master.addresses)

    def _left_s(self) -> float:
        return self._began + self._timeout_s - time.monotonic()

    def _round(self) -> list[str]:
        good = self._master.good
        return [good, *(address for address in self._master.addresses if address != good)]

    def _verdict(self, error: TiflowError) -> TiflowError:
        listed = ", ".join(self._master.addresses)
        if self.perhaps:
            return OutcomeUnknown(
                f"no answer from {listed} in {self._timeout_s:g} s ({error}): it may have happened or not; "
                "asking again is safe"
            )
        if isinstance(error, NoSpace):
            return error
        if self._answered:
            return Unavailable(
                f"the masters at {listed} cannot answer: {error}; see `tiflow raft status`: a majority must be up"
            )
        if self._distrusted:
            return Unavailable(f"no master answered at {listed}: {'; '.join(self._distrusted.values())}")
        hung_up = "socket closed" in str(error) and not self._master.uses_tls
        asked = ", and does it ask for certificates (--ca-path, --cert-path, --key-path)" if hung_up else ""
        return Unavailable(
            f"no master answered at {listed}: {error}; is the cluster up{asked}? set --master-addrs or "
            "TIFLOW_MASTER_ADDRS"
        )
