"""The manifest: the files of a version, with their digests and chunks.

Its canonical bytes (`Manifest.encode`) are ``packtrain.json`` in the version's directory; their SHA-256 is the
version's identity. SHA-256 is a file's name to the outside world (sha256sum, OCI, Hugging Face LFS); BLAKE3 checks
chunks at line rate. docs/formats.md describes every field; tests/model/golden pins the bytes.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, overload

from packtrain.errors import IntegrityError, PreflightRefused
from packtrain.model import canonical
from packtrain.model.digest import Digest, is_hex256

SCHEMA = "packtrain.manifest/1"
FILE_NAME = "packtrain.json"
KINDS = ("merged", "adapter")
MAX_BYTES = 256 << 20  # of an encoded manifest: refuses nonsense before it is read into memory

# Formats that run code when they are opened (Python pickles, in whatever container).
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill", ".msgpack")


class Chunk(NamedTuple):
    """A consecutive byte range of a file; it starts where the one before it ends."""

    length: int  # bytes, at least 1
    blake3: str  # 64 hex


class Chunks(Sequence[Chunk]):
    """The chunks of a file, in order, each made when it is asked for: as objects, the 33,000 of 140 GB would take 7 MB,
    and as this 1.3 MB."""

    __slots__ = ("_digests", "_lengths")

    def __init__(self, lengths: Iterable[int] = (), blake3s: Iterable[str] = ()) -> None:
        self._lengths = array("Q", lengths)
        self._digests = bytes.fromhex("".join(blake3s))

    @classmethod
    def read(cls, value: Any) -> Chunks | None:
        """What JSON gave, if it is a list of ``[length, blake3]``. Written for 200,000 of them."""
        if type(value) is not list or set(map(type, value)) - {list} or set(map(len, value)) - {2}:
            return None
        lengths, blake3s = [length for length, _ in value], [blake3 for _, blake3 in value]
        if set(map(type, lengths)) - {int} or set(map(type, blake3s)) - {str} or set(map(len, blake3s)) - {64}:
            return None
        try:
            chunks = cls(lengths, blake3s)
        except (OverflowError, ValueError):  # negative or 2**64 and more; not hexadecimal
            return None
        return chunks if all(lengths) and chunks._digests.hex() == "".join(blake3s) else None

    @property
    def lengths(self) -> Sequence[int]:
        """In bytes."""
        return self._lengths

    def __len__(self) -> int:
        return len(self._lengths)

    @overload
    def __getitem__(self, index: int) -> Chunk: ...

    @overload
    def __getitem__(self, index: slice) -> Chunks: ...

    def __getitem__(self, index: int | slice) -> Chunk | Chunks:
        places = range(len(self))[index]
        if isinstance(places, int):
            return Chunk(self._lengths[places], self._digests[32 * places : 32 * places + 32].hex())
        some = Chunks()
        some._lengths = array("Q", (self._lengths[place] for place in places))
        some._digests = b"".join(self._digests[32 * place : 32 * place + 32] for place in places)
        return some

    def __iter__(self) -> Iterator[Chunk]:
        return map(Chunk, self._lengths, self._blake3s())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Chunks):
            return NotImplemented
        return self._lengths == other._lengths and self._digests == other._digests

    def __hash__(self) -> int:
        return hash(self._digests)

    def __repr__(self) -> str:
        return f"<Chunks {list(self)}>"

    def encode(self) -> bytes:
        """As canonical JSON."""
        each = [f'[{length},"{blake3}"]' for length, blake3 in zip(self._lengths, self._blake3s(), strict=True)]
        return f"[{','.join(each)}]".encode()

    def _blake3s(self) -> Iterator[str]:
        text = self._digests.hex()
        return (text[start : start + 64] for start in range(0, len(text), 64))


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file. ``generated`` marks what publish wrote beside the export (for stock MLflow clients)."""

    path: str  # relative, POSIX
    size: int  # bytes; the sum of the chunks' lengths
    sha256: str  # 64 hex
    chunks: Chunks
    generated: bool = False


@dataclass(frozen=True, slots=True)
class Base:
    """What an adapter needs: a published version (``manifest`` and ``payload``), local bytes that nobody published
    (``payload`` alone), or a repository on the Hugging Face Hub (``hub``, ``revision`` if it was given)."""

    manifest: Digest | None = None
    payload: Digest | None = None
    hub: str | None = None
    revision: str | None = None

    def to_json(self) -> dict[str, str]:
        pairs = {
            "manifest": self.manifest.hex if self.manifest else None,
            "payload": self.payload.hex if self.payload else None,
            "hub": self.hub,
            "revision": self.revision,
        }
        return {key: value for key, value in pairs.items() if value is not None}

    @classmethod
    def from_json(cls, value: Any, *, what: str) -> Base:
        _require(isinstance(value, dict), what, "base is not an object")
        _require(all(isinstance(v, str) and v for v in value.values()), what, "base has a bad value")
        for key in ("manifest", "payload"):
            _require(key not in value or is_hex256(value[key]), what, f"base.{key} is not a digest")
        _require(value.keys() in _BASE_FORMS, what, "base is neither a version, nor local bytes, nor a repository")
        return cls(
            manifest=Digest(value["manifest"]) if "manifest" in value else None,
            payload=Digest(value["payload"]) if "payload" in value else None,
            hub=value.get("hub"),
            revision=value.get("revision"),
        )


