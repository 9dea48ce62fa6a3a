"""Finished exports become versions as they appear in a folder: each once, and whole.

An export is finished when preflight finds it complete (every shard that the index names, whole by its header) and no
file has changed over a quiet period. Nobody who writes it needs to know of us: there is no marker file and no lock.

What is known survives a restart in a small file of this machine (`Memory`), so that an export that was published or
refused is not read again until it changes. If that file is lost, or another machine watches the same folder, bytes that
are a version already are recognised by their payload.

Removing a source: the version is read back from the store, byte by byte, and the list of what was published is written
to the memory. Then exactly those files go that are still as they were, those first without which nobody takes the rest
for a model. Killed in between, the next watch goes on with the list. What was not published, or changed, stays.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from packtrain.errors import (
    NotFound,
    PacktrainError,
    PreflightRefused,
    Refused,
    Unavailable,
    disk_error,
)
from packtrain.flows import integrity
from packtrain.flows.fetch import read_manifest
from packtrain.flows.promote import promote
from packtrain.flows.publish import Request, publish
from packtrain.flows.watching import Entry, Look, Memory
from packtrain.model.finding import Finding
from packtrain.model.ledger import timestamp
from packtrain.model.reference import Reference, check_alias, check_name
from packtrain.model.version import ModelVersion
from packtrain.ports import Clock, Registry, Reporter, Store
from packtrain.training.checkpoint import ADAPTER_CONFIG, INDEX, inspect

LONGEST_PAUSE = 600.0  # seconds between two attempts while something fails

_FIRST = ("config.json", ADAPTER_CONFIG, INDEX)  # without one of them a directory is no model


@dataclass(frozen=True, slots=True)
class Watch:
    """What the user asked for. ``interval`` in seconds: between two looks, over which a finished export is quiet."""

    directory: Path
    name: str
    alias: str | None = None
    remove_source: bool = False
    interval: float = 30.0
    once: bool = False


@dataclass(frozen=True, slots=True)
class Happened:
    """One thing that was done or found, about the export in ``path``. ``event`` is one of

    found      it is there, and not yet known to be finished
    published  it is a new version
    known      its bytes were a version already
    refused    it cannot be served as it is (``findings``, or ``message``); it is looked at again when it changes
    removed    its files are gone, because ``version`` holds them; ``stayed`` are those that were not published
    kept       it was to be removed, and was not: ``message`` says why
    failed     ``message`` and ``hint`` say why; it is tried again in ``retry`` seconds, or when it changes
    """

    event: str
    path: Path
    version: ModelVersion | None = None
    findings: tuple[Finding, ...] = ()
    stayed: tuple[str, ...] = ()
    message: str = ""
    hint: str = ""
    retry: float | None = None


def watch(
    store: Store, registry: Registry, request: Watch, *, memory: Path, reporter: Reporter, clock: Clock
) -> Iterator[Happened]:
    """Publishes exports of a folder until it is interrupted, or with ``once`` those that are finished now.

    ``memory`` is a folder of this machine. What fails is said and tried again, ever more slowly; with ``once`` it is
    raised when the others are done. Raises NotFound and UsageError for a request that makes no sense.
    """
    check_name(request.name)
    if request.alias:
        check_alias(request.alias)
    if not request.directory.is_dir():
        raise NotFound(f"the directory {request.directory} does not exist", hint="Create it, then watch it.")
    watcher = _Watcher(store, registry, request, memory, reporter, clock)
    yield from watcher.look()
    while True:
        clock.sleep(watcher.pause)
        yield from watcher.look()
        if request.once:
            if watcher.failure is not None:
                raise watcher.failure
            return


@dataclass(frozen=True, slots=True)
class _Failing:
    """What failed with an export that looked like this (None: it could not be looked at), ``times`` in a row. It is
    tried again at ``due`` by the monotonic clock, or when it looks different."""

    error: PacktrainError
    look: Look | None
    times: int
    due: float


class _Watcher:
    """Looks at a folder, again and again. ``pause`` is how long to wait before the next look; ``failure`` the first
    that is not over after the last one.

    What fails with one export does not slow the others down; without the store or the folder there is nothing to do.
    """

    def __init__(
        self, store: Store, registry: Registry, request: Watch, memory: Path, reporter: Reporter, clock: Clock
    ) -> None:
        self._store = store
        self._registry = registry
        self._request = request
        self._directory = request.directory.resolve()
        self._memory = Memory.of(memory, store.url, request.name, self._directory)
        self._reporter = reporter
        self._clock = clock
        self._before: dict[Path, Look] = {}  # at the look before
        self._failing: dict[Path, _Failing] = {}
        self._away = 0  # looks in a row that found no store, or no folder
        self.failure: PacktrainError | None = None

    @property
    def pause(self) -> float:
        return self._pause(self._away)

    def _pause(self, failures: int) -> float:
        interval = self._request.interval
        return min(interval * 2.0 ** min(failures, 20), max(interval, LONGEST_PAUSE))

    def look(self) -> Iterator[Happened]:
        """Every export once, oldest first. Stops where the store cannot be reached."""
        self.failure = None
        with self._memory.held():
            try:
                for export in self._exports():
                    yield from self._attempt(export)
            except PacktrainError as error:
                self._away += 1
                self.failure = error
                yield _failed(self._directory, error, self.pause)
            else:
                self._away = 0

    def _exports(self) -> list[Path]:
        """Those first whose removal was begun."""
        return list(dict.fromkeys([*self._memory.removing(), *find_exports(self._directory)]))

    def _attempt(self, export: Path) -> Iterator[Happened]:
        """One export, unless it failed a short while ago. Raises Unavailable."""
        failing = self._failing.get(export)
        if failing and failing.look == _try_look(export) and self._clock.monotonic() < failing.due:
            self.failure = self.failure or failing.error
            return
        try:
            yield from self._visit(export)
            self._failing.pop(export, None)
        except Unavailable:
            raise
        except PacktrainError as error:
            look = _try_look(export)
            if look is not None and look != self._before.get(export):
                return  # somebody writes to it: it is not finished, and what failed is no news
            times = failing.times + 1 if failing else 1
            retry = self._pause(times)
            self._failing[export] = _Failing(error, look, times, self._clock.monotonic() + retry)
            self.failure = self.failure or error
            yield _failed(export, error, retry)

    def _visit(self, export: Path) -> Iterator[Happened]:
        known = self._memory.get(export)
        if known and known.removing is not None:
            self._before[export] = Look.at(export)
            yield self._remove_files(export, known.removing, self._version(known))
            return
        look = Look.at(export)
        if known and known.look == look.mark and not known.begun:
            self._before[export] = look
            if self._request.remove_source and known.version:
                yield from self._remove(export, look, self._version(known))
        elif self._before.get(export) != look:
            new = export not in self._before
            self._before[export] = look
            if new:
                yield Happened("found", export)
        else:
            begun = known.begun if known and known.look == look.mark else ""
            yield from self._publish(export, look, begun)

    def _publish(self, export: Path, look: Look, begun: str) -> Iterator[Happened]:
        """``begun``: when these bytes were begun to be published before, and nobody knows how far it came; or empty."""
        self._registry.read(self._request.name)  # before the export is hashed for nothing
        try:
            inspect(export)
        except Refused as error:
            yield self._refused(export, look, error)
            return
        self._memory.put(export, Entry(look.mark, begun=begun or timestamp(self._clock.now())))
        request = Request(directory=export, name=self._request.name)
        try:
            published = publish(self._store, self._registry, request, reporter=self._reporter, clock=self._clock)
        except PreflightRefused as error:
            yield self._refused(export, look, error, error.findings)
            return
        version = published.version
        assert version is not None
        # An alias moves for a new version only, if need be after the death of who made it: bytes that were known before
        # (the memory is lost, say) must not undo what people did with the alias since.
        new = published.created or bool(begun and version.created >= begun)
        if self._request.alias and new:
            reference = Reference(version.name, version=version.number)
            promote(self._registry, reference, self._request.alias, expect=None, reason="watch --alias")
        yield Happened("published" if new else "known", export, version)
        if Look.at(export) != look:
            return  # it was whole, and went on: it is looked at as a new one
        self._memory.put(export, Entry(look.mark, version=version.number))
        if self._request.remove_source:
            yield from self._remove(export, look, version)

    def _refused(self, export: Path, look: Look, error: Refused, findings: tuple[Finding, ...] = ()) -> Happened:
        self._memory.put(export, Entry(look.mark))
        return Happened("refused", export, findings=findings, message=error.message, hint=error.advice)

    def _remove(self, export: Path, look: Look, version: ModelVersion) -> Iterator[Happened]:
        self._reporter.note(f"reading {version} back from the store before {export} is removed")
        manifest = read_manifest(self._store, version)
        integrity.check_stored(self._store, version.prefix, manifest, self._reporter, self._clock)
        published = {file.path for file in manifest.files if not file.generated}
        taken = set(inspect(export).taken)
        if Look.at(export) != look or taken != published:
            yield Happened("kept", export, version, message="it changed since it was published")
            return
        files = {path: look.files[path] for path in taken}
        self._memory.put(export, Entry(look.mark, version=version.number, removing=files))
        yield self._remove_files(export, files, version)

    def _remove_files(self, export: Path, files: Mapping[str, tuple[int, ...]], version: ModelVersion) -> Happened:
        """Removes those that are still as they were, and the folders that this leaves empty."""
        folders = {export / parent for path in files for parent in Path(path).parents}
        try:
            for path in sorted(files, key=lambda path: (not (export / path).is_symlink(), path not in _FIRST, path)):
                if Look.file(export / path) == files[path]:
                    (export / path).unlink(missing_ok=True)
            for folder in sorted(folders - {self._directory}, key=lambda folder: -len(folder.parts)):
                with suppress(OSError):  # not empty: something was left behind, or came
                    folder.rmdir()
        except OSError as error:
            self._before[export] = Look.at(export)  # it was us who changed it
            raise disk_error(error, f"could not remove what was published from {export}") from error
        stayed = tuple(sorted(Look.at(export).files))
        self._memory.forget(export)
        return Happened("removed", export, version, stayed=stayed)

    def _version(self, entry: Entry) -> ModelVersion:
        assert entry.version is not None
        return self._registry.read(self._request.name).state.version(entry.version)


def find_exports(directory: Path) -> list[Path]:
    """The directory if a model is in it, else those of its folders in which one is; the oldest first."""
    try:
        if _is_export(directory):
            return [directory]
        with os.scandir(directory) as entries:
            folders = [
                Path(entry.path)
                for entry in entries
                if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False)
            ]
        exports = [folder for folder in folders if _may_be_export(folder)]
    except OSError as error:
        raise disk_error(error, f"could not look into {directory}") from error
    return sorted(exports, key=lambda export: (_newest(export), export))


def _may_be_export(directory: Path) -> bool:
    """Also where it cannot be seen: then there is something to be said about it."""
    try:
        return _is_export(directory)
    except OSError:
        return True


def _is_export(directory: Path) -> bool:
    with suppress(FileNotFoundError), os.scandir(directory) as entries:
        return any(entry.name in _FIRST or entry.name.endswith(".safetensors") for entry in entries)
    return False


def _newest(export: Path) -> int:
    look = _try_look(export)
    return look.newest if look else 0


def _try_look(export: Path) -> Look | None:
    with suppress(PacktrainError):
        return Look.at(export)
    return None


def _failed(path: Path, error: PacktrainError, retry: float) -> Happened:
    return Happened("failed", path, message=error.message, hint=error.advice, retry=retry)
