"""What a store holds, found by listing it: what is Packtrain's by its name, and what is not."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from packtrain.errors import IntegrityError, NotFound
from packtrain.model.digest import Digest
from packtrain.model.lease import Lease
from packtrain.model.reachability import Key
from packtrain.ports import ObjectInfo, OpenUpload, Store

OURS = {"models", "ledger", "records", "leases", "doctor", "serve"}  # the folders of a store

_NAME = r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]{0,127})"
_FILE = re.compile(rf"models/{_NAME}/(?P<digest>[0-9a-f]{{64}})/.+")
_RECORD = re.compile(rf"records/{_NAME}/(?P<digest>[0-9a-f]{{64}})\.json")
_LEASE = re.compile(rf"leases/{_NAME}/(?P<digest>[0-9a-f]{{64}})/[0-9a-f]{{32}}\.json")
_PROBE = re.compile(r"doctor/[0-9a-f]{32}(\.race)?")


@dataclass(slots=True)
class Folder:
    """The directory of a manifest, whole or not."""

    objects: int = 0
    size: int = 0  # bytes


@dataclass(slots=True)
class Inventory:
    """``leases`` by the manifest that each is about, with their keys; ``parts`` are uploads by parts that nobody has
    completed; ``strangers`` are folders and objects that no Packtrain has made, at most three names deep."""

    folders: dict[Key, Folder] = field(default_factory=dict)
    records: dict[Key, ObjectInfo] = field(default_factory=dict)
    leases: dict[Key, dict[str, Lease]] = field(default_factory=dict)
    parts: list[tuple[Key, OpenUpload]] = field(default_factory=list)
    probes: list[ObjectInfo] = field(default_factory=list)
    strangers: set[str] = field(default_factory=set)


def take(store: Store) -> Inventory:
    """Lists everything but the ledgers, and reads the leases."""
    found = Inventory()

    for key, info in _matching(store, "models/", _FILE, found.strangers):
        folder = found.folders.setdefault(key, Folder())
        folder.objects += 1
        folder.size += info.size
    found.records = dict(_matching(store, "records/", _RECORD, found.strangers))
    found.leases = read_leases(store, "leases/", found.strangers)
    for upload in store.multipart.open_uploads("models/") if store.multipart else ():
        if match := _FILE.fullmatch(upload.key):
            found.parts.append(((match["name"], Digest(match["digest"])), upload))
        else:
            found.strangers.add(_shortened(upload.key))
    for info in store.list("doctor/"):
        if _PROBE.fullmatch(info.key):
            found.probes.append(info)
        else:
            found.strangers.add(_shortened(info.key))
    found.strangers |= {f"{name}/" for name in {*store.children("")} - OURS}
    return found


def read_leases(store: Store, prefix: str, strangers: set[str]) -> dict[Key, dict[str, Lease]]:
    """The leases under a prefix, by the manifest that they are about. What is none goes to ``strangers``."""
    leases: dict[Key, dict[str, Lease]] = {}
    for key, info in _matching(store, prefix, _LEASE, strangers):
        try:
            lease = Lease.decode(store.get(info.key), what=store.locate(info.key))
        except NotFound:  # its holder was done just now
            continue
        except IntegrityError:
            strangers.add(info.key)
            continue
        leases.setdefault(key, {})[info.key] = lease
    return leases


def _matching(
    store: Store, prefix: str, form: re.Pattern[str], strangers: set[str]
) -> Iterator[tuple[Key, ObjectInfo]]:
    for info in store.list(prefix):
        if found := form.fullmatch(info.key):
            yield (found["name"], Digest(found["digest"])), info
        else:
            strangers.add(_shortened(info.key))


def _shortened(key: str) -> str:
    parts = key.split("/")
    return key if len(parts) <= 3 else "/".join([*parts[:3], ""])
