"""What a model was made from: a published version, local bytes, or a repository on the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from packtrain.errors import IntegrityError, LocalDiskError, NotFound, Refused, UsageError
from packtrain.flows.hashing import hash_files
from packtrain.flows.sources import LocalFile, NewFile
from packtrain.model.digest import Digest
from packtrain.model.finding import Finding
from packtrain.model.lineage import Lineage, Parent
from packtrain.model.manifest import FILE_NAME, MAX_BYTES, Base, Manifest
from packtrain.model.reference import Reference
from packtrain.model.version import BaseVersion, ModelVersion, version_prefix
from packtrain.ports import Registry, Reporter, Store
from packtrain.training.checkpoint import ADAPTER_CONFIG, Checkpoint, inspect
from packtrain.training.documents import Malformed, file_size, is_folder, parse_object, read_bytes
from packtrain.training.preflight.base import Base as BaseModules
from packtrain.training.preflight.base import base_in, base_of

_HUB = "hf:"


@dataclass(frozen=True, slots=True)
class ResolvedBase:
    """What is known of a base: nothing, its bytes' identity, its place on the Hub, or the version that holds it."""

    base: Base | None = None
    version: BaseVersion | None = None
    given: str | None = None  # how the user called it

    def finding(self, kind: str) -> Finding | None:
        """What the owner of an adapter should know of its base, if no version holds it."""
        if kind != "adapter" or self.version is not None:
            return None
        if self.base and self.base.hub:
            what = f"its base {self.base.hub} is not a published version: every node fetches it from the Hub"
            fix = "Publish the base and give --base NAME/1, so that all nodes have the same bytes."
        else:
            what = "its base is not a published version, so nodes cannot serve it yet"
            fix = "Publish the base, then give --base NAME/1."
        return Finding("warn", "base-unpublished", ADAPTER_CONFIG, what, fix)

    def for_manifest(self, kind: str) -> Base | None:
        """Only an adapter needs its base; that of a merged model is lineage."""
        return self.base if kind == "adapter" else None

    def note(self, lineage: Lineage) -> Lineage:
        """The lineage with what is known of the base."""
        if self.base is None:
            return lineage
        trained_on = lineage.base.name if lineage.base else None
        parent = Parent(
            name=self.base.hub or trained_on or self.given or str(self.version),
            revision=self.base.revision,
            version=str(self.version) if self.version else None,
            digest=str(self.base.manifest) if self.base.manifest else None,
            payload=str(self.base.payload) if self.base.payload else None,
        )
        return replace(lineage, base=parent)


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
    return ResolvedBase()


def _given(text: str, registry: Registry, reporter: Reporter) -> ResolvedBase:
    if text.startswith(_HUB):
        repository, _, revision = text.removeprefix(_HUB).partition("@")
        if repository.count("/") != 1:
            raise UsageError(f"{text!r} is not a repository", hint="Write hf:ORG/NAME or hf:ORG/NAME@REVISION.")
        return ResolvedBase(Base(hub=repository, revision=revision or None))
    if Path(text).is_dir():
        return _local(Path(text), registry, reporter)
    version = _published(text, registry)
    held = BaseVersion(version.name, version.number, version.digest)
    return ResolvedBase(Base(manifest=version.digest, payload=version.payload), held)


def _published(text: str, registry: Registry) -> ModelVersion:
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
    return version


def modules(checkpoint: Checkpoint, given: str | None, store: Store, registry: Registry) -> BaseModules | None:
    """What preflight can hold an adapter against: its base's modules, where they can be had without reading it."""
    named = given or checkpoint.document(ADAPTER_CONFIG).get("base_model_name_or_path")
    if checkpoint.kind != "adapter" or not isinstance(named, str) or named.startswith(_HUB):
        return None
    if is_folder(Path(named)):
        return base_in(Path(named))
    if given is None:
        return None
    version = _published(given, registry)
    if version.archived:
        raise Refused(
            f"{version} is archived and cannot be the base of an adapter",
            hint="Publish the base model again, then the adapter.",
        )
    try:
        return base_of(parse_object(store.get(f"{version_prefix(version.name, version.digest)}config.json")))
    except Malformed:
        return None


def _local(directory: Path, registry: Registry, reporter: Reporter) -> ResolvedBase:
    """The identity of a base's bytes, and the version that holds them if somebody published it."""
    payload, version = _identity(directory, "base model", registry, reporter)
    if version is None:
        return ResolvedBase(Base(payload=payload), given=str(directory))
    held = BaseVersion(version.name, version.number, version.digest)
    return ResolvedBase(Base(manifest=version.digest, payload=payload), held)


def identify(lineage: Lineage, folders: Sequence[Path], registry: Registry, reporter: Reporter) -> Lineage:
    """The lineage with digests of the models that went into this one, where they are here: their paths are taken
    from ``folders``. What cannot be read stays unknown, because a lineage must not stop a publish."""

    def identified(parent: Parent, what: str) -> Parent:
        place = next((folder / parent.name for folder in folders if is_folder(folder / parent.name)), None)
        if parent.payload or parent.version or place is None:
            return parent
        try:
            payload, version = _identity(place, what, registry, reporter)
        except (Refused, LocalDiskError, NotFound) as error:
            reporter.note(f"warning: the lineage will not say which bytes the {what} in {place} has: {error}")
            return parent
        digest = str(version.digest) if version else None
        return replace(parent, version=str(version) if version else None, digest=digest, payload=str(payload))

    return replace(
        lineage,
        base=identified(lineage.base, "base model") if lineage.base else None,
        adapters=tuple(identified(adapter, "adapter") for adapter in lineage.adapters),
    )


def holder(registry: Registry, payload: Digest) -> ModelVersion | None:
    """A live version of any registered model that holds exactly these exported bytes."""
    found = (registry.read(name).state.same_payload(payload) for name in registry.names())
    return next((version for version in found if version is not None), None)


def _identity(directory: Path, what: str, registry: Registry, reporter: Reporter) -> tuple[Digest, ModelVersion | None]:
    """The payload of a model's directory, and the version that holds it. Reads every byte, unless it is a published
    version's own directory: then its manifest and the sizes of its files are enough to say."""
    if (version := _pulled(directory, registry)) is not None:
        reporter.note(f"the {what} in {directory} is {version}, by its {FILE_NAME}")
        return version.payload, version
    reporter.note(f"reading the {what} in {directory} to find out whether it is published")
    payload = payload_of(directory, what, reporter)
    if (version := holder(registry, payload)) is not None:
        reporter.note(f"the {what} is {version}")
    return payload, version


def _pulled(directory: Path, registry: Registry) -> ModelVersion | None:
    try:
        manifest = Manifest.decode(read_bytes(directory / FILE_NAME, limit=MAX_BYTES))
        if any(file_size(directory / file.path) != file.size for file in manifest.files):
            return None
    except (NotFound, LocalDiskError, IntegrityError, Malformed):
        return None
    version = holder(registry, manifest.payload)
    return version if version and version.digest == manifest.digest else None


def payload_of(directory: Path, what: str, reporter: Reporter) -> Digest:
    """The identity of a model's exported bytes. Reads them all. Raises Refused."""
    model = inspect(directory)
    if model.findings:
        raise Refused(f"the {what} in {directory} cannot be read: {model.findings[0]}", hint=model.findings[0].fix)
    files = [NewFile(path, LocalFile(model.directory / path)) for path in model.taken]
    return Manifest.of(model.kind, hash_files(files, reporter)).payload
