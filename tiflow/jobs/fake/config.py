"""The config of `fake` jobs."""

from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from tiflow.errors import InvalidArgument
from tiflow.jobs.fake.protocol import KEY
from tiflow.toml import check_keys, type_error
from tiflow.values import parse_address, parse_duration_ms, show

HOUR_MS = 3_600_000
COUNT_MAX = 1 << 53
WORKERS_MAX = 1_000


class FakeConfig(Struct, frozen=True, kw_only=True, rename="kebab", forbid_unknown_fields=True):
    """What may stand in [config]."""

    worker_count: Annotated[int, Meta(ge=1, le=WORKERS_MAX)] = 4
    target_tick: Annotated[int, Meta(ge=0, le=COUNT_MAX)] = 0  #: a worker ends after so many; 0: not until canceled
    target_count: Annotated[int, Meta(ge=0, le=COUNT_MAX)] = 0  #: … and after so many changes of its key
    tick_interval: str = "1s"
    source_url: str = ""  #: where `tiflow.jobs.fake.source` serves; empty: no key is watched
    key_prefix: str = "key-"  #: worker n watches the key of this and n
    inject_error_interval: str = "0s"  #: each attempt of a worker raises an error after that; 0s: it does not
    checkpoint_interval: str = "200ms"

    @property
    def tick_s(self) -> float:
        return parse_duration_ms(self.tick_interval, "tick-interval", 1, HOUR_MS) / 1_000

    @property
    def inject_error_s(self) -> float:
        return parse_duration_ms(self.inject_error_interval, "inject-error-interval", 0, HOUR_MS) / 1_000

    @property
    def checkpoint_s(self) -> float:
        return parse_duration_ms(self.checkpoint_interval, "checkpoint-interval", 1, HOUR_MS) / 1_000

    @property
    def source(self) -> tuple[str, int]:
        """Host and port."""
        return parse_address(self.source_url, "source-url")

    @classmethod
    def of(cls, config: dict[str, Any]) -> "FakeConfig":
        """Raises ValueError, naming key, value and remedy."""
        try:
            check_keys(config, cls, "config")
            settings = msgspec.convert(config, cls)
            settings._check()
        except msgspec.ValidationError as error:
            raise ValueError(str(type_error(error, config, lambda at: at))) from None
        except InvalidArgument as error:
            raise ValueError(str(error)) from None
        return settings

    def _check(self) -> None:
        checkpoint_s, inject_error_s = self.checkpoint_s, self.inject_error_s
        _ = self.tick_s
        if 0 < inject_error_s <= checkpoint_s:
            raise InvalidArgument(
                f"inject-error-interval = {show(self.inject_error_interval)}: must be longer than checkpoint-interval"
                f" ({self.checkpoint_interval}), or no attempt would come further than the one before it"
            )
        if self.source_url:
            if self.source_url.lower().startswith("https://"):
                raise InvalidArgument(f"source-url = {show(self.source_url)}: the source speaks http only")
            _ = self.source
        if not KEY.fullmatch(f"{self.key_prefix}{WORKERS_MAX}"):
            raise InvalidArgument(
                f"key-prefix = {show(self.key_prefix)}: must be letters, digits, '.', '_' or '-', 124 at most"
            )
        if self.target_count and not (self.source_url and self.target_tick):
            raise InvalidArgument(f"target-count = {self.target_count}: needs target-tick and source-url too")
