"""Which labels a selector wants.

Regular expressions come from users, and are looked at by the leader's one thread: RE2 matches in linear time, and
programs that are large are refused, so that neither a hostile pattern nor a hostile label stalls it.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import lru_cache
from typing import Any

import re2
from msgspec import Struct

from tiflow.errors import InvalidArgument
from tiflow.sched.model import EXECUTORS_MAX, REGEX_CHARS_MAX, Selector

REGEXES_KEPT = 1_024
VERDICTS_KEPT = 200_000  #: of labels, all patterns together
REGEX_SIZE_MAX = 300  #: instructions of the compiled program: matching costs at most this times the label's length


def matches(selectors: tuple[Selector, ...], labels: Mapping[str, str]) -> bool:
    """Whether an executor with these labels may run tasks with these selectors."""
    return all(selects(selector, labels.get(selector.key)) for selector in selectors)


def selects(selector: Selector, label: str | None) -> bool:
    """Whether the label that the selector is about, None if there is none, is as it wants."""
    return _OPS[selector.op](label, selector.values)


def show(selector: Selector) -> str:
    """As it stands in a job file."""
    signs = {"eq": "=", "neq": "!=", "in": " in ", "exists": "", "regex": "~"}
    return f"{selector.key}{signs[selector.op]}{'|'.join(selector.values)}"


def check_regex(field: str, pattern: str) -> None:
    """Raise InvalidArgument, which names the field and the reason, unless it can be used.

    For the edge, not for `apply`: another release of RE2 may see it otherwise. A pattern that does not compile on a
    later leader matches nothing.
    """
    if not 1 <= len(pattern) <= REGEX_CHARS_MAX:
        raise InvalidArgument(f"{field}: the regex has {len(pattern)} characters; 1 to {REGEX_CHARS_MAX} are wanted")
    try:
        size = _compile(pattern).programsize
    except (re2.error, UnicodeError) as error:
        raise InvalidArgument(f"{field}: the regex {pattern[:80]!r} does not compile (RE2): {_text(error)}") from None
    if size > REGEX_SIZE_MAX:
        raise InvalidArgument(
            f"{field}: the regex {pattern[:80]!r} compiles to {size} instructions; at most {REGEX_SIZE_MAX}:"
            " use fewer or smaller repetitions"
        )


def _compile(pattern: str) -> Any:
    return re2.compile(pattern, _options())


@lru_cache(1)
def _options() -> Any:
    options = re2.Options()
    options.log_errors = False
    options.never_capture = True
    options.max_mem = 1 << 20
    return options


class Steps(Struct):
    """What may be spent on matching: about as many steps as a regular expression has instructions, per character."""

    left: int


class _Regex:
    """A pattern, and what is known of labels. One that does not compile matches nothing."""

    def __init__(self, pattern: str) -> None:
        self._regex: Any = None
        self.size = 0
        with suppress(InvalidArgument):
            check_regex("", pattern)
            self._regex = _compile(pattern)
            self.size = self._regex.programsize
        self.known: dict[str, bool] = {}

    def fits(self, label: str) -> bool:
        found = self.known.get(label)
        if found is None:
            found = self.known[label] = self._regex is not None and self._regex.fullmatch(label) is not None
        return found


_regexes: OrderedDict[str, _Regex] = OrderedDict()  #: by pattern, the least recently used first


def _regex(pattern: str) -> _Regex:
    found = _regexes.get(pattern)
    if found is None:
        while len(_regexes) >= REGEXES_KEPT or sum(len(one.known) for one in _regexes.values()) > VERDICTS_KEPT:
            _regexes.popitem(last=False)
        found = _regexes[pattern] = _Regex(pattern)
    _regexes.move_to_end(pattern)
    return found


def matching(pattern: str, labels: Iterable[str | None], steps: Steps) -> list[str | None] | None:
    """Those of the labels that a regular expression matches; None: `steps` did not suffice. What was found out by
    then is remembered, so the next time they may."""
    regex = _regex(pattern)
    if len(regex.known) > 2 * EXECUTORS_MAX:  # most are of executors that are gone
        regex.known.clear()
    found: list[str | None] = []
    for label in labels:
        if label is None:
            continue
        if label not in regex.known:
            if steps.left <= 0:
                return None
            steps.left -= regex.size * (len(label) + 1)
        if regex.fits(label):
            found.append(label)
    return found


def _text(error: Exception) -> str:
    said = error.args[0] if error.args else error
    return said.decode(errors="replace") if isinstance(said, bytes) else str(said)


_OPS: dict[str, Callable[[str | None, tuple[str, ...]], bool]] = {
    "eq": lambda label, values: label == values[0],
    "neq": lambda label, values: label != values[0],
    "in": lambda label, values: label in values,
    "exists": lambda label, values: label is not None,
    "regex": lambda label, values: label is not None and _regex(values[0]).fits(label),
}
