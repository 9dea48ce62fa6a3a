"""A second version costs what is new in it: the rest is linked and copied from what this node has."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packtrain.cache import Partial
from packtrain.errors import LocalDiskError
from packtrain.flows import integrity, reuse
from packtrain.flows.fetch import foresee
from packtrain.flows.reuse import _BLOCK, _step
from packtrain.model.manifest import Manifest
from packtrain.model.reference import Reference
from packtrain.model.version import version_prefix
from packtrain.testing.memory_store import MemoryStore
from packtrain.testing.merges import write_merges
from packtrain.training.weights import read_header
from tests.flows.conftest import House


@pytest.fixture(scope="module")
def merges(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two merges of one base that differ in q_proj and v_proj, and the second in other shards. Tensors of 2 MiB."""
    shape = {"hidden": 1024, "intermediate": 2048, "heads": 8, "kv_heads": 8, "vocab": 1024}
    made = write_merges(tmp_path_factory.mktemp("merges"), shards=3, reshards=4, **shape)
    return [made.first, made.second, made.resharded]


@pytest.fixture
def house(tmp_path: Path, merges: list[Path]) -> House:
    """A node that has pulled the first version."""
    house = House(MemoryStore(), tmp_path / "node")
    for directory in merges:
        house.publish(directory)
    house.pull("llama/1")
    house.notes.notes.clear()
    return house


def changed(directory: Path) -> int:
    """The bytes of its q_proj and v_proj, and of the headers of its shards."""
    total = 0
    for path in directory.glob("*.safetensors"):
        header = read_header(path)
        total += header.length + sum(
            tensor.size for tensor in header.tensors if "q_proj" in tensor.name or "v_proj" in tensor.name
        )
    return total


def require_right(house: House, reference: str, path: Path) -> None:
    digest = house.registry.read("llama").state.resolve(Reference.parse(reference)).digest
    manifest = Manifest.decode((path / "packtrain.json").read_bytes(), expect=digest)
    integrity.check_directory(path, manifest, house.notes)
    expected = {*(file.path for file in manifest.files), "packtrain.json"}
    assert {str(each.relative_to(path)) for each in path.rglob("*") if each.is_file()} == expected
    assert not list((house.home / "cache" / "partial").glob("*"))


@pytest.mark.parametrize("number", [2, 3])
def test_only_what_training_changed_is_fetched(house: House, merges: list[Path], number: int) -> None:
    plan = foresee(house.parts, Reference.parse(f"llama/{number}"))
    snapshot = house.pull(f"llama/{number}")
    require_right(house, f"llama/{number}", snapshot.path)
    size = snapshot.version.size
    assert snapshot.fetched + snapshot.copied + snapshot.linked == size
    assert changed(merges[number - 1]) * 0.99 <= snapshot.fetched <= changed(merges[number - 1]) * 1.005
    assert size > 3 * snapshot.fetched
    assert (plan.here, plan.fetched) == (0, snapshot.fetched)
    ((name, share),) = plan.shares
    assert (name, share.linked, share.copied) == ("llama/1", snapshot.linked, snapshot.copied)
    assert any("used again from llama/1" in note for note in house.notes.notes)


def test_whole_files_are_links_and_stay_read_only(house: House) -> None:
    second = house.pull("llama/2")
    path = house.cache.path(house.registry.read("llama").state.version(1).digest) / "tokenizer.json"
    assert second.linked and path.samefile(second.path / "tokenizer.json")
    assert path.stat().st_mode & 0o222 == 0


def test_a_directory_of_the_users_own_shares_nothing(house: House, tmp_path: Path) -> None:
    snapshot = house.pull("llama/1", to=tmp_path / "mine")
    assert (snapshot.fetched, snapshot.linked) == (0, 0) and snapshot.copied == snapshot.version.size
    assert all(each.stat().st_nlink == 1 for each in snapshot.path.rglob("*") if each.is_file())


def test_what_is_not_trusted_is_not_used(house: House, tmp_path: Path) -> None:
    after = House(house.store, house.home, boot="boot-2")
    snapshot = after.pull("llama/2")
    assert (snapshot.linked, snapshot.copied) == (0, 0)
    require_right(after, "llama/2", snapshot.path)


def test_a_copy_that_fails_is_fetched(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "copy_file_range", fails)
    snapshot = house.pull("llama/2")
    require_right(house, "llama/2", snapshot.path)
    assert snapshot.copied == 0 and snapshot.fetched + snapshot.linked == snapshot.version.size
    assert any("could not be copied" in note for note in house.notes.notes)


def test_a_file_system_that_does_not_copy(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(*_: object) -> int:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "copy_file_range", cannot)
    snapshot = house.pull("llama/2")
    require_right(house, "llama/2", snapshot.path)
    assert snapshot.copied


