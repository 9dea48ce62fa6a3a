"""A directory becomes a version: content first, name last.

Nothing is visible before the last event. A crash anywhere leaves objects under a digest that no version names; the
same command again finds them and goes on.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from threading import Lock

from packtrain.errors import AlreadyExists, IntegrityError, PreflightRefused, Unavailable
from packtrain.flows import bases
from packtrain.flows.hashing import LocalFile, checked_body, hash_files
from packtrain.flows.promote import Move, promote
from packtrain.flows.workers import Halt, run_all
from packtrain.model.digest import Digest
from packtrain.model.finding import Finding
from packtrain.model.ledger import timestamp
from packtrain.model.lineage import Lineage, record_key
from packtrain.model.manifest import FILE_NAME, FileEntry, Manifest
from packtrain.model.reference import Reference, check_alias, check_name
from packtrain.model.version import ModelVersion, version_prefix
from packtrain.ports import Clock, Registry, Reporter, Store
from packtrain.training.checkpoint import Checkpoint, inspect
from packtrain.training.generated import generate
from packtrain.training.lineage import read_lineage
from packtrain.training.preflight import preflight

THREADS = 4  # files uploaded at once; the store may send several parts of each at once
LEASE = timedelta(hours=1)  # how long a publish that stopped answering keeps its upload from being collected


@dataclass(frozen=True, slots=True)
class Request:
    """What the user asked for. ``base`` is NAME/2, a PATH or hf:ORG/NAME[@REV]; the lineage's files are optional."""

    directory: Path
    name: str
    alias: str | None = None
    training_config: Path | None = None
    export_config: Path | None = None
    training_dir: Path | None = None
    base: str | None = None
    allow_code: bool = False
    force: bool = False
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class Published:
    """What a publish did. Sizes in bytes.

    ``version`` is None after a dry run of new bytes; ``created`` is False when these bytes were a version already;
    ``uploaded`` is what was sent, or after a dry run would be. ``findings`` are preflight's warnings.
    """

    name: str
    digest: Digest
    kind: str
    size: int
    version: ModelVersion | None
    created: bool
    uploaded: int
    left: tuple[str, ...]
    findings: tuple[Finding, ...]
    move: Move | None


def publish(store: Store, registry: Registry, request: Request, *, reporter: Reporter, clock: Clock) -> Published:
    """Checks, hashes, uploads what the store lacks, checks what the store holds, and only then names it."""
    check_name(request.name)
    if request.alias:
        check_alias(request.alias)
    checkpoint = inspect(request.directory)
    findings = _preflight(checkpoint, request, reporter)
    base = bases.resolve(checkpoint, request.base, registry, reporter)
    files = _files(checkpoint)
    manifest = Manifest.of(checkpoint.kind, hash_files(files, reporter), base.for_manifest(checkpoint.kind))
    digest = manifest.digest
    version = registry.read(request.name).state.same_payload(manifest.payload)
    created, uploaded = False, 0
    if version is None or request.force:
        if request.dry_run:
            version = None
            lacking = _lacking(store, version_prefix(request.name, digest), manifest)
            uploaded = sum(file.size for file in lacking)
        else:
            lineage = base.note(_lineage(checkpoint, request))
            code = any(finding.code == "custom-code" for finding in findings)  # --allow-code, or it was refused
            version, created, uploaded = _create(
                store, registry, request.name, files, manifest, lineage, base, code, request.force, reporter, clock
            )
    move = None
    if request.alias and version and not request.dry_run:
        reference = Reference(request.name, version=version.number)
        move = promote(registry, reference, request.alias, expect=None, reason="publish --alias")
    return Published(
        name=request.name,
        digest=version.digest if version else digest,
        kind=manifest.kind,
        size=manifest.size,
        version=version,
        created=created,
        uploaded=uploaded,
        left=tuple(left.path for left in checkpoint.left),
        findings=findings,
        move=move,
    )


def _preflight(checkpoint: Checkpoint, request: Request, reporter: Reporter) -> tuple[Finding, ...]:
    for left in checkpoint.left:
        reporter.note(f"left behind: {left.path} ({left.why})")
    findings = preflight(checkpoint, allow_code=request.allow_code)
    refusals = [finding for finding in findings if finding.level == "refuse"]
    if refusals:
        more = f" (and {len(refusals) - 1} more)" if len(refusals) > 1 else ""
        raise PreflightRefused(
            f"{request.directory} cannot be served as it is: {refusals[0]}{more}; nothing was published",
            findings=findings,
            hint=refusals[0].fix,
        )
    for finding in findings:
        reporter.note(f"warning: {finding}. {finding.fix}")
    return findings


