"""The job type cvs: the copy equals the source, whatever is in it and whatever dies."""

import itertools
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFile
from hypothesis import given, settings
from hypothesis import strategies as st

from tiflow import testing
from tiflow.jobs.cvs import Cvs, copying, tree
from tiflow.jobs.cvs import job as job_module
from tiflow.jobs.cvs.ends import FsspecSource, LocalSource, LocalTarget
from tiflow.jobs.cvs.tree import Entry, Unlisted, local_lister, shards, walk
from tiflow.jobs.framework.port import MESSAGE_BYTES_MAX

Tree = dict[bytes, Any]  #: name → contents, a Tree, or ("link", where)


def plant(root: bytes, what: Tree) -> None:
    os.makedirs(root, exist_ok=True)
    for name, content in what.items():
        path = os.path.join(root, name)
        if isinstance(content, dict):
            plant(path, content)
        elif isinstance(content, tuple):
            os.symlink(content[1], path)
        else:
            with open(path, "wb") as file:
                file.write(content)
            os.chmod(path, 0o640 if len(content) % 2 else 0o755)
            os.utime(path, ns=(10**18, 10**18 + len(content)))


def seen(root: bytes) -> dict[bytes, tuple[object, ...]]:
    """Everything below, with what is to be kept of it."""
    found: dict[bytes, tuple[object, ...]] = {}
    for directory, names, files in os.walk(root):
        for name in (*names, *files):
            path = os.path.join(directory, name)
            status = os.lstat(path)
            if os.path.islink(path):
                content: object = os.readlink(path)
                found[os.path.relpath(path, root)] = ("link", content)
            elif os.path.isdir(path):
                found[os.path.relpath(path, root)] = ("directory", status.st_mode, status.st_mtime_ns)
            else:
                content = Path(os.fsdecode(path)).read_bytes()
                found[os.path.relpath(path, root)] = (content, status.st_mode, status.st_mtime_ns)
    return found


NAMES = (
    st.binary(min_size=1, max_size=12)
    .filter(lambda name: b"/" not in name and b"\0" not in name)
    .filter(lambda name: name not in (b".", b".."))
)
LEAVES = st.binary(max_size=300) | st.tuples(st.just("link"), NAMES)
TREES = st.recursive(
    st.dictionaries(NAMES, LEAVES, max_size=4), lambda inner: st.dictionaries(NAMES, LEAVES | inner, max_size=4)
)


def copy(source: Path | str, target: Path | str, **config: Any) -> dict[str, Any]:
    async def scenario() -> Any:
        settings = {"source": str(source), "target": str(target), **config}
        async with testing.Job(Cvs, settings) as job:
            return await job.result()

    result: dict[str, Any] = testing.run(scenario())
    return result


@settings(max_examples=60, deadline=None)
@given(what=TREES)
def test_a_copy_equals_its_source(what: Tree, tmp_path_factory: pytest.TempPathFactory):
    top = tmp_path_factory.mktemp("cvs")
    plant(os.fsencode(top / "source"), what)

    copy(top / "source", top / "target")

    assert seen(os.fsencode(top / "target")) == seen(os.fsencode(top / "source"))


@settings(max_examples=60, deadline=None)
@given(what=TREES, data=st.data())
def test_a_walk_goes_on_after_any_path_as_if_it_had_never_stopped(
    what: Tree, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
):
    root = os.fsencode(tmp_path_factory.mktemp("walk"))
    plant(root, what)
    paths = [entry.path for entry in walk(local_lister(root))]
    assert len(paths) == len(set(paths)) == len(seen(root))
    assert [path.split(b"/") for path in paths] == sorted(path.split(b"/") for path in paths)
    if not paths:
        return

    stop = data.draw(st.integers(0, len(paths) - 1))

    assert [entry.path for entry in walk(local_lister(root), paths[stop])] == paths[stop + 1 :]


