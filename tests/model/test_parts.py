"""Plans of parts: the same bytes, no part too small, and as little sent as the store's limits let be."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from packtrain.model.digest import Digest
from packtrain.model.manifest import Chunks, FileEntry, Manifest
from packtrain.model.parts import COPIED, SENT, Part, plan_parts
from packtrain.model.sourcing import find_at_hand

MIB = 1 << 20
MIN = 5 * MIB


def name(text: str) -> str:
    return Digest.of(text.encode()).hex


def entry(path: str, chunks: list[tuple[int, str]]) -> FileEntry:
    """A file of chunks of a length and a content each."""
    lengths = [length for length, _ in chunks]
    made = Chunks(lengths, [name(f"{length} {content}") for length, content in chunks])
    return FileEntry(path, sum(lengths), name(f"{path} {chunks}"), made)


def version(*files: FileEntry) -> tuple[Digest, Manifest]:
    manifest = Manifest.of("merged", files)
    return manifest.digest, manifest


def plan(new: FileEntry, *old: FileEntry, most: int = 10_000, smallest: int = MIN) -> list[Part]:
    _, manifest = version(new)
    places = find_at_hand(manifest, [version(*old)] if old else []).chunks
    return plan_parts(new, places, smallest=smallest, most=most)


def sent(parts: list[Part]) -> int:
    return sum(part.run.length for part in parts if part.place is None)


def require_right(new: FileEntry, parts: list[Part], *old: FileEntry, smallest: int = MIN) -> None:
    """The parts are the file, in order; what is copied is what it is a copy of; none is too small."""
    assert [part.number for part in parts] == list(range(1, len(parts) + 1))
    assert [chunk for part in parts for chunk in part.run.chunks] == list(new.chunks)
    offset = 0
    by_path = {file.path: file for file in old}
    for part in parts:
        assert part.run.start == offset
        offset += part.run.length
        if part.place is not None:
            source = by_path[part.place.path]
            starts = [sum(source.chunks.lengths[:index]) for index in range(len(source.chunks))]
            first = starts.index(part.place.start)
            assert source.chunks[first : first + len(part.run.chunks)] == part.run.chunks
    assert offset == new.size
    assert all(part.run.length >= smallest for part in parts[:-1])


def layers(count: int, revision: int, *, hidden: int = 4096) -> list[tuple[int, str]]:
    """The chunks of layers of an 8B Llama, of which training changed q_proj and v_proj."""
    down, k, q = 14336 * hidden * 2, 1024 * hidden * 2, hidden * hidden * 2
    found = [(9_000, "header")]
    for layer in range(count):
        tensors = [("down", down), ("gate", down), ("up", down), ("k", k), ("o", q), (f"q {revision}", q)]
        for tensor, size in [*tensors, (f"v {revision}", k)]:
            whole, rest = divmod(size, 4 * MIB)
            found += [(4 * MIB, f"{layer} {tensor} {index}") for index in range(whole)]
            found += [(rest, f"{layer} {tensor} rest")] if rest else []
        found.append((16_384, f"{layer} norms"))
    return found


def test_of_a_fine_tuned_8b_only_what_changed_is_sent() -> None:
    old, new = entry("w.safetensors", layers(8, 1)), entry("w.safetensors", layers(8, 2))
    parts = plan(new, old)
    require_right(new, parts, old)
    changed = 8 * (4096 * 4096 * 2 + 1024 * 4096 * 2)
    assert changed <= sent(parts) <= 1.05 * changed


def test_equal_chunks_do_not_tear_a_run_apart() -> None:
    """Norms that nobody trained are the same in every layer."""
    chunks = [part for layer in range(4) for part in ((16_384, "ones"), *[(4 * MIB, f"{layer} {i}") for i in range(2)])]
    old = entry("w", chunks)
    new = entry("w", [*chunks[:-1], (4 * MIB, "new")])
    parts = plan(new, old)
    require_right(new, parts, old)
    assert sent(parts) == 4 * MIB
    assert len(parts) == 2


def test_what_moved_to_another_shard_is_copied_from_there() -> None:
    chunks = layers(4, 1)
    old = entry("a", chunks), entry("b", layers(2, 7))
    new = entry("c", [(10_000, "new header"), *chunks[1:]])
    parts = plan(new, *old)
    require_right(new, parts, *old)
    assert sent(parts) <= 10_000 + MIN + 4 * MIB


def test_without_versions_everything_is_sent_in_parts_of_a_size() -> None:
    new = entry("w", layers(4, 1))
    parts = plan(new)
    require_right(new, parts)
    assert all(SENT <= part.run.length < SENT + 8 * MIB for part in parts[:-1])
    assert len(parts) > 50


def test_the_same_file_is_copied_whole() -> None:
    new = entry("w", layers(4, 1))
    parts = plan(new, new)
    require_right(new, parts, new)
    assert sent(parts) == 0
    assert all(COPIED <= part.run.length < COPIED + 4 * MIB for part in parts[:-1])


def test_a_small_file_is_one_part() -> None:
    new = entry("w", [(100, "a")])
    assert [part.run.length for part in plan(new)] == [100]
    assert sent(plan(new, new)) == 0


def test_a_change_too_small_for_a_part_takes_its_neighbour_along() -> None:
    same = [(4 * MIB, f"{index}") for index in range(20)]
    old = entry("w", [*same[:10], (MIB, "old"), *same[10:]])
    new = entry("w", [*same[:10], (MIB, "new"), *same[10:]])
    parts = plan(new, old)
    require_right(new, parts, old)
    assert sent(parts) == 5 * MIB


def test_copies_too_small_for_a_part_are_sent() -> None:
    chunks = [(4 * MIB, f"{index} {'same' if index % 2 else 'new'}") for index in range(11)]
    old = entry("w", [(length, content) for length, content in chunks if "same" in content])
    new = entry("w", chunks)
    parts = plan(new, old)
    require_right(new, parts, old)
    assert sent(parts) == new.size


def test_a_huge_file_has_no_more_parts_than_the_store_takes() -> None:
    new = entry("w", [(4 * MIB, str(index)) for index in range(2_000)])
    parts = plan(new, most=100)
    require_right(new, parts)
    assert 50 <= len(parts) <= 100
    alternating = entry("w", [(8 * MIB, f"{index if index % 2 else f'new {index}'}") for index in range(2_000)])
    old = entry("o", [(8 * MIB, f"{index}") for index in range(2_000)])
    parts = plan(alternating, old, most=100)
    require_right(alternating, parts, old)
    assert len(parts) <= 100


sizes = st.sampled_from([1, 100, MIB, 2 * MIB, 4 * MIB, 5 * MIB, 20 * MIB])
contents = st.lists(st.tuples(sizes, st.sampled_from("abcdef")), min_size=1, max_size=40)


@given(contents, contents, st.booleans(), st.integers(2, 40))
@example([(MIB, "a"), (5 * MIB, "b")], [(5 * MIB, "b")], False, 40)
def test_any_files(chunks: list[tuple[int, str]], before: list[tuple[int, str]], share: bool, most: int) -> None:
    old = entry("old", before + (chunks[len(chunks) // 2 :] if share else []))
    new = entry("new", chunks)
    parts = plan(new, old, most=most)
    require_right(new, parts, old)
    assert len(parts) <= most
    assert parts == plan(new, old, most=most)
