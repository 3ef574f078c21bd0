"""Looks after the executor's disk: prunes logs, and says when there is no room for new tasks."""

import asyncio
import os
import time
from collections.abc import Callable, Collection

import structlog

from tiflow.config import RetentionConfig
from tiflow.exec import logs

LOOK_S = 0.5
PRUNE_S = 60.0
RECOVERED = 1.25  #: so much more than the reserve must be free before tasks are taken again

log = structlog.get_logger()


def disk_trouble(data_dir: str, reserve_bytes: int, *, ill: bool) -> str:
    """Why nothing more should be written; empty: nothing is wrong. `ill`: whether something was."""
    try:
        disk = os.statvfs(data_dir)
    except OSError as error:
        return f"disk: {error.strerror}"
    free = disk.f_bavail * disk.f_frsize
    if free < reserve_bytes * (RECOVERED if ill else 1):
        return "disk full"
    if disk.f_files and disk.f_favail < (2_000 if ill else 1_000):
        return "disk full: no more files"
    return ""


class DiskKeeper:
    """`on_change` hears of a change of the trouble; `running` tells the jobs whose logs are being written."""

    def __init__(
        self,
        data_dir: str,
        retention: RetentionConfig,
        *,
        running: Callable[[], Collection[int]],
        on_change: Callable[[str], None],
    ) -> None:
        self._data_dir = data_dir
        self._retention = retention
        self._running = running
        self._on_change = on_change
        self._trouble = ""

    async def run(self) -> None:
        """Until cancelled."""
        prune_at_s = 0.0
        while True:
            if time.monotonic() >= prune_at_s:
                prune_at_s = time.monotonic() + PRUNE_S
                await self._prune()
            self.look()
            await asyncio.sleep(LOOK_S)

    def look(self) -> None:
        trouble = disk_trouble(self._data_dir, self._retention.disk_reserve_bytes, ill=bool(self._trouble))
        if trouble != self._trouble:
            self._trouble = trouble
            if trouble:
                log.error("executor_unhealthy", reason=trouble, remedy=f"make room on the disk of {self._data_dir}")
            else:
                log.info("executor_healthy")
            self._on_change(trouble)

    async def _prune(self) -> None:
        older_than_s, most = time.time() - self._retention.logs_age_s, self._retention.logs_bytes_max
        removed = await asyncio.to_thread(logs.prune, self._data_dir, older_than_s, most, set(self._running()))
        if removed:
            log.info("logs_pruned", jobs=len(removed))
