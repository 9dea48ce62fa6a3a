"""A prefix of a store, as the directory that training's code reads: without the bytes that it does not read.

Small files are fetched whole. Of weights only the header is fetched; the rest of the file is a hole, which takes no
space on the disk. Nothing larger than `MAX_DOCUMENT` is fetched at all.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from packtrain.errors import NotFound, PacktrainError, Refused, disk_error
from packtrain.flows.buffers import page_aligned
from packtrain.flows.sources import StoredDirectory
from packtrain.flows.workers import Halt, run_all
from packtrain.model.manifest import PICKLE_SUFFIXES
from packtrain.model.safetensors import HeaderError, header_length
from packtrain.ports import Clock, ObjectInfo, Reporter, Store
from packtrain.training.checkpoint import MAX_FILES
from packtrain.training.documents import MAX_DOCUMENT

_THREADS = 8
_PIECE = 1 << 20


@contextmanager
def staged(source: Store, scratch: Path, reporter: Reporter, clock: Clock) -> Iterator[tuple[Path, StoredDirectory]]:
    """A directory below ``scratch`` that looks like everything in ``source``, and where its bytes truly are.

    It is gone at the end; one that a killed process left is removed by the next. Errors inside that name the directory
    name the source instead. Raises NotFound for an empty source, Refused for names that no file can have.
    """
    listed = _list(source)
    files = _files(source, listed)
    origin = StoredDirectory(source, {info.key: info for info in listed}, clock)
    with _scratch(scratch) as directory, _naming(directory, source.url):
        reporter.begin("reading headers", 0)
        run_all(
            lambda info, halt: _stage(directory / info.key, info, origin, halt),
            files,
            threads=_THREADS,
            name="stage",
        )
        reporter.end()
        yield directory, origin


def _list(source: Store) -> list[ObjectInfo]:
    found: list[ObjectInfo] = []
    for info in source.list(""):
        found.append(info)
        if len(found) > MAX_FILES:
            raise Refused(f"{source.url} holds more than {MAX_FILES} objects", hint="Give the prefix of one model.")
    if not found:
        raise NotFound(f"there is nothing at {source.url}", hint="Give the prefix that holds config.json.")
    return found


def _files(source: Store, listed: Sequence[ObjectInfo]) -> list[ObjectInfo]:
    """All but the empty objects that stand for folders."""
    folders = {folder for info in listed for folder in _folders(info.key)}
    files = [info for info in listed if info.size or (info.key not in folders and source.head(info.key))]
    for info in files:
        parts = info.key.split("/")
        if not {"", ".", ".."}.isdisjoint(parts) or "\0" in info.key or any(len(os.fsencode(p)) > 255 for p in parts):
            raise Refused(
                f"{source.url} holds {info.key!r}, which cannot be the path of a file",
                hint="Rename the object, or move it to another prefix.",
            )
        if info.key in folders:
            raise Refused(
                f"{source.url} holds {info.key!r} as an object and as a folder", hint="Move one of them elsewhere."
            )
    return files


def _folders(key: str) -> Iterator[str]:
    parts = key.split("/")
    return ("/".join(parts[:depth]) for depth in range(1, len(parts)))


def _stage(path: Path, info: ObjectInfo, origin: StoredDirectory, halt: Halt) -> None:
    halt.check()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            for piece in _needed(info, origin):
                halt.check()
                file.write(piece)
            file.truncate(info.size)
    except OSError as error:
        raise disk_error(error, f"could not write {path}") from error


def _needed(info: ObjectInfo, origin: StoredDirectory) -> Iterator[memoryview]:
    """The first bytes of an object, as many as training's code looks at."""
    source, buffer = origin.source(info.key), page_aligned(_PIECE)
    length = info.size if info.size <= MAX_DOCUMENT else 0
    if info.key.endswith(".safetensors"):
        first8 = b"".join(bytes(piece) for piece in source.read(0, min(8, info.size), buffer))
        length = len(first8)
        with suppress(HeaderError):  # preflight will say what is wrong
            length = header_length(first8, info.size)
    elif info.key.lower().endswith(PICKLE_SUFFIXES):
        length = 0
    return source.read(0, length, buffer)


@contextmanager
def _scratch(root: Path) -> Iterator[Path]:
    """A new directory below ``root``, which is locked while it is used and removed afterwards."""
    place = root / uuid.uuid4().hex
    try:
        root.mkdir(parents=True, exist_ok=True)
        with (root / "lock").open("w") as all_of_them:
            fcntl.flock(all_of_them, fcntl.LOCK_EX)  # nobody sweeps between mkdir and the lock
            _sweep(root)
            place.mkdir()
            lock = (place / "lock").open("w")
            fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError as error:
        raise disk_error(error, f"could not make a temporary folder in {root}") from error
    try:
        tree = place / "tree"
        tree.mkdir()
        yield tree.resolve()
    finally:
        shutil.rmtree(place, ignore_errors=True)
        lock.close()


def _sweep(root: Path) -> None:
    """Removes what killed processes left."""
    for place in root.iterdir():
        if place.is_dir():
            with suppress(OSError), (place / "lock").open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # OSError: its process lives
                shutil.rmtree(place, ignore_errors=True)


@contextmanager
def _naming(directory: Path, place: str) -> Iterator[None]:
    try:
        yield
    except PacktrainError as error:
        error.message = error.message.replace(str(directory), place)
        error.hint = error.hint.replace(str(directory), place)
        error.args = (error.message,)
        raise
