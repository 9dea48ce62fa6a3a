"""A node with a cache, over a store with versions of a few bytes."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from blake3 import blake3

from packtrain.cache import Cache, Pin
from packtrain.flows import caching
from packtrain.flows import pull as flows_pull
from packtrain.flows.pull import Snapshot, hold, pull, resolve
from packtrain.model.amount import Amount
from packtrain.model.digest import Digest
from packtrain.model.manifest import FILE_NAME, Chunks, FileEntry, Manifest
from packtrain.model.pacing import Limits
from packtrain.model.reference import Reference
from packtrain.ports import Store
from packtrain.registry.ledger import LedgerRegistry
from packtrain.registry.memory import SeenLedgers
from packtrain.testing.clock import FakeClock
from packtrain.testing.memory_store import MemoryStore
from tests.flows.conftest import Notes


@dataclass
class Node:
    """One machine under one boot. The clock stands still until a test moves it."""

    store: Store
    home: Path
    boot: str = "boot-1"
    quota: str = "100%"
    floor: str = "0%"
    clock: FakeClock = field(default_factory=FakeClock)

    def __post_init__(self) -> None:
        self.notes = Notes()
        self.cache = Cache(
            self.home / "cache", boot=self.boot, clock=self.clock, quota=Amount(self.quota), floor=Amount(self.floor)
        )
        self.registry = LedgerRegistry(
            self.store,
            SeenLedgers(self.home / "ledgers"),
            actor="tester",
            clock=self.clock,
            nonce=lambda: uuid.uuid4().hex,
        )

    def publish(self, files: Mapping[str, bytes], name: str = "llama") -> Digest:
        """A version of ``files``, without looking at what they are."""
        manifest = Manifest.of(
            "merged",
            [FileEntry(path, len(data), Digest.of(data).hex, _chunks(data)) for path, data in files.items()],
        )
        digest = manifest.digest
        prefix = f"models/{name}/{digest.hex}/"
        for path, data in {**files, FILE_NAME: manifest.encode()}.items():
            self.store.upload(prefix + path, [data], len(data))
        change = self.registry.change
        change(name, lambda state: state.begin_publish(digest, "p", "2030-01-01T00:00:00.000Z"))
        change(name, lambda state: state.create_version(manifest, digest, "p", code=False, base=None, force=True))
        return digest

    def pull(self, reference: str, *, keep: bool = False) -> Snapshot:
        return pull(self.parts, Reference.parse(reference), keep=keep)

    @property
    def parts(self) -> flows_pull.Node:
        return flows_pull.Node(self.store, self.registry, self.cache, self.notes, self.clock, Limits())

    def hold(self, reference: str) -> Pin:
        """What an engine's process would inherit."""
        version = resolve(self.registry, Reference.parse(reference), self.notes)
        return hold(self.parts, version)[1]

    def verify(self, which: str | None = None) -> list[str]:
        return [each.name for each in caching.verify(self.cache, self.registry, which, reporter=self.notes)]

    def remove(self, which: str) -> int:
        return caching.remove(self.cache, self.registry, which, reporter=self.notes).freed

    def pin(self, which: str) -> None:
        caching.pin(self.cache, self.registry, which, reporter=self.notes)

    def unpin(self, which: str) -> None:
        caching.unpin(self.cache, self.registry, which, reporter=self.notes)

    def listed(self) -> dict[str, caching.Cached]:
        """What `packtrain cache ls` would show, by the version's name."""
        listing = caching.contents(self.cache, self.registry)
        return {each.versions[0] if each.versions else str(each.occupant.digest): each for each in listing.cached}

    def leftovers(self) -> list[Path]:
        """What must not be there when nothing is at work: trash, downloads, notes about what is not here."""
        here = {path.name for path in (self.home / "cache" / "snapshots").glob("*")}
        return [
            *(self.home / "cache" / "trash").glob("*"),
            *(self.home / "cache" / "partial").glob("*"),
            *(p for p in (self.home / "cache" / "marks").glob("*") if p.stem not in here and p.suffix != ".pin"),
        ]


def files(seed: int, size: int) -> dict[str, bytes]:
    """A model of ``size`` bytes: no bytes that another seed has, in several chunks and folders."""
    data = bytes((seed * 37 + n * n) % 251 for n in range(size - 20))
    return {"config.json": b"%010d" % seed, "model.safetensors": data, "tokenizer/vocab.json": b"%-10d" % seed}


def _chunks(data: bytes, length: int = 400) -> Chunks:
    pieces = [data[start : start + length] for start in range(0, len(data), length)]
    return Chunks(map(len, pieces), [blake3(piece).hexdigest() for piece in pieces])


SIZE = 3000  # of each version's files


@pytest.fixture
def store(tmp_path: Path) -> MemoryStore:
    """With llama/1 to llama/4."""
    store = MemoryStore()
    publisher = Node(store, tmp_path / "publisher")
    for seed in range(1, 5):
        publisher.publish(files(seed, SIZE))
    return store


@pytest.fixture
def make_node(store: MemoryStore, tmp_path: Path) -> Callable[..., Node]:
    """``make_node(quota=..., boot=...)``: the same machine, again."""

    def make(name: str = "node", *, store: Store = store, **options: object) -> Node:
        return Node(store, tmp_path / name, **options)  # type: ignore[arg-type]

    return make


@pytest.fixture
def node(make_node: Callable[..., Node]) -> Node:
    return make_node()


@pytest.fixture
def open_path(tmp_path: Path) -> None:
    """pytest's folders are for this user alone; here another one comes."""
    for folder in (tmp_path, *tmp_path.parents):
        if not folder.stat().st_mode & 0o001:
            folder.chmod(0o755)


def as_user(number: int, act: Callable[[], object]) -> str:
    """Runs ``act`` as another user, in a process of its own. Returns the error that it ended with."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        said = ""
        try:
            os.setgroups([])
            os.setgid(number)
            os.setuid(number)
            act()
        except BaseException as error:
            said = f"{type(error).__name__}: {error} {getattr(error, 'hint', '')}"
        os.write(writer, said.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as stream:
        said = stream.read()
    os.waitpid(child, 0)
    return said