def _files(checkpoint: Checkpoint) -> list[LocalFile]:
    taken = [LocalFile(path, source=checkpoint.directory / path) for path in checkpoint.taken]
    made = [
        LocalFile(
            file.path,
            source=checkpoint.directory / file.copy_of if file.copy_of else None,
            content=file.content or b"",
            generated=True,
        )
        for file in generate(checkpoint)
    ]
    return taken + made


def _lineage(checkpoint: Checkpoint, request: Request) -> Lineage:
    return read_lineage(
        checkpoint.directory,
        training_config=request.training_config,
        export_config=request.export_config,
        training_dir=request.training_dir,
    )


def _create(
    store: Store,
    registry: Registry,
    name: str,
    files: list[LocalFile],
    manifest: Manifest,
    lineage: Lineage,
    base: bases.ResolvedBase,
    code: bool,
    force: bool,
    reporter: Reporter,
    clock: Clock,
) -> tuple[ModelVersion, bool, int]:
    """The version, whether it is new, and the bytes that were uploaded for it."""
    digest = manifest.digest
    prefix = version_prefix(name, digest)
    lease = _Lease(registry, name, digest, clock)
    lease.renew()
    if (held := base.version) is not None:
        registry.change(held.name, lambda state: state.reference(held.digest, name, digest))
    uploaded = _upload(store, prefix, files, manifest, lease, reporter)
    _seal(store, prefix, manifest)
    record = Digest.of(lineage.encode())
    _create_if_absent(store, record_key(name, record), lineage.encode())
    registry.change(name, lambda state: state.attach(digest, "lineage", record))
    log, event = registry.change(
        name,
        lambda state: state.create_version(
            manifest,
            digest,
            lease.publish_id,
            code=code,
            base=base.version,
            force=force,
        ),
    )
    if event is not None:
        return log.state.version(event.details["version"]), True, uploaded
    version = log.state.same_payload(manifest.payload)
    assert version is not None
    return version, False, uploaded


class _Lease:
    """Tells garbage collection that this publish lives: an event before the first upload, renewed in time."""

    def __init__(self, registry: Registry, name: str, digest: Digest, clock: Clock) -> None:
        self.publish_id = uuid.uuid4().hex
        self._registry = registry
        self._name = name
        self._digest = digest
        self._clock = clock
        self._lock = Lock()
        self._renew_at = datetime.min.replace(tzinfo=clock.now().tzinfo)

    def renew(self) -> None:
        """Writes the event if half of the lease is over."""
        with self._lock:
            now = self._clock.now()
            if now < self._renew_at:
                return
            until = timestamp(now + LEASE)
            self._registry.change(self._name, lambda state: state.begin_publish(self._digest, self.publish_id, until))
            self._renew_at = now + LEASE / 2


def _upload(
    store: Store, prefix: str, files: list[LocalFile], manifest: Manifest, lease: _Lease, reporter: Reporter
) -> int:
    local = {file.path: file for file in files}
    lacking = _lacking(store, prefix, manifest)
    total = sum(file.size for file in lacking)
    if total < manifest.size:
        reporter.note(f"the store holds {len(manifest.files) - len(lacking)} of {len(manifest.files)} files already")

    def upload_file(entry: FileEntry, halt: Halt) -> None:
        lease.renew()
        body = (_renewing(piece, lease) for piece in checked_body(local[entry.path], entry, reporter, halt))
        store.upload(prefix + entry.path, body, entry.size)

    reporter.begin("uploading", total)
    try:
        run_all(upload_file, sorted(lacking, key=lambda f: -f.size), threads=THREADS, name="upload")
    finally:
        reporter.end()
    return total


def _renewing(piece: bytes, lease: _Lease) -> bytes:
    lease.renew()
    return piece


def _lacking(store: Store, prefix: str, manifest: Manifest) -> list[FileEntry]:
    """The files that the store does not hold whole. An object under a digest's prefix is written whole or not at
    all, and its chunks were checked on their way, so its size tells."""
    sizes = {info.key.removeprefix(prefix): info.size for info in store.list(prefix)}
    return [file for file in manifest.files if sizes.get(file.path) != file.size]


def _seal(store: Store, prefix: str, manifest: Manifest) -> None:
    """Asks the store what it holds, then writes the manifest, the last object of the directory."""
    if missing := _lacking(store, prefix, manifest):
        raise Unavailable(
            f"the store does not hold {missing[0].path} although it took it; nothing was published",
            hint="Run the command again. If it happens again, look at the store's own log and lifecycle rules.",
        )
    _create_if_absent(store, prefix + FILE_NAME, manifest.encode())


def _create_if_absent(store: Store, key: str, data: bytes) -> None:
    """Writes a content-addressed object. One that is there must be the same."""
    try:
        store.create(key, data)
    except AlreadyExists:
        if store.get(key) != data:
            raise IntegrityError(
                f"{store.locate(key)} is not what its name says",
                hint="The store was changed by something other than Packtrain; `packtrain verify` shows how far.",
            ) from None
