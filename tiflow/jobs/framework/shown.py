"""What a member shows of itself: its metrics, and what answers requests to it."""

import re
from collections.abc import Callable, Mapping

from msgspec import json

from tiflow.errors import TiflowError
from tiflow.jobs.failures import cut, describe
from tiflow.jobs.framework.member import Route
from tiflow.jobs.framework.port import BODY_BYTES_MAX, SAMPLES_MAX, Request, Response, Sample

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
LABELS_MAX = 8
LABEL_CHARS_MAX = 200

_is_name = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}").fullmatch
_OWN_LABELS = ("job", "worker")


class Metrics:
    """The newest value of each. Raises ValueError for what Prometheus would not take."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._samples: dict[tuple[str, tuple[tuple[str, str], ...]], Sample] = {}
        self._kinds: dict[str, str] = {}  #: by name
        self._on_change = on_change

    def set(self, name: str, value: float, labels: Mapping[str, str]) -> None:
        self._put(name, value, labels, "gauge")

    def add(self, name: str, by: float, labels: Mapping[str, str]) -> None:
        if by < 0:
            raise ValueError(f"metric {name}: by = {by}: what is counted only grows; use a gauge")
        known = self._samples.get(_key(name, labels))
        self._put(name, by + (known.value if known is not None else 0), labels, "counter")

    def samples(self) -> tuple[Sample, ...]:
        return tuple(self._samples.values())

    def _put(self, name: str, value: float, labels: Mapping[str, str], kind: str) -> None:
        for one in (name, *labels):
            if not _is_name(one):
                raise ValueError(f"metric {one[:128]!r}: names are letters, digits and _, and begin with no digit")
        if wrong := [label for label, text in labels.items() if not isinstance(text, str)]:
            raise ValueError(f"metric {name}: label {wrong[0]} = {labels[wrong[0]]!r}: must be a string")
        if len(labels) > LABELS_MAX or any(len(text) > LABEL_CHARS_MAX for text in labels.values()):
            raise ValueError(f"metric {name}: at most {LABELS_MAX} labels of {LABEL_CHARS_MAX} characters")
        known = self._kinds.get(name, kind)
        if known != kind:
            raise ValueError(f"metric {name}: is a {known} already; give the {kind} another name")
        if taken := [label for label in _OWN_LABELS if label in labels]:
            raise ValueError(f"metric {name}: label {taken[0]} is set by tiflow; choose another name")
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise ValueError(f"metric {name} = {value!r}: must be a number") from None
        key = _key(name, labels)
        if key not in self._samples and len(self._samples) >= SAMPLES_MAX:
            raise ValueError(f"metric {name}: a member may have {SAMPLES_MAX}, each set of labels counted")
        self._kinds[name] = kind
        self._samples[key] = Sample(name, number, dict(labels), kind)
        self._on_change()


def _key(name: str, labels: Mapping[str, str]) -> tuple[str, tuple[tuple[str, str], ...]]:
    return name, tuple(sorted(labels.items()))


class Routes:
    def __init__(self) -> None:
        self._routes: dict[str, dict[str, Route]] = {}  #: by path, by method

    def add(self, method: str, path: str, handler: Route) -> None:
        if method not in METHODS:
            raise ValueError(f"method {method!r}: must be one of {', '.join(METHODS)}")
        if not path.startswith("/") or path.startswith("/workers/"):
            raise ValueError(f"path {path!r}: begins with /, and not with /workers/, where workers are asked")
        self._routes.setdefault(path, {})[method] = handler

    async def answer(self, request: Request) -> Response:
        """What a handler raises is answered too: 400 of a ValueError, else 500, or what the error of tiflow says."""
        methods = self._routes.get(request.path)
        if methods is None:
            known = ", ".join(sorted(self._routes)) or "none"
            return _error(404, f"no route {request.path}; there are: {known}")
        handler = methods.get(request.method) or (methods.get("GET") if request.method == "HEAD" else None)
        if handler is None:
            return _error(405, f"{request.path} takes {', '.join(sorted(methods))}")
        try:
            return _checked(_response(await handler(request)))
        except ValueError as error:
            return _error(400, str(error))
        except TiflowError as error:
            return _error(error.http_status, str(error))
        except Exception as error:  # noqa: BLE001  the asker hears of it, and the member goes on
            return _error(500, cut(describe(error)))


def _response(answer: object) -> Response:
    match answer:
        case Response():
            return answer
        case None:
            return Response(204)
        case bytes():
            return Response(200, {"content-type": "application/octet-stream"}, answer)
        case str():
            return Response(200, {"content-type": "text/plain; charset=utf-8"}, answer.encode())
        case _:
            return Response(200, {"content-type": "application/json"}, json.encode(answer))


def _checked(response: Response) -> Response:
    """What could not be sent would fail where its author does not see it. Raises TypeError, which says why."""
    if not isinstance(response.status, int) or not 200 <= response.status <= 599:
        raise TypeError(f"status = {response.status!r} of a Response: must be 200 to 599")
    if not isinstance(response.body, bytes):
        raise TypeError(f"body of a Response: must be bytes, is {type(response.body).__name__}")
    if len(response.body) > BODY_BYTES_MAX:
        raise TypeError(f"body of a Response: has {len(response.body)} bytes; at most {BODY_BYTES_MAX}")
    for name, value in response.headers.items():
        if not (isinstance(name, str) and isinstance(value, str) and _is_token(name) and _is_line(value)):
            raise TypeError(f"header {name!r} = {value!r} of a Response: must be one line of Latin-1")
    return response


_is_token = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,200}").fullmatch
_is_line = re.compile(r"[\t -~\xa0-\xff]{0,8192}").fullmatch


def _error(status: int, message: str) -> Response:
    return Response(status, {"content-type": "application/json"}, json.encode({"message": message}))
