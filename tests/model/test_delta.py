"""What a node that has one version gets for another: every byte is told once, whatever the versions hold."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packtrain.model.delta import Delta, Stored, between, stacks
from packtrain.model.digest import Digest
from packtrain.model.manifest import Chunks, FileEntry, Manifest
from packtrain.model.pacing import LONGEST
from packtrain.model.sourcing import AtHand, Place, Plan, Ways, find_at_hand
from packtrain.model.tensors import SAME, Tally
from packtrain.model.version import ModelVersion
from tests.model.examples import hex_of
from tests.model.test_tensors import MIB, OLD, Content, contents, made

SNAPSHOT = Digest(hex_of("snapshot"))


def version(name: str, *shards: Content, chunk: int | None = None) -> Stored:
    manifest, headers = made(*shards, chunk=chunk)
    digest, made_at = manifest.digest, "2026-01-02T03:04:05.678Z"
    return Stored(
        ModelVersion(name, 1, digest, manifest.payload, "merged", manifest.size, made_at, "ada"), manifest, headers
    )


def require_sums(delta: Delta) -> None:
    whole = delta.plan.ways
    assert sum((file.ways for file in delta.files), Ways()) == whole
    assert delta.total.ways + delta.headers == whole  # there is nothing but safetensors files here
    assert sum((each for stack in stacks(delta.tensors) for row in stack.kinds.values() for each in row.values()),
               Tally()) == delta.total  # fmt: skip
    assert whole.size + delta.plan.here == delta.after.size
    assert sum(run.length for run in delta.plan.runs) == whole.fetched
    assert sum(share.linked for share in delta.plan.shares) == whole.linked
    assert sum(share.copied for share in delta.plan.shares) == whole.copied


@given(contents, contents, st.booleans(), st.sampled_from([None, 700_000]), st.sampled_from([None, 900_000]))
def test_every_byte_is_told_once(
    before: Content, after: Content, split: bool, cut_before: int | None, cut_after: int | None
) -> None:
    shards = [dict(list(after.items())[i::2]) for i in range(2)] if split and len(after) > 1 else [after]
    delta = between(version("a", before, chunk=cut_before), version("b", *shards, chunk=cut_after))
    require_sums(delta)
    if not delta.same:
        assert delta.manifest == Ways(fetched=len(delta.plan.manifest.encode()))


@given(contents, contents)
def test_what_is_the_same_and_alone_in_its_chunks_is_not_fetched(before: Content, after: Content) -> None:
    for change in between(version("a", before), version("b", after)).tensors:
        if change.state == SAME and change.size >= MIB:
            assert not change.ways.fetched


def test_one_large_tensor_changed() -> None:
    new: Content = {**OLD, "q": ("q2", 9 * MIB)}
    delta = between(version("a", OLD), version("b", new))
    assert delta.total.ways.fetched == 9 * MIB
    assert (delta.plan.chunks, delta.plan.requests) == (3, 1)
    assert {change.name for change in delta.tensors if change.ways.fetched} == {"q"}
    assert delta.headers.fetched == 0, "the header is the same, in a file that is not"


def test_a_version_and_itself_under_another_name() -> None:
    stored = version("a", OLD)
    delta = between(stored, replace(stored, version=replace(stored.version, name="b")))
    assert delta.same and (delta.ways, delta.manifest) == (Ways(), Ways())
    assert (delta.plan.here, delta.plan.shares, delta.plan.requests) == (stored.version.size, [], 0)


def manifest_of(*lengths: int) -> Manifest:
    chunks = Chunks(lengths, [f"{number:064x}" for number in range(len(lengths))])
    return Manifest.of("merged", [FileEntry("model", sum(lengths), hex_of("model"), chunks)])


def test_a_long_run_takes_several_requests() -> None:
    chunks = LONGEST // (4 * MIB)
    assert Plan.of(manifest_of(*[4 * MIB] * (2 * chunks + 1)), AtHand()).requests == 3
    assert Plan.of(manifest_of(3 * LONGEST), AtHand()).requests == 1, "a chunk is not split"


@pytest.mark.parametrize(("finished", "linked"), [((), 3), ((0,), 3), ((0, 1), 0)])
def test_a_file_that_is_begun_becomes_a_link_and_one_that_is_finished_stays(
    finished: tuple[int, ...], linked: int
) -> None:
    manifest = manifest_of(1, 2)
    plan = Plan.of(manifest, find_at_hand(manifest, [(SNAPSHOT, manifest)]), frozenset(finished))
    assert plan.ways == Ways(linked=linked)
    assert plan.here == 3 - linked


def test_what_is_begun_is_neither_copied_nor_fetched() -> None:
    at_hand = AtHand({}, {1: Place(SNAPSHOT, "other")})
    plan = Plan.of(manifest_of(1, 2, 4), at_hand, frozenset({0}))
    assert (plan.here, plan.ways, plan.chunks) == (1, Ways(copied=2, fetched=4), 1)
