"""A version becomes a running vLLM that holds its directory as long as it lives."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import NoReturn, Protocol, Self

from packtrain.cache import Pin
from packtrain.errors import LocalDiskError, Refused, disk_error
from packtrain.flows.pull import Node, hold, resolve
from packtrain.model.digest import Digest
from packtrain.model.manifest import FILE_NAME, Base, Manifest
from packtrain.model.reference import Reference
from packtrain.model.version import ModelVersion
from packtrain.ports import Clock, Registry, Reporter
from packtrain.serving import Adapter, Arguments, Launch, adapter_rank, exec_vllm, find_vllm, supervise


class Supply(Protocol):
    """Where engines find versions: `FromCache`, or `packtrain.flows.in_place.InPlace`. What it has opened stays
    while it is entered, and as long as somebody has one of ``pins`` open."""

    @property
    def pins(self) -> list[int]: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...

    def open(self, version: ModelVersion) -> Path:
        """The directory of a version, never a link to it."""
        ...

    def leave(self) -> None:
        """From now on this process looks after nothing more: it is about to become the engine."""
        ...


class FromCache:
    """A `Supply` that pulls. Each snapshot is pinned, by descriptors that the engine's process inherits."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._cache = node.cache
        self._held: list[tuple[Digest, Pin]] = []

    @property
    def pins(self) -> list[int]:
        return [pin.descriptor for _, pin in self._held]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        while self._held:
            digest, pin = self._held.pop()
            self._cache.touch(digest)  # it was used until now
            pin.release()

    def open(self, version: ModelVersion) -> Path:
        snapshot, pin = hold(self._node, version)
        self._held.append((version.digest, pin))
        Thread(target=self._settle, args=(version.digest,), name="settle", daemon=True).start()
        return snapshot.path

    def leave(self) -> None:
        """The pins do it."""

    def _settle(self, digest: Digest) -> None:
        """Puts a snapshot onto the disk, so that it need not be read back after a restart of the machine."""
        with suppress(LocalDiskError), self._cache.pin(digest):  # if that fails, it is read back
            if not self._cache.is_durable(digest):
                self._cache.settle(digest)


def serve(
    registry: Registry,
    supply: Supply,
    reference: Reference,
    arguments: Sequence[str],
    *,
    vllm: str,
    reporter: Reporter,
    clock: Clock,
) -> int:
    """Runs vLLM on a version until it ends. Returns vLLM's exit code."""
    executable, said = find_vllm(vllm), Arguments.read(arguments)  # what cannot work is refused before any download
    with supply:
        launch = prepare(registry, supply, resolve(registry, reference, reporter), said, reporter)
        return supervise(launch, executable, supply.pins, reporter=reporter, clock=clock)


def run(
    registry: Registry,
    supply: Supply,
    reference: Reference,
    arguments: Sequence[str],
    *,
    vllm: str,
    reporter: Reporter,
) -> NoReturn:
    """Becomes vLLM on a version: this process is replaced."""
    executable, said = find_vllm(vllm), Arguments.read(arguments)
    with supply:
        launch = prepare(registry, supply, resolve(registry, reference, reporter), said, reporter)
        supply.leave()
        exec_vllm(launch, executable, supply.pins)


def prepare(
    registry: Registry, supply: Supply, version: ModelVersion, arguments: Arguments, reporter: Reporter
) -> Launch:
    """What to start for a version: the model itself, or an adapter's base with the adapter loaded."""
    path = supply.open(version)
    fingerprint = f"{version}@{version.digest.short}"
    reporter.note(f"serving {version} ({version.digest}) from {path}")
    if version.kind == "merged":
        return Launch(name=version.name, model=str(path), fingerprint=fingerprint, arguments=arguments)
    model, revision, base_name = _base(registry, supply, version, path, reporter)
    return Launch(
        name=version.name,
        model=model,
        revision=revision,
        fingerprint=fingerprint,
        arguments=arguments,
        adapter=Adapter(path=path, rank=adapter_rank(path), base_name=base_name),
    )


def _base(
    registry: Registry, supply: Supply, adapter: ModelVersion, path: Path, reporter: Reporter
) -> tuple[str, str | None, str]:
    """What vLLM opens as the base, its revision on the Hub, and the name it answers under. ``path``: the adapter's."""
    if adapter.base is not None:
        version = resolve(registry, Reference(adapter.base.name, digest=adapter.base.digest), reporter)
        opened = supply.open(version)
        reporter.note(f"with its base {version} ({version.digest}) from {opened}")
        return str(opened), None, version.name
    what = path / FILE_NAME
    try:
        manifest = Manifest.decode(what.read_bytes(), expect=adapter.digest, what=str(what))
    except OSError as error:
        raise disk_error(error, f"could not read {what}") from error
    base = manifest.base or Base()
    if base.hub is not None:
        return base.hub, base.revision, base.hub
    raise Refused(
        f"{adapter} is an adapter whose base was not published, so this node does not have it",
        hint="Publish the base model, then the adapter again with --base NAME/VERSION --force.",
    )
