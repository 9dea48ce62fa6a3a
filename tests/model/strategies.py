"""Hypothesis strategies of the nouns."""

from __future__ import annotations

import string
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

from packtrain.model.canonical import MAX_INTEGER
from packtrain.model.digest import Digest
from packtrain.model.manifest import Base, Chunks, FileEntry, Manifest, unsafe_path

hex256 = st.text("0123456789abcdef", min_size=64, max_size=64)
digests = st.builds(Digest, hex256)
unicode_text = st.text(st.characters(exclude_categories=["Cs"]))  # everything but lone surrogates
ascii_text = st.text(st.characters(max_codepoint=127))
integers = st.integers(-MAX_INTEGER, MAX_INTEGER)

# What canonical JSON holds here.
json_values = st.recursive(
    st.none() | st.booleans() | integers | unicode_text,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(ascii_text, inner, max_size=5),
    max_leaves=20,
)

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)

chunks = st.lists(st.tuples(st.integers(1, 2**40), hex256), max_size=6).map(
    lambda cut: Chunks([length for length, _ in cut], [blake3 for _, blake3 in cut])
)

_part = st.text(string.ascii_letters + string.digits + "._- äß日🦙", min_size=1, max_size=8)
paths = st.lists(_part, min_size=1, max_size=3).map("/".join).filter(lambda path: unsafe_path(path) is None)


def _no_file_is_a_folder(files: list[FileEntry]) -> bool:
    paths = {file.path for file in files}
    return not any(path.startswith(other + "/") for path in paths for other in paths)


@st.composite
def file_entries(draw: st.DrawFn) -> FileEntry:
    cut = draw(chunks)
    return FileEntry(draw(paths), sum(cut.lengths), draw(hex256), cut, draw(st.booleans()))


file_lists = st.lists(file_entries(), min_size=1, max_size=5, unique_by=lambda f: f.path).filter(_no_file_is_a_folder)

bases = st.one_of(
    st.builds(Base, manifest=digests, payload=digests),
    st.builds(Base, payload=digests),
    st.builds(Base, hub=unicode_text.filter(bool), revision=st.none() | unicode_text.filter(bool)),
)

manifests = st.one_of(
    st.builds(Manifest.of, st.just("merged"), file_lists),
    st.builds(Manifest.of, st.just("adapter"), file_lists, st.none() | bases),
)

# Mutations of a JSON tree: the path of a node, what was done to it, and the whole tree with it done.

_OTHER_TYPES: tuple[Any, ...] = (None, True, 0, -1, "", "x", [], ["x"], {}, {"x": 1})


def mutations(value: Any) -> Iterator[tuple[str, Any]]:
    """Every tree in which one node of ``value`` is removed, or is of another type, or has one thing too many."""
    yield from _mutations(value, "")


def _mutations(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    for other in _OTHER_TYPES:
        if type(other) is not type(value):
            yield f"{path} = {other!r}", other
    if isinstance(value, dict):
        yield f"{path} with an unknown field", {**value, "unknown": 1}
        for key, inner in value.items():
            yield f"{path}.{key} removed", {k: v for k, v in value.items() if k != key}
            for what, mutated in _mutations(inner, f"{path}.{key}"):
                yield what, {**value, key: mutated}
    elif isinstance(value, list):
        yield f"{path} with one more", [*value, 1]
        if value:
            yield f"{path} with its first twice", [value[0], *value]
        for index, inner in enumerate(value):
            yield f"{path}[{index}] removed", value[:index] + value[index + 1 :]
            for what, mutated in _mutations(inner, f"{path}[{index}]"):
                yield what, [*value[:index], mutated, *value[index + 1 :]]
    elif isinstance(value, str):
        yield f"{path} longer", value + "x"
        yield f"{path} shorter", value[:-1]
        yield f"{path} in capitals", value.upper() if value.upper() != value else value.lower() + "y"
    elif type(value) is int:
        yield f"{path} + 1", value + 1
        yield f"{path} negative", -value - 1
