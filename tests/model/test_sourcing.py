"""Which bytes are asked for."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from packtrain.model.manifest import Chunk, FileEntry, Manifest
from packtrain.model.sourcing import Run, missing_runs

MIB = 1 << 20
REQUEST = 16 * MIB
HEX = "a" * 64

lengths = st.lists(st.sampled_from([1, 100, MIB, 4 * MIB, REQUEST - 1, REQUEST, REQUEST + 1, 3 * REQUEST]), max_size=12)


def manifest_of(files: list[list[int]]) -> Manifest:
    digest = iter(f"{n:064x}" for n in range(10_000))
    return Manifest.of(
        "merged",
        [
            FileEntry(f"{index:03}", sum(cut), HEX, tuple(Chunk(length, next(digest)) for length in cut))
            for index, cut in enumerate(files)
        ],
    )


manifests = st.lists(lengths, min_size=1, max_size=4).map(manifest_of)


def places(manifest: Manifest) -> list[tuple[FileEntry, int, Chunk]]:
    """File, offset and chunk of each chunk of a manifest, by its index."""
    found = []
    for file in manifest.files:
        start = 0
        for chunk in file.chunks:
            found.append((file, start, chunk))
            start += chunk.length
    return found


def covered(run: Run) -> list[tuple[int, FileEntry, int, Chunk]]:
    start, found = run.start, []
    for index, chunk in enumerate(run.chunks, start=run.first):
        found.append((index, run.file, start, chunk))
        start += chunk.length
    return found


@given(manifests, st.data())
def test_runs_cover_exactly_what_is_missing_and_are_as_long_as_can_be(manifest: Manifest, data: st.DataObject) -> None:
    all_chunks = places(manifest)
    finished = data.draw(st.sets(st.integers(0, max(len(all_chunks) - 1, 0))))
    runs = list(missing_runs(manifest, finished))

    assert [place for run in runs for place in covered(run)] == [
        (index, *place) for index, place in enumerate(all_chunks) if index not in finished
    ]
    for run in runs:
        assert run.chunks
        assert run.length == sum(chunk.length for chunk in run.chunks)
    for one, next_one in pairwise(runs):
        assert one.file != next_one.file or one.first + len(one.chunks) < next_one.first


@given(manifests, st.integers(1, 4 * REQUEST))
def test_a_request_is_as_long_as_the_limit_allows(manifest: Manifest, limit: int) -> None:
    for whole in missing_runs(manifest, set()):
        run, rest = whole.split(limit)
        assert covered(whole) == covered(run) + (covered(rest) if rest else [])
        assert run.length <= limit or len(run.chunks) == 1
        assert rest is None or run.length + rest.chunks[0].length > limit


@given(manifests, st.integers(0, 12))
def test_what_is_left_of_a_run(manifest: Manifest, count: int) -> None:
    for run in missing_runs(manifest, set()):
        rest = run.after(min(count, len(run.chunks)))
        assert covered(rest) == covered(run)[min(count, len(run.chunks)) :]


def test_nothing_is_missing() -> None:
    assert list(missing_runs(manifest_of([[1, 2], [], [3]]), range(3))) == []