@given(sizes=st.lists(st.sampled_from([0, 10, 40, 64, 65, 200]), max_size=30), resume=st.integers(0, 3))
def test_shards_cover_each_byte_once(sizes: list[int], resume: int):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tree, "SHARD_BYTES", 64)
        patch.setattr(tree, "FILES_MAX", 5)
        entries = [Entry(b"f%d" % number, "f", size, 1) for number, size in enumerate(sizes)]
        begun = 64 * resume
        first = (entries[0], begun) if entries and entries[0].size > max(64, begun) else None

        found = list(shards(entries, 7, in_ranges=True, resume=first))

    assert [shard.number for shard in found] == list(range(7, 7 + len(found)))
    covered: dict[bytes, list[tuple[int, int]]] = {entry.path: [] for entry in entries}
    for shard in found:
        if shard.length >= 0:
            covered[shard.entries[0].path].append((shard.offset, shard.offset + shard.length))
        elif not shard.is_part:
            assert len(shard.entries) <= 5
            assert sum(entry.size for entry in shard.entries) <= 64 or len(shard.entries) == 1
            for entry in shard.entries:
                covered[entry.path].append((0, entry.size))
    finished = {shard.entries[0].path for shard in found if shard.finish}
    begun_here = {shard.entries[0].path for shard in found if shard.begin}
    assert begun_here == finished - ({entries[0].path} if first is not None and begun else set())
    for number, entry in enumerate(entries):
        parts = covered[entry.path]
        begins = begun if first is not None and number == 0 else 0
        assert parts[0][0] == begins
        assert all(one[1] == other[0] for one, other in itertools.pairwise(parts))
        assert parts[-1][1] == entry.size
        assert (entry.path in finished) == (entry.size > 64)


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A source of 300 small files and one of 20 shards."""
    monkeypatch.setattr(tree, "SHARD_BYTES", 10_000)
    monkeypatch.setattr(job_module, "SAVE_S", 0.001)  # copying takes no time on this clock
    source = tmp_path / "source"
    for number in range(300):
        path = source / f"d{number % 7}" / f"f{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"%d" % number * 50)
    (source / "zz").write_bytes(os.urandom(195_001))
    return source


@pytest.mark.parametrize("victims", [["writer/0"], ["writer/1", "writer/0"], [""], ["", "writer/1", ""]])
def test_what_dies_is_replaced_and_nothing_is_left_out_or_wrong(large: Path, tmp_path: Path, victims: list[str]):
    async def scenario() -> dict[str, Any]:
        config = {"source": str(large), "target": str(tmp_path / "target")}
        async with testing.Job(Cvs, config) as job:
            for number, victim in enumerate(victims):
                copied = 30_000 * (number + 1)
                await job.until(lambda least=copied: job.status.get("bytes", 0) >= least)  # type: ignore[misc]
                job.kill(victim)
            return await job.result()  # type: ignore[no-any-return]

    result = testing.run(scenario())

    assert seen(os.fsencode(tmp_path / "target")) == seen(os.fsencode(large))
    assert result["failed"] == 0
    assert result["files"] + result["same"] == 301


def test_a_new_job_master_goes_on_where_the_file_was(large: Path, tmp_path: Path):
    async def scenario() -> tuple[dict[str, Any], int]:
        config = {"source": str(large), "target": str(tmp_path / "target"), "worker-count": 1}
        async with testing.Job(Cvs, config) as job:
            await job.until(lambda: (job.checkpoints.get("progress") or {}).get("offset", 0) > 50_000)
            done = job.checkpoints["progress"]
            job.kill()
            result = await job.result()
            assert result["bytes"] <= done["bytes"] + 195_001 - done["offset"] + 4 * 10_000
            return result, done["offset"]

    testing.run(scenario())

    assert seen(os.fsencode(tmp_path / "target")) == seen(os.fsencode(large))


def test_what_an_earlier_attempt_had_written_and_is_gone_is_copied_anew(large: Path, tmp_path: Path):
    target = tmp_path / "target"

    async def scenario() -> None:
        config = {"source": str(large), "target": str(target), "worker-count": 1}
        async with testing.Job(Cvs, config) as job:
            await job.until(lambda: (job.checkpoints.get("progress") or {}).get("offset", 0) > 50_000)
            job.kill()
            for draft in target.glob(".tiflow-*"):
                draft.unlink()
            await job.result()
            assert job.attempt >= 3

    testing.run(scenario())

    assert seen(os.fsencode(target)) == seen(os.fsencode(large))


def test_from_executor_to_executor_by_way_of_a_reader(large: Path, tmp_path: Path):
    async def scenario() -> dict[str, Any]:
        config = {"source": str(large), "target": str(tmp_path / "target"), "source-selectors": ["zone=a"]}
        async with testing.Job(Cvs, config, faults=0.05) as job:
            await job.until(lambda: job.status.get("bytes", 0) >= 30_000)
            job.kill("reader")
            await job.until(lambda: job.status.get("bytes", 0) >= 90_000)
            job.kill("writer/0")
            return await job.result()  # type: ignore[no-any-return]

    result = testing.run(scenario())

    assert seen(os.fsencode(tmp_path / "target")) == seen(os.fsencode(large))
    assert result["failed"] == 0


def test_a_second_copy_copies_what_has_changed(large: Path, tmp_path: Path):
    target = tmp_path / "target"
    first = copy(large, target)
    assert (first["files"], first["same"]) == (301, 0)
    (large / "d1" / "f1").write_bytes(b"news")
    (large / "new").write_bytes(b"new")

    second = copy(large, target)

    assert (second["files"], second["same"]) == (2, 300)
    assert seen(os.fsencode(target)) == seen(os.fsencode(large))
    assert copy(large, target, existing="overwrite")["files"] == 302


def test_to_and_from_what_fsspec_opens(large: Path, tmp_path: Path):
    copy(large, "memory://cvs/copied")
    back = copy("memory://cvs/copied", tmp_path / "back")

    assert back["files"] == 301
    contents = {path: one[0] for path, one in seen(os.fsencode(tmp_path / "back")).items() if one[0] != "directory"}
    assert contents == {path: one[0] for path, one in seen(os.fsencode(large)).items() if one[0] != "directory"}


def test_what_cannot_be_read_is_named_and_the_rest_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source, target = tmp_path / "source", tmp_path / "target"
    plant(os.fsencode(source), {b"good": b"1", b"locked": b"2", b"more": b"3"})
    read = LocalSource.read

    def refuse(self: LocalSource, entry: Entry, *range: int) -> Any:
        if entry.path == b"locked":
            raise PermissionError(13, "Permission denied")
        return read(self, entry, *range)

    monkeypatch.setattr(LocalSource, "read", refuse)  # root may read everything

    result = copy(source, target, **{"on-error": "skip"})

    assert (result["files"], result["failed"]) == (2, 1)
    assert result["errors"] == [["locked", "Permission denied"]]
    assert sorted(path.name for path in target.iterdir()) == ["good", "more"]
    with pytest.raises(AssertionError, match="1 could not be copied: locked: Permission denied"):
        copy(source, target)


def test_a_file_that_changes_while_it_is_copied_is_copied_as_it_is_then(tmp_path: Path):
    source, target = LocalSource(str(tmp_path)), LocalTarget(str(tmp_path / "to"), "job")
    (tmp_path / "f").write_bytes(b"before")
    (entry,) = (one for one in walk(source.lister) if one.path == b"f")
    assert isinstance(entry, Entry)
    (tmp_path / "f").write_bytes(b"after that")

    done = copying.copy_shard(tree.Shard(0, (entry,)), source, target, compare=True, verify=True)

    assert (done.files, done.failed) == (1, 0)
    assert (tmp_path / "to" / "f").read_bytes() == b"after that"


@pytest.mark.parametrize("when", ["before", "meanwhile", "always"])
def test_a_file_that_changes_at_an_fsspec_source_though_its_size_does_not(when: str, tmp_path: Path):
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/changes/f", b"old")
    source, target = FsspecSource(fs, "/changes"), LocalTarget(str(tmp_path), "job")
    (entry,) = (one for one in walk(source.lister) if isinstance(one, Entry))
    open_, opened, later = fs.open, itertools.count(), itertools.count(1)

    def change() -> None:
        fs.store["/changes/f"] = MemoryFile(fs, "/changes/f", b"new")
        fs.store["/changes/f"].created += timedelta(seconds=2 * next(later))

    def open_and_change(*args: Any) -> Any:
        file = open_(*args)
        if (when, next(opened)) == ("meanwhile", 0) or when == "always":
            change()
        return file

    fs.open = open_and_change
    if when == "before":
        change()
    try:
        done = copying.copy_shard(tree.Shard(0, (entry,)), source, target, compare=True, verify=True)
    finally:
        del fs.open
        fs.rm("/changes", recursive=True)

    if when == "always":
        assert (done.files, done.errors) == (0, [("f", "f changed while it was copied")])
    else:
        assert (done.files, done.errors) == (1, [])
        assert (tmp_path / "f").read_bytes() == b"new"


def test_a_backend_that_tells_times_in_lists_alone_is_read_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/timeless/f", b"it")
    source, target = FsspecSource(fs, "/timeless"), LocalTarget(str(tmp_path), "job")
    (entry,) = (one for one in walk(source.lister) if isinstance(one, Entry))
    monkeypatch.setattr(fs, "info", lambda path: {"name": path, "type": "file", "size": 2}, raising=False)

    done = copying.copy_shard(tree.Shard(0, (entry,)), source, target, compare=True, verify=True)

    assert (done.files, done.errors) == (1, [])
    assert (tmp_path / "f").stat().st_mtime_ns == entry.mtime_ns > 0


def test_what_reads_back_as_something_else_is_no_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source, target = LocalSource(str(tmp_path)), LocalTarget(str(tmp_path / "to"), "job")
    (tmp_path / "f").write_bytes(b"contents")
    entry = next(one for one in walk(source.lister) if one.path == b"f")
    assert isinstance(entry, Entry)
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: write(fd, b"X" * len(data), at))

    done = copying.copy_shard(tree.Shard(0, (entry,)), source, target, compare=True, verify=True)

    assert done.failed == 1
    assert "reads back as something else" in done.errors[0][1]
    assert os.listdir(tmp_path / "to") == []


@pytest.mark.parametrize("path", [b"../out", b"/etc/passwd", b"a/../../b", b""])
def test_no_path_leads_out_of_the_tree(path: bytes, tmp_path: Path):
    source, target = LocalSource(str(tmp_path)), LocalTarget(str(tmp_path / "to"), "job")

    done = copying.copy_shard(tree.Shard(0, (Entry(path, "f"),)), source, target, compare=False, verify=False)

    assert "leads out of the tree" in done.errors[0][1]


def test_a_source_that_is_not_there_and_a_directory_that_cannot_be_listed(tmp_path: Path):
    with pytest.raises(AssertionError, match="does not exist"):
        copy(tmp_path / "nothing", tmp_path / "target")

    def ls(directory: bytes) -> list[Entry | Unlisted]:
        if directory == b"locked":
            raise PermissionError(13, "Permission denied")
        return [] if directory else [Entry(b"locked", "d"), Entry(b"open", "d")]

    assert list(walk(ls)) == [
        Entry(b"locked", "d"),
        Unlisted(b"locked", "cannot be listed: Permission denied"),
        Entry(b"open", "d"),
    ]


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"target": "/t"}, "source"),
        ({"source": "relative", "target": "/t"}, "source"),
        ({"source": "/s", "target": "/t", "worker-count": 0}, "worker-count"),
        ({"source": "/s", "target": "/t", "wrong": 1}, "wrong"),
        ({"source": "/s", "target": "/t", "existing": "maybe"}, 'existing = "maybe"'),
        ({"source": "/s", "target": "/t", "on-error": "cry"}, 'on-error = "cry"'),
        ({"source": "/s", "target": "/t", "source-selectors": ["="]}, "selectors"),
        ({"source": "/s/", "target": "file:///s/x/../to"}, 'target = "file:///s/x/../to": lies in the source'),
        ({"source": "/", "target": "/t"}, "lies in the source"),
        ({"source": "/s", "target": "/s"}, "lies in the source"),
    ],
)
def test_a_config_that_cannot_work_is_refused_by_name(config: dict[str, Any], text: str):
    with pytest.raises(ValueError, match=text):
        Cvs.check(config)


def test_the_target_may_have_the_path_of_a_source_that_is_elsewhere():
    Cvs.check({"source": "/s", "target": "/s", "source-selectors": ["zone=eu"]})
    Cvs.check({"source": "/s", "target": "/s-2"})


def test_deep_trees_take_no_recursion():
    def ls(directory: bytes) -> list[Entry]:
        depth = directory.count(b"/") + 1 if directory else 0
        return [Entry(directory + b"/d" if directory else b"d", "d")] if depth < 5_000 else []

    assert len(list(walk(ls))) == 5_000


def test_a_shard_is_one_message():
    assert tree.ENTRIES_BYTES_MAX + 40 * tree.FILES_MAX + 4_096 * 2 < MESSAGE_BYTES_MAX
