"""Where an executor keeps what it has, below its data directory.

    results/<job uid>/<group>/<index>.<attempt>
    results/<job uid>/shared                             it has results in the shared store; removed with them
    logs/<job uid>/<group>/<index>.<attempt>.out, .err   see `logs`
    logs/worker-<slot>.log                               what is written past Python's sys.stdout by python tasks
    work/…                                               the working directories of what runs
    journal                                              see `journal`

Standard library only: workers import this.
"""

import os
import shutil
from collections.abc import Collection

from tiflow.exec import logs


def result_path(data_dir: str, job_uid: int, group: str, index: int, attempt: int) -> str:
    return f"{data_dir}/results/{job_uid}/{group}/{index}.{attempt}"


def job_uids(data_dir: str) -> list[int]:
    """The jobs that there are results or logs of."""
    return sorted({uid for kind in ("results", "logs") for uid in logs.job_uids(f"{data_dir}/{kind}")})


def shared_url(base: str, job_uid: int, group: str, index: int, attempt: int) -> str:
    """Where a result lies in a shared store."""
    return f"{base.rstrip('/')}/{job_uid}/{group}/{index}.{attempt}"


def mark_shared(data_dir: str, job_uid: int) -> None:
    """Remember that the shared store has results of that job, so that they are removed with it."""
    mark = f"{data_dir}/results/{job_uid}/shared"
    if not os.path.exists(mark):
        os.makedirs(os.path.dirname(mark), exist_ok=True)
        open(mark, "wb").close()


def has_shared(data_dir: str, job_uid: int) -> bool:
    """Whether results of that job were left in the shared store from here."""
    return os.path.exists(f"{data_dir}/results/{job_uid}/shared")


def remove_job(data_dir: str, job_uid: int, groups: Collection[str] = ()) -> None:
    """Remove the results and logs of a job, or of some of its groups."""
    for kind in ("results", "logs"):
        job = f"{data_dir}/{kind}/{job_uid}"
        for path in [f"{job}/{group}" for group in groups] or [job]:
            shutil.rmtree(path, ignore_errors=True)
