"""What this node lacks of a version: foreseen, linked, copied and fetched, each chunk checked, its name given last."""

from __future__ import annotations

import os
import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from packtrain.cache import Partial, finished_chunks
from packtrain.errors import IntegrityError, LocalDiskError, NotFound, PacktrainError, Refused, disk_error
from packtrain.flows import integrity
from packtrain.flows.download import StoreSource, download
from packtrain.flows.naming import namer
from packtrain.flows.pull import Node, Snapshot, resolve
from packtrain.flows.reuse import Borrowed, borrowing, copy_chunks, recheck
from packtrain.model.amount import size
from packtrain.model.digest import Digest
from packtrain.model.manifest import FILE_NAME, Manifest, refuse_unsafe
from packtrain.model.pacing import START
from packtrain.model.reference import Reference
from packtrain.model.sourcing import AtHand, Plan, Share
from packtrain.model.version import ModelVersion, how_to_mend
from packtrain.ports import Store


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a pull would do. In bytes: ``here`` is here already (a snapshot, or of an interrupted download); what
    snapshots of this node give, by what people call them; and what would be fetched, the ``manifest`` besides."""

    version: ModelVersion
    here: int
    shares: tuple[tuple[str, Share], ...]
    fetched: int
    chunks: int
    requests: int
    manifest: int


def foresee(node: Node, reference: Reference, *, to: Path | None = None) -> Outlook:
    """What a pull of a version, into the cache or ``to`` a directory, would link, copy and fetch. Changes nothing."""
    version = resolve(node.registry, reference, node.reporter)
    if node.cache.holds(version.digest) if to is None else _holds(to, version):
        return Outlook(version, version.size, (), 0, 0, 0, 0)
    manifest = read_manifest(node.store, version)
    with borrowing(node.cache, manifest) as borrowed:
        at_hand = borrowed.at_hand
        if to is None:
            finished = node.cache.begun(version.digest, manifest)
        else:
            at_hand = AtHand({}, at_hand.chunks)
            finished = finished_chunks(_beside(to.absolute(), version), manifest, node.cache.boot)
        plan = Plan.of(manifest, at_hand, finished)
    name_of = namer(node.registry)
    return Outlook(
        version,
        plan.here,
        tuple((name_of(share.snapshot), share) for share in plan.shares),
        plan.ways.fetched,
        plan.chunks,
        plan.requests,
        manifest.encoded_size,
    )


def read_manifest(store: Store, version: ModelVersion) -> Manifest:
    """The manifest of a version, checked against its digest and against law 8."""
    key = version.prefix + FILE_NAME
    try:
        data = store.get(key)
    except NotFound as error:
        if version.collected:
            raise NotFound(
                f"{version} was archived, and its bytes were collected as garbage",
                hint=f"Pull another version (packtrain models {version.name}), or publish it again from its directory.",
            ) from error
        raise IntegrityError(
            f"the manifest of {version} is missing: {store.locate(key)}",
            hint=how_to_mend(version.name),
        ) from error
    try:
        manifest = Manifest.decode(data, expect=version.digest, what=store.locate(key))
    except IntegrityError as error:
        if Digest.of(data) != version.digest:  # else it is whole, and written by another Packtrain
            error.hint = how_to_mend(version.name)
        raise
    refuse_unsafe((file.path for file in manifest.files), allow_code=version.code, what=str(version))
    return manifest


def fetch(node: Node, version: ModelVersion) -> Snapshot:
    """Makes the version a snapshot. Only under its pin and the lock of its download."""
    cache, digest = node.cache, version.digest
    node.store.prepare(version.prefix + FILE_NAME, START)
    manifest = read_manifest(node.store, version)
    name_of = namer(node.registry, version)
    with ExitStack() as pins:
        borrowed = pins.enter_context(borrowing(cache, manifest))
        try:
            partial = cache.begin(digest, manifest, name_of=name_of, links=borrowed.links)
        except LocalDiskError:
            if not borrowed.directories:
                raise
            pins.close()  # there may be room if what could be copied from goes
            borrowed = Borrowed()
            partial = cache.begin(digest, manifest, name_of=name_of)
        copied, fetched = _complete(node, version, manifest, borrowed, partial)
        if partial.linked or copied:
            names = ", ".join(sorted(name_of(each) for each in borrowed.directories))
            node.reporter.note(
                f"used again from {names}: {size(partial.linked)} linked, {size(copied)} copied; "
                f"{size(fetched)} fetched"
            )
        path = cache.admit(digest, partial)
    return Snapshot(path, version, fetched, linked=partial.linked, copied=copied)


def fetch_to(node: Node, version: ModelVersion, target: Path) -> Snapshot:
    """A directory of the user's own, completed beside its place and renamed into it."""
    waiting = f"waiting: another process pulls {version}"
    with node.cache.fetching(version.digest, on_wait=lambda: node.reporter.note(waiting)):
        manifest = read_manifest(node.store, version)
        if _is_occupied(target):
            if not _holds(target, version):
                raise Refused(
                    f"{target} is not empty and does not hold {version}; nothing was written",
                    hint="Give --to a folder that does not exist yet.",
                )
            integrity.check_directory(target, manifest, node.reporter)
            shutil.rmtree(_beside(target, version), ignore_errors=True)  # of a pull that died right after the renaming
            return Snapshot(target, version, 0)
        with borrowing(node.cache, manifest) as borrowed:  # copies alone: these files may be written to
            partial = Partial(_beside(target, version), manifest, node.cache.boot)
            copied, fetched = _complete(node, version, manifest, borrowed, partial)
        partial.publish_as(target)
        return Snapshot(target, version, fetched, copied=copied)


def _beside(target: Path, version: ModelVersion) -> Path:
    """Where a directory of the user's own is completed. Its name is no longer than names may be."""
    name = os.fsdecode(os.fsencode(target.name)[:200])
    return target.parent / f".{name}.{version.digest.short}.partial"


def _is_occupied(target: Path) -> bool:
    """Whether it is a directory that is not empty. Raises LocalDiskError if it cannot become one."""
    try:
        return any(target.iterdir())
    except FileNotFoundError:
        return False
    except OSError as error:
        raise disk_error(error, f"{target} cannot be used as a folder") from error


def _complete(
    node: Node, version: ModelVersion, manifest: Manifest, borrowed: Borrowed, partial: Partial
) -> tuple[int, int]:
    """Gets what ``partial`` lacks. Returns the bytes copied and fetched. After wrong bytes nothing stays; after any
    other failure it can go on."""
    try:
        recheck(manifest, partial, node.reporter)
        copied = copy_chunks(borrowed, manifest, partial, node.reporter)
        source = StoreSource(node.store, version.prefix)
        fetched = download(
            [source],
            manifest,
            partial.finished,
            partial,
            what="fetching",
            limits=node.limits,
            reporter=node.reporter,
            clock=node.clock,
        )
    except IntegrityError:
        partial.discard()
        raise
    except BaseException:
        partial.close()
        raise
    return copied, fetched


def _holds(directory: Path, version: ModelVersion) -> bool:
    try:
        Manifest.decode((directory / FILE_NAME).read_bytes(), expect=version.digest)
    except (OSError, PacktrainError):
        return False
    return True
