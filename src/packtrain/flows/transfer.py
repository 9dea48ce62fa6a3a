"""Moving chunks: every byte is hashed and written as it passes, and counts only when its chunk's digest matches."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from blake3 import blake3

from packtrain.cache import Partial
from packtrain.errors import IntegrityError, NotFound, Unavailable, disk_error
from packtrain.flows.workers import Halt, run_all
from packtrain.model.manifest import FileEntry, Manifest
from packtrain.model.sourcing import Run, plan_runs
from packtrain.model.version import how_to_mend
from packtrain.ports import Clock, Reporter, Store

THREADS = 8
BUFFER = 256 << 10  # bytes, one buffer a thread: measured best or near it on loopback (docs/performance.md)
ATTEMPTS = 6  # of one request before the store counts as unavailable

_HERE = "This copy is damaged, not the store: remove it, and pull the version again."

_local = threading.local()


def fetch(store: Store, prefix: str, manifest: Manifest, partial: Partial, reporter: Reporter, clock: Clock) -> int:
    """Completes ``partial`` from the directory ``prefix`` of the store. Returns the bytes fetched.

    Raises IntegrityError, naming the file, when the store gives bytes that are not the manifest's; Unavailable when
    it keeps failing, and then a later call continues.
    """
    if partial.doubtful:
        _recheck(manifest, partial, reporter)
    runs = list(plan_runs(manifest, partial.finished))
    total = sum(run.length for run in runs)
    reporter.begin("fetching", total)
    try:
        run_all(
            lambda run, halt: _fetch_run(store, prefix, run, partial, reporter, clock, halt),
            runs,
            threads=THREADS,
            name="fetch",
        )
    finally:
        reporter.end()
    return total


def check_directory(directory: Path, manifest: Manifest, reporter: Reporter) -> None:
    """Reads every file of a directory and checks every chunk. Raises IntegrityError naming the first bad file."""
    reporter.begin("verifying", manifest.size)
    try:
        run_all(
            lambda file, halt: _check_file(directory / file.path, file, reporter, halt),
            manifest.files,
            threads=min(os.cpu_count() or 1, THREADS),
            name="verify",
        )
    finally:
        reporter.end()


def check_stored(store: Store, prefix: str, manifest: Manifest, reporter: Reporter) -> None:
    """Reads every file of a version from the store and checks every chunk. Raises IntegrityError, NotFound."""
    reporter.begin("verifying", manifest.size)
    try:
        run_all(
            lambda run, halt: _check_run(store, prefix, run, reporter.advance, halt),
            plan_runs(manifest, ()),
            threads=THREADS,
            name="verify",
        )
    finally:
        reporter.end()


def find_damaged(store: Store, prefix: str, files: Sequence[FileEntry], reporter: Reporter) -> list[FileEntry]:
    """Reads files of a version from the store. Returns those that are not what the manifest says, or are gone."""
    if not files:
        return []
    runs = [Run(file, 0, 0, file.chunks) for file in files if file.chunks]
    reporter.begin("checking what is there", sum(run.length for run in runs))
    try:
        found = run_all(
            lambda run, halt: None if _is_right(store, prefix, run, reporter.advance, halt) else run.file,
            sorted(runs, key=lambda run: -run.length),
            threads=THREADS,
            name="check",
        )
    finally:
        reporter.end()
    return [file for file in found if file is not None]


def is_whole(store: Store, prefix: str, file: FileEntry, halt: Halt) -> bool:
    """Reads one file of a version from the store: whether it is what the manifest says."""
    return not file.chunks or _is_right(store, prefix, Run(file, 0, 0, file.chunks), lambda _: None, halt)


def _is_right(store: Store, prefix: str, run: Run, advance: Callable[[int], None], halt: Halt) -> bool:
    try:
        _check_run(store, prefix, run, advance, halt)
    except (IntegrityError, NotFound):
        return False
    return True


def _fetch_run(
    store: Store, prefix: str, run: Run, partial: Partial, reporter: Reporter, clock: Clock, halt: Halt
) -> None:
    """One request, tried again from the first chunk that is not whole when the store fails."""
    failures = 0
    while run.chunks:
        before = len(run.chunks)
        try:
            run = _receive(store, prefix, run, partial, reporter, halt)
        except _Interrupted as interrupted:
            run = interrupted.rest
            failures = failures + 1 if len(run.chunks) == before else 1
            if failures >= ATTEMPTS:
                raise interrupted.error from interrupted
            clock.sleep(random.uniform(0.5, 1.0) * min(10.0, 0.2 * 2**failures))


class _Interrupted(Exception):
    """The store stopped in the middle of a run; ``rest`` is what is still to be fetched."""

    def __init__(self, rest: Run, error: Unavailable) -> None:
        super().__init__(str(error))
        self.rest = rest
        self.error = error


def _receive(store: Store, prefix: str, run: Run, partial: Partial, reporter: Reporter, halt: Halt) -> Run:
    """Fetches a run; returns what is left of it: nothing. Raises _Interrupted with the rest."""
    done, received = 0, 0  # whole chunks; bytes of the one after them
    digest = blake3()
    with partial.open(run.file.path) as descriptor:
        position = run.start
        try:
            for piece in store.read(prefix + run.file.path, run.start, run.length, _buffer()):
                halt.check()
                view = piece
                while view:
                    chunk = run.chunks[done]
                    part = view[: chunk.length - received]
                    digest.update(part)
                    _write(descriptor, part, position, run.file)
                    position += len(part)
                    received += len(part)
                    view = view[len(part) :]
                    reporter.advance(len(part))
                    if received == chunk.length:
                        _require_stored(digest.hexdigest() == chunk.blake3, run.file, store, prefix)
                        partial.finish(run.first + done)
                        done, received, digest = done + 1, 0, blake3()
        except Unavailable as error:
            reporter.advance(-received)
            raise _Interrupted(run.after(done), error) from error
        except NotFound as error:
            raise IntegrityError(
                f"{run.file.path} is missing from {store.url}/{prefix}",
                hint=_mend_store(prefix),
            ) from error
    return run.after(done)


def _recheck(manifest: Manifest, partial: Partial, reporter: Reporter) -> None:
    """Reads back the chunks that were written before a reboot; those that are right need not be fetched again."""
    skip = set(range(sum(len(file.chunks) for file in manifest.files))) - partial.doubtful
    runs = list(plan_runs(manifest, skip))
    reporter.begin("checking what an earlier download left", sum(run.length for run in runs))
    for run in runs:
        with partial.open(run.file.path) as descriptor:
            position = run.start
            for index, chunk in enumerate(run.chunks, start=run.first):
                if blake3(_pread(descriptor, chunk.length, position)).hexdigest() == chunk.blake3:
                    partial.finished.add(index)
                position += chunk.length
                reporter.advance(chunk.length)
    reporter.end()
    partial.settle_doubts()


def _check_file(path: Path, file: FileEntry, reporter: Reporter, halt: Halt) -> None:
    buffer = _buffer()
    try:
        with path.open("rb", buffering=0) as stream:
            for chunk in file.chunks:
                digest, left = blake3(), chunk.length
                while left:
                    halt.check()
                    count = stream.readinto(buffer[: min(left, len(buffer))])
                    _require(count > 0, file, str(path.parent))
                    digest.update(buffer[:count])
                    left -= count
                    reporter.advance(count)
                _require(digest.hexdigest() == chunk.blake3, file, str(path.parent))
            _require(not stream.read(1), file, str(path.parent))
    except FileNotFoundError as error:
        raise IntegrityError(f"{path} is missing", hint=_HERE) from error
    except OSError as error:
        raise disk_error(error, f"could not read {path}") from error


def _check_run(store: Store, prefix: str, run: Run, advance: Callable[[int], None], halt: Halt) -> None:
    digest, received, chunks = blake3(), 0, iter(run.chunks)
    chunk = next(chunks)
    for piece in store.read(prefix + run.file.path, run.start, run.length, _buffer()):
        halt.check()
        view = piece
        while view:
            part = view[: chunk.length - received]
            digest.update(part)
            received += len(part)
            view = view[len(part) :]
            advance(len(part))
            if received == chunk.length:
                _require_stored(digest.hexdigest() == chunk.blake3, run.file, store, prefix)
                digest, received, chunk = blake3(), 0, next(chunks, chunk)


def _require(condition: bool, file: FileEntry, where: str, hint: str = _HERE) -> None:
    if not condition:
        raise IntegrityError(
            f"{file.path} in {where.rstrip('/')} is not what its manifest says: the bytes were changed or damaged",
            hint=hint,
        )


def _require_stored(condition: bool, file: FileEntry, store: Store, prefix: str) -> None:
    _require(condition, file, f"{store.url}/{prefix}", _mend_store(prefix))


def _mend_store(prefix: str) -> str:
    _, name, _ = prefix.split("/", 2)  # as version_prefix makes it
    return how_to_mend(name)


def _write(descriptor: int, data: memoryview, position: int, file: FileEntry) -> None:
    try:
        while data:
            count = os.pwrite(descriptor, data, position)
            position += count
            data = data[count:]
    except OSError as error:
        raise disk_error(error, f"could not write {file.path}") from error


def _pread(descriptor: int, length: int, position: int) -> bytes:
    pieces = []
    while length and (piece := os.pread(descriptor, length, position)):
        pieces.append(piece)
        position += len(piece)
        length -= len(piece)
    return b"".join(pieces)


def _buffer() -> memoryview:
    """This thread's own, made once."""
    if not hasattr(_local, "buffer"):
        _local.buffer = memoryview(bytearray(BUFFER))
    return _local.buffer  # type: ignore[no-any-return]
