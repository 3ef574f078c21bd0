"""What may stand in [config] of a `cvs` job."""

import os
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from tiflow.errors import InvalidArgument
from tiflow.jobs.shared import check_url
from tiflow.toml import check_keys


class CvsConfig(Struct, frozen=True, kw_only=True, rename="kebab", forbid_unknown_fields=True):
    source: str  #: a directory or a file: an absolute path, or an fsspec URL
    target: str  #: a directory, likewise; what is missing of it is made
    worker_count: Annotated[int, Meta(ge=1, le=100)] = 2
    #: where the source is, if the executors that write cannot open it: it is read there, and sent
    source_selectors: tuple[str, ...] = ()
    target_selectors: tuple[str, ...] = ()  #: which executors write
    existing: str = "compare"  #: compare: files with the size and time of their source are left; overwrite
    verify: bool = True  #: read what was written once more, and compare
    on_error: str = "fail"  #: fail: the job fails at its end if a file could not be copied; skip: it is only told

    @classmethod
    def of(cls, config: dict[str, Any]) -> "CvsConfig":
        """Raises ValueError, naming key and value."""
        try:
            check_keys(config, cls, "config")
            settings = msgspec.convert(config, cls)
            for key, url in (("source", settings.source), ("target", settings.target)):
                if not local_path(url):
                    check_url(url, key)
            if settings.source_selectors or settings.target_selectors:
                from tiflow.jobs.spec import parse_where  # with it comes the scheduler, which takes a while

                parse_where(settings.source_selectors, {}, None)
                parse_where(settings.target_selectors, {}, None)
        except (InvalidArgument, msgspec.ValidationError) as error:
            raise ValueError(str(error)) from None
        if settings.existing not in ("compare", "overwrite"):
            raise ValueError(f'existing = "{settings.existing[:40]}": must be compare or overwrite')
        if settings.on_error not in ("fail", "skip"):
            raise ValueError(f'on-error = "{settings.on_error[:40]}": must be fail or skip')
        if not settings.source_selectors and _lies_in(settings.target, settings.source):
            raise ValueError(f'target = "{settings.target[:300]}": lies in the source; name a directory beside it')
        return settings


def _lies_in(target: str, source: str) -> bool:
    """Then the copy would be copied, too."""
    if not (local_path(target) and local_path(source)):
        return False
    inner, outer = (os.path.normpath("/" + local_path(url).lstrip("/")) for url in (target, source))
    return os.path.commonpath((inner, outer)) == outer


def local_path(url: str) -> str:
    """The path of a local file or directory; empty: it is none."""
    path = url.removeprefix("file://")
    return path if path.startswith("/") else ""
