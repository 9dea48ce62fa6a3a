"""A version becomes a running vLLM that holds its snapshot as long as it lives."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import NoReturn

from packtrain.cache import Cache
from packtrain.errors import LocalDiskError, Refused
from packtrain.flows.pull import hold, resolve
from packtrain.model.digest import Digest
from packtrain.model.manifest import Base
from packtrain.model.reference import Reference
from packtrain.model.version import ModelVersion
from packtrain.ports import Clock, Registry, Reporter, Store
from packtrain.serving import Adapter, Arguments, Launch, adapter_rank, exec_vllm, find_vllm, supervise


def serve(
    store: Store,
    registry: Registry,
    cache: Cache,
    reference: Reference,
    arguments: Sequence[str],
    *,
    vllm: str,
    reporter: Reporter,
    clock: Clock,
) -> int:
    """Runs vLLM on a version until it ends. Returns vLLM's exit code."""
    executable, said = find_vllm(vllm), Arguments.read(arguments)  # what cannot work is refused before any download
    holder = _Holder(store, registry, cache, reporter, clock)
    launch = holder.prepare(reference, said)
    Thread(target=holder.settle, name="settle", daemon=True).start()
    try:
        return supervise(launch, executable, holder.pins, reporter=reporter, clock=clock)
    finally:
        holder.touch()


def run(
    store: Store,
    registry: Registry,
    cache: Cache,
    reference: Reference,
    arguments: Sequence[str],
    *,
    vllm: str,
    reporter: Reporter,
    clock: Clock,
) -> NoReturn:
    """Becomes vLLM on a version: this process is replaced."""
    executable, said = find_vllm(vllm), Arguments.read(arguments)
    holder = _Holder(store, registry, cache, reporter, clock)
    exec_vllm(holder.prepare(reference, said), executable, holder.pins)


class _Holder:
    """Pins and pulls what an engine needs. ``pins`` are the descriptors that the engine's process inherits."""

    def __init__(self, store: Store, registry: Registry, cache: Cache, reporter: Reporter, clock: Clock) -> None:
        self._store = store
        self._registry = registry
        self._cache = cache
        self._reporter = reporter
        self._clock = clock
        self._held: list[Digest] = []
        self.pins: list[int] = []

    def prepare(self, reference: Reference, arguments: Arguments) -> Launch:
        """What to start for a version: the model itself, or an adapter's base with the adapter loaded."""
        version, path = self._hold(reference)
        fingerprint = f"{version}@{version.digest.short}"
        self._reporter.note(f"serving {version} ({version.digest}) from {path}")
        if version.kind == "merged":
            return Launch(name=version.name, model=str(path), fingerprint=fingerprint, arguments=arguments)
        model, revision, base_name = self._base(version)
        return Launch(
            name=version.name,
            model=model,
            revision=revision,
            fingerprint=fingerprint,
            arguments=arguments,
            adapter=Adapter(path=path, rank=adapter_rank(path), base_name=base_name),
        )

    def settle(self) -> None:
        """Puts what is held onto the disk, so that it need not be read back after a restart of the machine."""
        for digest in self._held:
            with suppress(LocalDiskError):  # then it is read back
                if not self._cache.is_durable(digest):
                    self._cache.settle(digest)

    def touch(self) -> None:
        """Notes that what was held was used until now."""
        for digest in self._held:
            self._cache.touch(digest)

    def _hold(self, reference: Reference) -> tuple[ModelVersion, Path]:
        version = resolve(self._registry, reference, self._reporter)
        snapshot, pin = hold(
            self._store, self._registry, self._cache, version, reporter=self._reporter, clock=self._clock
        )
        self.pins.append(pin.descriptor)
        self._held.append(version.digest)
        return version, snapshot.path

    def _base(self, adapter: ModelVersion) -> tuple[str, str | None, str]:
        """What vLLM opens as the base, its revision on the Hub, and the name it answers under."""
        if adapter.base is not None:
            version, path = self._hold(Reference(adapter.base.name, digest=adapter.base.digest))
            self._reporter.note(f"with its base {version} ({version.digest}) from {path}")
            return str(path), None, version.name
        base = self._cache.manifest(adapter.digest).base or Base()
        if base.hub is not None:
            return base.hub, base.revision, base.hub
        raise Refused(
            f"{adapter} is an adapter whose base was not published, so this node does not have it",
            hint="Publish the base model, then the adapter again with --base NAME/VERSION --force.",
        )
