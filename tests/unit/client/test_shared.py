"""A shared store of results, by the URLs that fsspec has without further packages."""

import re
from pathlib import Path

import pytest

from tiflow.errors import InvalidArgument
from tiflow.jobs import shared


@pytest.fixture(params=["file", "memory"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"file://{tmp_path}/store" if request.param == "file" else f"memory://{tmp_path}"


def test_what_was_put_is_got_until_it_is_removed(base: str):
    for index in range(3):
        shared.put(f"{base}/7/g/{index}.1", bytes([index]) * 1_000)

    assert shared.get(f"{base}/7/g/2.1") == b"\2" * 1_000
    shared.remove(f"{base}/7")
    shared.remove(f"{base}/7")
    with pytest.raises(FileNotFoundError):
        shared.get(f"{base}/7/g/2.1")


def test_a_file_is_there_as_a_whole_or_not_at_all(tmp_path: Path):
    shared.put(f"file://{tmp_path}/7/g/0.1", b"value")

    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["0.1"]


def test_a_store_that_does_not_work_is_an_os_error_that_names_it(tmp_path: Path):
    (tmp_path / "file").touch()

    with pytest.raises(OSError, match=r"the result of 5 bytes cannot be kept in file:///.*/file/7/g/0.1"):
        shared.put(f"file://{tmp_path}/file/7/g/0.1", b"value")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("/shared/results", "must be a URL, as file:///shared/results"),
        ("nonsense://x", "Protocol not known: nonsense"),
    ],
)
def test_a_url_that_fsspec_does_not_know_is_refused(url: str, words: str):
    with pytest.raises(InvalidArgument, match=re.escape(words)):
        shared.check_url(url, "results.store")
