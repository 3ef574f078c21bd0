"""A shared store of results, by fsspec URL: a directory that all see (file:///…), or an object store (s3://…).

fsspec is imported by the first use. What it raises becomes an OSError: a task that cannot leave its result is tried
again.
"""

from contextlib import suppress
from typing import Any

from tiflow.errors import InvalidArgument


def check_url(url: str, key: str) -> None:
    """Raise InvalidArgument unless fsspec knows what to do with such a URL."""
    from fsspec.core import url_to_fs

    if "://" not in url:
        raise InvalidArgument(f"{key} = {url!r}: must be a URL, as file:///shared/results or s3://bucket/results")
    try:
        url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise InvalidArgument(f"{key} = {url!r}: {error}") from None


def put(url: str, data: bytes) -> None:
    """Write an object whole, or not at all."""
    files, path = _open(url)
    try:
        if "file" in files.protocol:
            files.makedirs(path.rpartition("/")[0], exist_ok=True)
            files.pipe_file(f"{path}.tmp", data)
            files.mv(f"{path}.tmp", path)
        else:
            files.pipe_file(path, data)  # an object store shows no half objects
    except Exception as error:  # fsspec's backends raise their own
        raise OSError(f"the result of {len(data)} bytes cannot be kept in {url}: {error}") from error


def get(url: str) -> bytes:
    """Raises FileNotFoundError if there is no such object, OSError if the store does not answer."""
    files, path = _open(url)
    try:
        data: bytes = files.cat_file(path)
    except OSError:
        raise
    except Exception as error:  # as above
        raise OSError(f"{url} cannot be read: {error}") from error
    return data


def remove(url: str) -> None:
    """An object, or all below a directory. What is not there is no error."""
    files, path = _open(url)
    with suppress(FileNotFoundError):
        files.rm(path, recursive=True)


def _open(url: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    try:
        files, path = url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise OSError(f"{url}: {error}") from error
    return files, str(path)
