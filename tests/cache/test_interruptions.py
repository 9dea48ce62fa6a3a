"""Killed, or refused by the disk, at every call into the file system: what is visible is whole, nothing leaks.

A kill is a real one here, in a forked process; the state machine has them, too, at random moments.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from packtrain.errors import IntegrityError, LocalDiskError
from packtrain.model.manifest import FILE_NAME, Manifest
from packtrain.testing.file_calls import failing, killed_at
from tests.cache.conftest import SIZE, Node, files
from tests.flows.conftest import contents

Make = Callable[..., Node]
ROOM_FOR_TWO = f"{2 * SIZE + 2500}B"  # a manifest takes about 1 kB


def prepare(node: Node) -> None:
    """llama/1 and llama/2, either of which may go."""
    for reference in ("llama/1", "llama/2"):
        node.pull(reference)
        node.unpin(reference)


def damage(node: Node) -> None:
    prepare(node)
    weights = next((node.home / "cache" / "snapshots").glob("*/model.safetensors"))
    weights.chmod(0o644)
    weights.write_bytes(b"x" * weights.stat().st_size)


def refused(act: Callable[[], object]) -> None:
    with pytest.raises(IntegrityError):
        act()


ACTS: dict[str, tuple[Callable[[Node], None], Callable[[Node], object]]] = {
    "a pull that evicts": (prepare, lambda node: node.pull("llama/3")),
    "rm": (prepare, lambda node: node.remove("llama/1")),
    "verify of what is damaged": (damage, lambda node: refused(node.verify)),
    "pin": (prepare, lambda node: node.pin("llama/1")),
    "unpin": (prepare, lambda node: node.unpin("llama/1")),
    "ls": (prepare, lambda node: node.listed()),
    "an engine's start": (prepare, lambda node: node.hold("llama/1").release()),
}


def require_whole(node: Node) -> None:
    """Whatever is visible and trusted is what was published."""
    for number, version in node.registry.read("llama").state.versions.items():
        if node.cache.holds(version.digest) and node.cache.trusts(version.digest):
            found = contents(node.cache.path(version.digest))
            found.pop(FILE_NAME)
            if b"xxx" not in found["model.safetensors"]:
                assert found == files(number, SIZE)


@pytest.mark.slow
@pytest.mark.parametrize("what", ACTS)
def test_killed_at_every_call(make_node: Make, what: str) -> None:
    before, act = ACTS[what]
    k, going = 0, True
    while going:
        node = make_node(f"node-{k}", quota=ROOM_FOR_TWO)
        before(node)
        going = killed_at(lambda node=node: act(node), k)  # type: ignore[misc]
        again = make_node(f"node-{k}", quota=ROOM_FOR_TWO)
        require_whole(again)
        again.pull("llama/3")
        require_whole(again)
        assert again.leftovers() == []
        assert len(again.listed()) <= 2
        k += 1
    assert k > 5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "first", "step"),
    [(errno.EIO, 0, 1), (errno.ENOSPC, 0, 3), (errno.EACCES, 1, 3), (errno.EROFS, 2, 3)],
    ids=lambda value: str(value),
)
@pytest.mark.parametrize("what", ACTS)
def test_the_disk_refuses_at_every_call(make_node: Make, what: str, number: int, first: int, step: int) -> None:
    """The first error at each of them, the others by turns."""
    before, act = ACTS[what]
    k, going = first, True
    while going:
        node = make_node(f"node-{k}", quota=ROOM_FOR_TWO)
        before(node)
        errors: list[LocalDiskError] = []
        with failing(k, OSError(number, os.strerror(number))) as calls:
            try:
                act(node)
            except LocalDiskError as error:
                errors.append(error)
        for error in errors:
            assert os.strerror(number) in error.message
            assert error.hint
        going = calls.count > k
        again = make_node(f"node-{k}", quota=ROOM_FOR_TWO)
        require_whole(again)
        again.pull("llama/3")
        require_whole(again)
        assert again.leftovers() == []
        k += step
    assert k > 5


def test_a_removal_that_was_cut_short_leaves_no_false_journal(make_node: Make, tmp_path: Path) -> None:
    """The journal is there, its files are not: what it says of them is not believed, now or at the next attempt."""
    node = make_node()
    digest = node.registry.read("llama").state.latest.digest
    manifest_key = f"models/llama/{digest.hex}/{FILE_NAME}"
    manifest = Manifest.decode(node.store.get(manifest_key))
    partial = node.cache.begin(digest, manifest, name_of=str)
    for index in range(sum(len(file.chunks) for file in manifest.files)):
        partial.finish(index)
    partial.close()
    (partial.tree / "model.safetensors").unlink()
    node.cache.begin(digest, manifest, name_of=str).close()  # gives the file its size again
    (partial.tree / "config.json").write_bytes(files(4, SIZE)["config.json"])
    (partial.tree / "tokenizer" / "vocab.json").write_bytes(files(4, SIZE)["tokenizer/vocab.json"])
    assert contents(node.pull("llama").path)["model.safetensors"] == files(4, SIZE)["model.safetensors"]