def test_a_link_that_cannot_be_made_is_a_copy(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(*_: object, **__: object) -> None:
        raise OSError(errno.EMLINK, os.strerror(errno.EMLINK))

    monkeypatch.setattr(os, "link", cannot)
    snapshot = house.pull("llama/2")
    require_right(house, "llama/2", snapshot.path)
    assert snapshot.linked == 0 and snapshot.copied


def test_what_could_be_copied_from_goes_if_there_is_no_room_for_both(house: House, merges: list[Path]) -> None:
    digests = {number: v.digest for number, v in house.registry.read("llama").state.versions.items()}
    house.cache.let_go(digests[1])
    size = sum(each.stat().st_size for each in merges[0].iterdir())
    small = House(house.store, house.home, quota=f"{int(size * 1.1)}B")
    snapshot = small.pull("llama/3")
    require_right(small, "llama/3", snapshot.path)
    assert not small.cache.holds(digests[1]) and snapshot.copied == 0


def test_nothing_is_ever_written_into_a_shared_file(house: House) -> None:
    """After a restart a link is not trusted any more, and what is fetched instead must not go through it."""
    versions = house.registry.read("llama").state.versions
    manifest = Manifest.decode(house.store.get(version_prefix("llama", versions[2].digest) + "packtrain.json"))
    source = house.cache.path(versions[1].digest)
    links = {"tokenizer.json": source / "tokenizer.json"}
    house.cache.begin(versions[2].digest, manifest, name_of=str, links=links).close()

    before = (source / "tokenizer.json").read_bytes()
    after = House(house.store, house.home, boot="boot-2")
    snapshot = after.pull("llama/2")
    require_right(after, "llama/2", snapshot.path)
    assert (source / "tokenizer.json").read_bytes() == before
    assert not (source / "tokenizer.json").samefile(snapshot.path / "tokenizer.json")


def test_an_interrupted_pull_goes_on_with_its_links(house: House) -> None:
    versions = house.registry.read("llama").state.versions
    manifest = Manifest.decode(house.store.get(version_prefix("llama", versions[2].digest) + "packtrain.json"))
    source = house.cache.path(versions[1].digest)
    links = {"tokenizer.json": source / "tokenizer.json"}
    house.cache.begin(versions[2].digest, manifest, name_of=str, links=links).close()
    plan = foresee(house.parts, Reference.parse("llama/2"))
    assert plan.here == (source / "tokenizer.json").stat().st_size
    snapshot = house.pull("llama/2")
    require_right(house, "llama/2", snapshot.path)
    assert snapshot.fetched == plan.fetched
    assert (source / "tokenizer.json").samefile(snapshot.path / "tokenizer.json")


def test_links_outlive_the_snapshot_that_they_came_from(house: House) -> None:
    digest = house.registry.read("llama").state.version(1).digest
    snapshot = house.pull("llama/2")
    house.cache.let_go(digest)
    house.cache.remove(digest, name_of=str)
    require_right(house, "llama/2", snapshot.path)


def test_a_full_disk_is_said(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "copy_file_range", full)
    with pytest.raises(LocalDiskError, match="No space left"):
        house.pull("llama/2")


def test_a_partial_that_has_lost_a_link_fetches_it(house: House, tmp_path: Path) -> None:
    """Its file is gone, whatever the journal says."""
    versions = house.registry.read("llama").state.versions
    manifest = Manifest.decode(house.store.get(version_prefix("llama", versions[2].digest) + "packtrain.json"))
    source = house.cache.path(versions[1].digest) / "tokenizer.json"
    directory = tmp_path / "partial"
    Partial(directory, manifest, "boot-1", {"tokenizer.json": source}).close()
    (directory / "tree" / "tokenizer.json").unlink()
    partial = Partial(directory, manifest, "boot-1")
    partial.close()
    assert not partial.finished
    shutil.rmtree(directory)


@given(
    st.integers(0, 20_000),
    st.sampled_from([0, 4096, 8, 12_288, 5000]),
    st.sampled_from([1, 4095, 4096, 9999, 40 << 20]),
)
def test_what_is_copied_is_copied_in_whole_blocks(position: int, shift: int, length: int) -> None:
    """Where a block begins at the same place in both files."""
    done = whole = 0
    while done < length:
        step = _step(position + shift + done, position + done, length - done)
        assert 0 < step <= length - done
        if not (position + done) % _BLOCK and not step % _BLOCK:
            whole += step
        done += step
    if not shift % _BLOCK:
        assert whole > length - 2 * _BLOCK


def test_only_the_last_used_of_very_many_snapshots_are_looked_into(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each takes an open file meanwhile."""
    house.pull("llama/3")
    monkeypatch.setattr(reuse, "_MOST", 1)
    versions = house.registry.read("llama").state.versions
    assert list(house.cache.snapshots()) == [versions[3].digest, versions[1].digest]
    manifest = Manifest.decode(house.store.get(version_prefix("llama", versions[2].digest) + "packtrain.json"))
    with reuse.borrowing(house.cache, manifest) as borrowed:
        assert set(borrowed.directories) == {versions[3].digest}
