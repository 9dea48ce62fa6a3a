"""A directory becomes a version: content first, name last.

Nothing is visible before the last event. A crash anywhere leaves objects under a digest that no version names; the
same command again finds them and goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from packtrain.errors import IntegrityError, PacktrainError, PreflightRefused
from packtrain.flows import bases, integrity
from packtrain.flows.copyable import find_copyable
from packtrain.flows.hashing import Checksums, Hashed, hash_and_check, hash_files
from packtrain.flows.promote import Move, promote
from packtrain.flows.sending import Traffic
from packtrain.flows.sources import LocalDirectory, NewFile, Origin, files_of
from packtrain.flows.storing import Lease, Load, find_lacking, find_wrong, seal, send, settle
from packtrain.model.digest import Digest
from packtrain.model.finding import Finding
from packtrain.model.ledger import State
from packtrain.model.lineage import Lineage, record_key
from packtrain.model.manifest import FileEntry, Manifest
from packtrain.model.reference import Reference, check_alias, check_name
from packtrain.model.version import ModelVersion, version_prefix
from packtrain.ports import Clock, Registry, Reporter, Store
from packtrain.training.checkpoint import Checkpoint, inspect
from packtrain.training.lineage import read_lineage
from packtrain.training.preflight import preflight

_ATTEMPTS = 3  # of one publish, each overtaken by garbage collection: beyond that a clock is wrong


@dataclass(frozen=True, slots=True)
class Request:
    """What the user asked for. ``base`` is NAME/2, a PATH or hf:ORG/NAME[@REV]; the lineage's files are optional."""

    directory: Path
    name: str
    alias: str | None = None
    training_config: Path | None = None
    export_config: Path | None = None
    training_dir: Path | None = None
    exported_with: str | None = None  # version of LLaMA-Factory
    base: str | None = None
    allow_code: bool = False
    force: bool = False
    paranoid: bool = False  # read everything back
    dry_run: bool = False

    @property
    def folders(self) -> list[Path]:
        """From where a configuration's paths are taken: LLaMA-Factory's way first."""
        configs = (self.export_config, self.training_config)
        return [Path.cwd(), *(config.absolute().parent for config in configs if config)]


@dataclass(frozen=True, slots=True)
class Published:
    """What a publish did. Sizes in bytes.

    ``version`` is None after a dry run of new bytes; ``created`` is False when these bytes were a version already;
    ``uploaded`` is what was sent to the store, or after a dry run would be at most; ``copied`` is what the store copied
    by itself from what it holds. ``findings`` are preflight's warnings;
    ``lineage`` is what is known of how the checkpoint was made.
    """

    name: str
    digest: Digest
    kind: str
    size: int
    version: ModelVersion | None
    created: bool
    uploaded: int
    copied: int
    left: tuple[str, ...]
    findings: tuple[Finding, ...]
    lineage: Lineage
    move: Move | None


@dataclass(frozen=True, slots=True)
class _Candidate:
    """What is about to become a version."""

    origin: Origin
    files: list[NewFile]
    checksums: Checksums
    manifest: Manifest
    base: bases.ResolvedBase
    lineage: Lineage
    code: bool
    record: bytes = b""  # the lineage, as it is stored


def publish(store: Store, registry: Registry, request: Request, *, reporter: Reporter, clock: Clock) -> Published:
    """Checks, hashes, uploads what the store lacks, checks what the store holds, and only then names it."""
    checkpoint = inspect(request.directory)
    return publish_checkpoint(store, registry, request, checkpoint, LocalDirectory(checkpoint), reporter, clock)


def publish_checkpoint(
    store: Store,
    registry: Registry,
    request: Request,
    checkpoint: Checkpoint,
    origin: Origin,
    reporter: Reporter,
    clock: Clock,
) -> Published:
    """`publish`, for a checkpoint whose bytes come from ``origin``."""
    check_name(request.name)
    if request.alias:
        check_alias(request.alias)
    findings = _preflight(store, registry, checkpoint, request, reporter)
    lineage = lineage_of(checkpoint, request, reporter)
    base = bases.resolve(checkpoint, request.base, registry, reporter)
    if (unpublished := base.finding(checkpoint.kind)) is not None:
        findings = (*findings, _told(unpublished, reporter))
    files = files_of(checkpoint, origin)
    hashed = _hash(store, files, reporter)
    manifest = Manifest.of(checkpoint.kind, hashed.entries, base.for_manifest(checkpoint.kind))
    code = any(finding.code == "custom-code" for finding in findings)  # --allow-code, or it was refused
    candidate = _Candidate(origin, files, hashed.checksums, manifest, base, base.note(lineage), code)
    state = registry.read(request.name).state
    version = state.same_payload(manifest.payload)
    created, traffic = False, Traffic()
    if version is None or request.force:
        if request.dry_run:
            version = None
            manifest = state.uncondemned(manifest)
            lacking = find_lacking(store, version_prefix(request.name, manifest.digest), manifest)
            traffic = Traffic(sent=sum(file.size for file in lacking))
        else:
            lineage = bases.identify(candidate.lineage, request.folders, registry, reporter)
            candidate = replace(candidate, lineage=lineage)
            version, created, traffic = _create(store, registry, request, candidate, reporter, clock)
    move = None
    if request.alias and version and not request.dry_run:
        reference = Reference(request.name, version=version.number)
        move = promote(registry, reference, request.alias, expect=None, reason="publish --alias")
    return Published(
        name=request.name,
        digest=version.digest if version else manifest.digest,
        kind=manifest.kind,
        size=manifest.size,
        version=version,
        created=created,
        uploaded=traffic.sent,
        copied=traffic.copied,
        left=tuple(left.path for left in checkpoint.left),
        findings=findings,
        lineage=candidate.lineage,
        move=move,
    )


