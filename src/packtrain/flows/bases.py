"""What an adapter's base is: a published version, local bytes, or a repository on the Hugging Face Hub."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from packtrain.errors import Refused, UsageError
from packtrain.flows.hashing import hash_files
from packtrain.flows.sources import LocalFile, NewFile
from packtrain.model.digest import Digest
from packtrain.model.lineage import Lineage
from packtrain.model.manifest import Base, Manifest
from packtrain.model.reference import Reference
from packtrain.model.version import BaseVersion
from packtrain.ports import Registry, Reporter
from packtrain.training.checkpoint import ADAPTER_CONFIG, Checkpoint, inspect

_HUB = "hf:"


@dataclass(frozen=True, slots=True)
class ResolvedBase:
    """What is known of a base: nothing, its bytes' identity, its place on the Hub, or the version that holds it."""

    base: Base | None = None
    version: BaseVersion | None = None

    def for_manifest(self, kind: str) -> Base | None:
        """Only an adapter needs its base; that of a merged model is lineage."""
        return self.base if kind == "adapter" else None

    def note(self, lineage: Lineage) -> Lineage:
        """The lineage with what is known of the base."""
        if self.base is None:
            return lineage
        hub = f"{self.base.hub}@{self.base.revision}" if self.base.revision else self.base.hub
        return replace(
            lineage,
            base_model=str(self.version) if self.version else hub or lineage.base_model,
            base_digest=str(self.base.manifest) if self.base.manifest else None,
            base_payload=str(self.base.payload) if self.base.payload else None,
        )


def resolve(checkpoint: Checkpoint, given: str | None, registry: Registry, reporter: Reporter) -> ResolvedBase:
    """The base that the user gave, or that the adapter's own configuration names. Raises UsageError, NotFound."""
    if given is not None:
        return _given(given, registry, reporter)
    named = checkpoint.document(ADAPTER_CONFIG).get("base_model_name_or_path")
    if checkpoint.kind != "adapter" or not isinstance(named, str) or not named:
        return ResolvedBase()
    if Path(named).is_dir():
        return _local(Path(named), registry, reporter)
    if named.count("/") == 1 and not named.startswith((".", "/")):
        return ResolvedBase(Base(hub=named))
    reporter.note(f"warning: the adapter's base {named} is not here; say what it is with --base to serve it later")
    return ResolvedBase()


def _given(text: str, registry: Registry, reporter: Reporter) -> ResolvedBase:
    if text.startswith(_HUB):
        repository, _, revision = text.removeprefix(_HUB).partition("@")
        if repository.count("/") != 1:
            raise UsageError(f"{text!r} is not a repository", hint="Write hf:ORG/NAME or hf:ORG/NAME@REVISION.")
        return ResolvedBase(Base(hub=repository, revision=revision or None))
    if Path(text).is_dir():
        return _local(Path(text), registry, reporter)
    try:
        reference = Reference.parse(text)
    except UsageError as error:
        raise UsageError(
            f"--base {text!r} is no folder, and not a version or a repository either",
            hint="Write NAME/2 for a published version, a folder's path, or hf:ORG/NAME@REVISION.",
        ) from error
    version = registry.read(reference.name).state.resolve(reference)
    if version.kind != "merged":
        raise Refused(f"{version} is an adapter and cannot be a base", hint="Give the version it was trained on.")
    held = BaseVersion(version.name, version.number, version.digest)
    return ResolvedBase(Base(manifest=version.digest, payload=version.payload), held)


def _local(directory: Path, registry: Registry, reporter: Reporter) -> ResolvedBase:
    """The identity of a base's bytes, and the version that holds them if somebody published it."""
    reporter.note(f"reading the base model in {directory} to find out whether it is published")
    payload = _payload(directory, reporter)
    for name in registry.names():
        if (version := registry.read(name).state.same_payload(payload)) is not None:
            reporter.note(f"the base is {version}")
            held = BaseVersion(version.name, version.number, version.digest)
            return ResolvedBase(Base(manifest=version.digest, payload=payload), held)
    reporter.note(f"warning: the base in {directory} is not published, so nodes cannot serve the adapter yet")
    return ResolvedBase(Base(payload=payload))


def _payload(directory: Path, reporter: Reporter) -> Digest:
    base = inspect(directory)
    if base.findings:
        raise Refused(f"the base in {directory} cannot be read: {base.findings[0]}", hint=base.findings[0].fix)
    files = [NewFile(path, LocalFile(base.directory / path)) for path in base.taken]
    return Manifest.of(base.kind, hash_files(files, reporter)).payload