_FIELDS = {"schema", "kind", "payload", "files", "base", "incarnation"}
_BASE_FORMS = ({"manifest", "payload"}, {"payload"}, {"hub"}, {"hub", "revision"})


@dataclass(frozen=True, slots=True)
class Manifest:
    """The files of one version, sorted by path. Build it with `Manifest.of`.

    ``incarnation`` counts how often the same files were collected as garbage before: what has been condemned is never
    named again, so they come back under another digest, and in another directory.
    """

    kind: str
    files: tuple[FileEntry, ...]
    base: Base | None = None
    incarnation: int = 0

    @classmethod
    def of(cls, kind: str, files: Iterable[FileEntry], base: Base | None = None) -> Manifest:
        """Sorts, and checks what every reader will check. Raises IntegrityError."""
        manifest = cls(kind, tuple(sorted(files, key=lambda f: f.path)), base)
        manifest._check(what="the new manifest")
        return manifest

    @property
    def size(self) -> int:
        """Bytes of all files, the manifest itself not counted."""
        return sum(file.size for file in self.files)

    @property
    def encoded_size(self) -> int:
        """Bytes of the manifest itself."""
        return sum(map(len, self.pieces()))

    @property
    def payload(self) -> Digest:
        """The identity of the exported bytes alone, whatever was generated beside them and however they were cut:
        SHA-256 of the canonical JSON list of ``[path, size, sha256]``, sorted by path."""
        rows = [[f.path, f.size, f.sha256] for f in self.files if not f.generated]
        return Digest(hashlib.sha256(canonical.encode(rows)).hexdigest())

    @property
    def digest(self) -> Digest:
        return Digest.of(self.encode())

    def again(self) -> Manifest:
        """The same files under another digest."""
        return replace(self, incarnation=self.incarnation + 1)

    def encode(self) -> bytes:
        """The canonical bytes: what ``packtrain.json`` holds."""
        return b"".join(self.pieces())

    def pieces(self) -> Iterator[bytes]:
        """The canonical bytes, a file at a time, so that nobody has to hold all of them."""
        last: dict[str, Any] = {"schema": SCHEMA, "kind": self.kind, "payload": self.payload.hex}
        if self.incarnation:
            last["incarnation"] = self.incarnation
        yield b"{"
        if self.base is not None:
            yield b'"base":' + canonical.encode_known(self.base.to_json()) + b","
        yield b'"files":['
        for number, file in enumerate(self.files):
            yield (b"," if number else b"") + _encode_file(file)
        yield b"]," + canonical.encode_known(last)[1:]

    @classmethod
    def decode(cls, data: bytes, *, expect: Digest | None = None, what: str = FILE_NAME) -> Manifest:
        """Reads and checks a manifest; with ``expect`` its bytes must have that digest. Raises IntegrityError."""
        if expect is not None and (found := Digest.of(data)) != expect:
            raise IntegrityError(
                f"{what} is not the manifest that was named: it hashes to {found}, not {expect}",
                hint="The store was changed by something other than Packtrain; `packtrain verify` shows how far.",
            )
        with canonical.uncollected():
            manifest = cls._read(data, what)
            try:
                canonical.require_equal(manifest.pieces(), data, what=what)
            except ValueError as error:
                raise IntegrityError(f"{what} is not canonical JSON: {error}") from error
        return manifest

    @classmethod
    def _read(cls, data: bytes, what: str) -> Manifest:
        try:
            # Laxer than `canonical.load`: `decode` compares all of it anyway.
            value = json.loads(data.decode("utf-8"), object_hook=_with_chunks)
        except (ValueError, RecursionError) as error:
            raise IntegrityError(f"{what} is not canonical JSON: {error}") from error
        _require(isinstance(value, dict), what, "it is not an object")
        if value.get("schema") != SCHEMA:
            raise IntegrityError(
                f"{what} has the schema {value.get('schema')!r}; this Packtrain reads {SCHEMA}",
                hint="It was written by another version of Packtrain: upgrade this one.",
            )
        _require(value.keys() <= _FIELDS, what, "unknown fields")
        _require(isinstance(value.get("files"), list), what, "files is not a list")
        base = Base.from_json(value["base"], what=what) if "base" in value else None
        files = tuple(_file_from_json(entry, what) for entry in value["files"])
        incarnation = value.get("incarnation", 0)
        _require("incarnation" not in value or _is_positive(incarnation), what, "incarnation is not a count")
        manifest = cls(kind=value.get("kind"), files=files, base=base, incarnation=incarnation)
        manifest._check(what=what)
        _require(manifest.payload.hex == value.get("payload"), what, "payload is not that of its files")
        return manifest

    def _check(self, *, what: str) -> None:
        _require(self.kind in KINDS, what, f"kind {self.kind!r} is neither merged nor adapter")
        _require((self.base is None) or self.kind == "adapter", what, "only an adapter has a base")
        _require(bool(self.files), what, "it lists no files")
        paths = [file.path for file in self.files]
        _require(paths == sorted(set(paths)), what, "files are not sorted by path, or one appears twice")
        for path in paths:
            if problem := unsafe_path(path):
                raise IntegrityError(f"{what} lists the path {path!r}, which {problem}")
        known = set(paths)
        for path in paths:
            parts = path.split("/")
            for depth in range(1, len(parts)):
                prefix = "/".join(parts[:depth])
                _require(prefix not in known, what, f"{prefix!r} is listed as a file and as a folder")
        for file in self.files:
            _require(
                sum(file.chunks.lengths) == file.size,
                what,
                f"the chunks of {file.path!r} do not sum to its size",
            )
            _require(file.size <= canonical.MAX_INTEGER, what, f"the size of {file.path!r} is beyond 2**53 - 1")


