"""The files of an archived version move to a storage class that costs less to keep."""

from __future__ import annotations

from packtrain.errors import IntegrityError
from packtrain.flows.workers import Halt, run_all
from packtrain.model.version import ModelVersion, how_to_mend
from packtrain.ports import Multipart, ObjectInfo, Reporter, Store

THREADS = 4
# Bytes. Colder classes charge at least as many for each object; and what shows a version can be read at once.
SMALLEST = 128 << 10


def move_colder(store: Store, version: ModelVersion, storage_class: str, reporter: Reporter) -> None:
    """May be interrupted and repeated. Raises UsageError for a class that the store does not have, IntegrityError if an
    object is not what it was, by the checksum that the store keeps."""
    multipart = store.multipart
    assert multipart is not None
    objects = [info for info in store.list(version.prefix) if info.size >= SMALLEST]
    reporter.begin(f"moving to {storage_class}", sum(info.size for info in objects))
    try:
        run_all(
            lambda info, halt: _move(multipart, version, info, storage_class, reporter, halt),
            sorted(objects, key=lambda info: -info.size),
            threads=THREADS,
            name="move",
        )
    finally:
        reporter.end()


def _move(
    multipart: Multipart, version: ModelVersion, info: ObjectInfo, storage_class: str, reporter: Reporter, halt: Halt
) -> None:
    halt.check()
    before = multipart.crc32(info.key)
    multipart.reclass(info.key, info.size, storage_class)
    after = multipart.crc32(info.key)
    if None not in (before, after) and before != after:
        raise IntegrityError(
            f"{info.key} is not what it was before it was moved to {storage_class}", hint=how_to_mend(version.name)
        )
    reporter.advance(info.size)
