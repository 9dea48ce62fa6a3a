"""Which bytes are asked for."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from packtrain.model.digest import Digest
from packtrain.model.manifest import Chunk, Chunks, FileEntry, Manifest
from packtrain.model.sourcing import Place, Run, find_at_hand, missing_runs

MIB = 1 << 20
REQUEST = 16 * MIB
HEX = "a" * 64

lengths = st.lists(st.sampled_from([1, 100, MIB, 4 * MIB, REQUEST - 1, REQUEST, REQUEST + 1, 3 * REQUEST]), max_size=12)


def manifest_of(files: list[list[int]]) -> Manifest:
    digest = iter(f"{n:064x}" for n in range(10_000))
    return Manifest.of(
        "merged",
        [
            FileEntry(f"{index:03}", sum(cut), HEX, Chunks(cut, [next(digest) for _ in cut]))
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


# What other snapshots hold

contents = st.lists(st.lists(st.integers(0, 6), max_size=6), min_size=1, max_size=4)  # chunks by their content


def version_of(files: list[list[int]]) -> Manifest:
    """Chunk n has 10 + n bytes and the digest n."""
    entries = []
    for index, cut in enumerate(files):
        chunks = Chunks([10 + n for n in cut], [f"{n:064x}" for n in cut])
        sha256 = Digest.of(repr(cut).encode()).hex
        entries.append(FileEntry(f"{index:03}", sum(chunks.lengths), sha256, chunks))
    return Manifest.of("merged", entries)


@given(contents, st.lists(contents, max_size=3), st.data())
def test_what_is_at_hand_is_found_and_nothing_else(
    wanted: list[list[int]], others: list[list[list[int]]], data: st.DataObject
) -> None:
    manifest = version_of(wanted)
    snapshots = {Digest(f"{n:064x}"): version_of(files) for n, files in enumerate(others)}
    found = find_at_hand(manifest, snapshots.items())
    every = places(manifest)
    finished = data.draw(st.sets(st.integers(0, max(len(every) - 1, 0))))
    copies = list(found.copies(manifest, finished))

    def lies(place: Place, chunk: Chunk, start: int) -> bool:
        file = next(file for file in snapshots[place.snapshot].files if file.path == place.path)
        offset = 0
        for other in file.chunks:
            if offset == place.start + start:
                return other == chunk
            offset += other.length
        return False

    copied = set()
    for copy in copies:
        start = 0
        for index, chunk in enumerate(copy.run.chunks, start=copy.run.first):
            assert lies(copy.place, chunk, start), "a copy gives what the manifest says"
            copied.add(index)
            start += chunk.length
    present = {chunk for files in others for cut in files for chunk in cut}
    for index, (_, _, chunk) in enumerate(every):
        assert (index in copied) == (int(chunk.blake3, 16) in present and index not in finished)
    for path, place in found.files.items():
        mine = next(file for file in manifest.files if file.path == path)
        theirs = next(file for file in snapshots[place.snapshot].files if file.path == place.path)
        assert (mine.sha256, mine.size) == (theirs.sha256, theirs.size) and mine.size
    for one, next_one in pairwise(copies):
        assert one.run.file != next_one.run.file or (
            one.run.end < next_one.run.begin
            or one.place.snapshot != next_one.place.snapshot
            or one.place.path != next_one.place.path
            or one.place.start + one.run.length != next_one.place.start
        ), "neighbours are one copy"