def _hash(store: Store, files: list[NewFile], reporter: Reporter) -> Hashed:
    if store.multipart is None:
        return Hashed(hash_files(files, reporter), {})
    store.multipart.warm()
    return hash_and_check(files, reporter)


def _preflight(
    store: Store, registry: Registry, checkpoint: Checkpoint, request: Request, reporter: Reporter
) -> tuple[Finding, ...]:
    for left in checkpoint.left:
        reporter.note(f"left behind: {left.path} ({left.why})")
    modules = bases.modules(checkpoint, request.base, store, registry)
    findings = preflight(checkpoint, allow_code=request.allow_code, base=modules)
    refusals = [finding for finding in findings if finding.level == "refuse"]
    if refusals:
        more = f" (and {len(refusals) - 1} more)" if len(refusals) > 1 else ""
        raise PreflightRefused(
            f"{request.directory} cannot be served as it is: {refusals[0]}{more}; nothing was published",
            findings=findings,
            hint=refusals[0].fix,
        )
    return tuple(_told(finding, reporter) for finding in findings)


def _told(warning: Finding, reporter: Reporter) -> Finding:
    reporter.note(f"warning: {warning}. {warning.fix}")
    return warning


def lineage_of(checkpoint: Checkpoint, request: Request, reporter: Reporter) -> Lineage:
    """What the training and the request say. Raises UsageError and NotFound for files that were given."""
    lineage = read_lineage(
        checkpoint.directory,
        training_config=request.training_config,
        export_config=request.export_config,
        training_dir=request.training_dir,
        exported_with=request.exported_with,
    )
    for contradiction in lineage.contradictions:
        reporter.note(f"warning: is this the configuration it was trained with? {contradiction}")
    return lineage


def _create(
    store: Store, registry: Registry, request: Request, candidate: _Candidate, reporter: Reporter, clock: Clock
) -> tuple[ModelVersion, bool, Traffic]:
    """The version, whether it is new, and what it took.

    A publish that slept past its lease may find that garbage collection gave up what it had sent. Then it starts anew,
    under another digest.
    """
    attempt = 1
    while True:
        state = registry.read(request.name).state
        candidate = replace(
            candidate,
            manifest=state.uncondemned(candidate.manifest),
            record=state.uncondemned_record(candidate.lineage.encode()),
        )
        try:
            return _attempt(store, registry, state, request, candidate, reporter, clock)
        except PacktrainError as error:  # among others, that an object is gone
            condemned = registry.read(request.name).state.condemned
            if attempt == _ATTEMPTS or condemned.isdisjoint({candidate.manifest.digest, Digest.of(candidate.record)}):
                raise
            reporter.note(
                "garbage collection gave up what this publish had sent, because it showed no sign of life for longer "
                f"than its lease ({error}). It starts anew"
            )
            attempt += 1


def _attempt(
    store: Store,
    registry: Registry,
    state: State,
    request: Request,
    candidate: _Candidate,
    reporter: Reporter,
    clock: Clock,
) -> tuple[ModelVersion, bool, Traffic]:
    """``state``: of the ledger, as it was just read."""
    name, manifest = request.name, candidate.manifest
    digest = manifest.digest
    prefix = version_prefix(name, digest)
    lease = Lease(registry, name, digest, clock)
    lease.renew()
    held = candidate.base.version if manifest.kind == "adapter" else None  # a merged model's is lineage alone
    if held is not None:
        registry.change(held.name, lambda state: state.reference(held.digest, name, digest))
    known = request.paranoid or any(version.digest == digest for version in state.versions.values())
    wrong = find_wrong(store, prefix, manifest, reporter, checksums=None if known else candidate.checksums)
    load = Load(
        prefix,
        files={file.path: file for file in candidate.files},
        checksums=candidate.checksums,
        copyable=find_copyable(store, registry, state, manifest, candidate.base.version),
        renew=lease.renew,
    )
    traffic = send(store, load, wrong.all, reporter)
    candidate.origin.require_unchanged()
    if request.paranoid:
        _read_back(store, prefix, wrong.all, reporter)
    seal(store, prefix, manifest)
    record = Digest.of(candidate.record)
    settle(store, record_key(name, record), candidate.record)
    registry.change(name, lambda state: state.attach(digest, "lineage", record))
    log, event = registry.change(
        name,
        lambda state: state.create_version(
            manifest,
            digest,
            lease.publish_id,
            code=candidate.code,
            base=held,
            force=request.force,
        ),
    )
    if event is not None:
        return log.state.version(event.details["version"]), True, traffic
    version = log.state.same_payload(manifest.payload)
    assert version is not None
    return version, False, traffic


def _read_back(store: Store, prefix: str, entries: Sequence[FileEntry], reporter: Reporter) -> None:
    """Of what was sent; what was there before was read then."""
    for entry in integrity.find_damaged(store, prefix, entries, reporter):
        raise IntegrityError(
            f"{store.locate(prefix + entry.path)} is not what was just sent there; nothing was published",
            hint="Look at the store's disks and log, then run the command again: it sends again what is damaged.",
        )
