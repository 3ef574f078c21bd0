"""Where the result of a task goes: small ones travel with the report, larger ones are kept here or in a shared store.

Workers and members import this.
"""

import hashlib
import os

from msgspec import Struct, ValidationError, msgpack

from tiflow.exec import store
from tiflow.exec.outbox import Result
from tiflow.jobs import shared
from tiflow.sched.model import RESULT_INLINE_BYTES_MAX

_encode = msgpack.Encoder().encode


class CannotKeep(Exception):
    """The value is not one that a retry would make better."""


class Keeper(Struct, frozen=True):
    data_dir: str
    result_bytes_max: int
    results_url: str = ""  #: of the shared store; empty: large results stay below data_dir

    def keep(self, job_uid: int, group: str, index: int, attempt: int, value: object) -> Result:
        """Returns: the value, encoded; or size in bytes, sha256, and the URL if it is in a shared store.

        Raises:
            CannotKeep: it cannot be encoded, or is too large.
            OSError: there is no room for it here; another executor may have some.
        """
        try:
            data = _encode(value)
        except (TypeError, ValueError, OverflowError, ValidationError) as error:
            raise CannotKeep(
                f"result of type {type(value).__name__} cannot be encoded: return numbers, strings, bytes, lists,"
                f" dicts or dataclasses ({error})"
            ) from None
        return self.keep_encoded(job_uid, group, index, attempt, data)

    def keep_encoded(self, job_uid: int, group: str, index: int, attempt: int, data: bytes) -> Result:
        """As `keep`, of what is encoded already."""
        if len(data) <= RESULT_INLINE_BYTES_MAX:
            return data
        if len(data) > self.result_bytes_max:
            raise CannotKeep(f"result of {len(data)} bytes exceeds result-bytes-max ({self.result_bytes_max})")
        digest = hashlib.sha256(data).hexdigest()
        path = store.result_path(self.data_dir, job_uid, group, index, attempt)
        if self.results_url:
            url = store.shared_url(self.results_url, job_uid, group, index, attempt)
            store.mark_shared(self.data_dir, job_uid)
            shared.put(url, data)
            return len(data), digest, url
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(f"{path}.tmp", "wb") as file:
                file.write(data)
            os.rename(f"{path}.tmp", path)
        except OSError as error:
            raise OSError(
                f"the executor cannot keep this result of {len(data)} bytes in {self.data_dir}: {error.strerror}"
            ) from error
        return len(data), digest