def unsafe_path(path: str) -> str | None:
    """Why a file of a version must not have this path, or None if it may."""
    if not path or path.startswith("/") or len(path.encode("utf-8", "replace")) > 512:
        return "is empty, absolute or longer than 512 bytes"
    if any(part in ("", ".", "..") for part in path.split("/")):
        return "leaves its folder or is not in its simplest form"
    if "\\" in path or any(ord(c) < 32 or ord(c) == 127 for c in path):
        return "holds a backslash or a control character"
    if not path.isprintable():
        return "holds characters that cannot be printed"
    if path.partition("/")[0] == FILE_NAME:
        return "is reserved for the manifest"
    return None


def refuse_unsafe(paths: Iterable[str], *, allow_code: bool, what: str) -> None:
    """Law 8, asked at publish and again at pull. Raises PreflightRefused naming the first file that breaks it."""
    for path in paths:
        lower = path.lower()
        if lower.endswith(PICKLE_SUFFIXES):
            raise PreflightRefused(
                f"{what} holds {path}, a pickle format: opening it can run code",
                hint="Export with safetensors (LLaMA-Factory: export_legacy_format: false) and publish that.",
            )
        if lower.endswith(".py") and not allow_code:
            raise PreflightRefused(
                f"{what} holds {path}, code that the engine would run",
                hint="If you have read it and trust it, publish with --allow-code; the ledger records that.",
            )


def _encode_file(file: FileEntry) -> bytes:
    """Of its fields, the chunks are the first."""
    rest: dict[str, Any] = {"path": file.path, "size": file.size, "sha256": file.sha256}
    if file.generated:
        rest["generated"] = True
    return b'{"chunks":' + file.chunks.encode() + b"," + canonical.encode_known(rest)[1:]


def _with_chunks(value: dict[str, Any]) -> dict[str, Any]:
    """An object of a manifest. JSON's parser gives each at its end, so that there are never the lists of more than one
    file's chunks: those of 140 GB take 10 MB."""
    if (chunks := Chunks.read(value.get("chunks"))) is not None:
        value["chunks"] = chunks
    return value


def _file_from_json(value: Any, what: str) -> FileEntry:
    _require(isinstance(value, dict), what, "an entry of files is not an object")
    path, size, sha256, chunks = (value.get(key) for key in ("path", "size", "sha256", "chunks"))
    _require(isinstance(path, str), what, "a file has no path")
    _require(type(size) is int and size >= 0, what, f"the size of {path!r} is not a length")
    _require(is_hex256(sha256), what, f"the sha256 of {path!r} is not a digest")
    _require(value.get("generated", True) is True, what, f"generated of {path!r} is not true")
    _require(value.keys() <= {"path", "size", "sha256", "chunks", "generated"}, what, "unknown fields in a file")
    _require(isinstance(chunks, Chunks), what, f"a chunk of {path!r} is not [length, blake3], or they are not a list")
    return FileEntry(
        path=path,
        size=size,
        sha256=sha256,
        chunks=chunks,
        generated=value.get("generated", False),
    )


def _is_positive(value: Any) -> bool:
    return type(value) is int and 0 < value <= canonical.MAX_INTEGER


def _require(condition: bool, what: str, problem: str) -> None:
    if not condition:
        raise IntegrityError(f"{what} is not a valid manifest: {problem}")
