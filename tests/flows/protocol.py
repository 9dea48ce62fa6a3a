"""Real flows over a store in memory, small enough that every order of their calls can be tried; and what must hold in
each: no version that is not archived lacks a byte."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from unittest import mock

from packtrain.cache import Cache
from packtrain.client import Silent
from packtrain.flows.collect import collect
from packtrain.flows.garbage import Collected
from packtrain.flows.hashing import Hashed, hash_files
from packtrain.flows.in_place import InPlace
from packtrain.flows.promote import archive, promote
from packtrain.flows.publish import Published, Request, publish_checkpoint
from packtrain.flows.sources import Made, NewFile
from packtrain.model.amount import Amount
from packtrain.model.lease import Holder
from packtrain.model.ledger import Log, State, event_key
from packtrain.model.lineage import Lineage, record_key
from packtrain.model.manifest import FILE_NAME, Manifest
from packtrain.model.reference import Reference
from packtrain.model.version import version_prefix
from packtrain.registry.ledger import LedgerRegistry
from packtrain.testing.clock import FakeClock
from packtrain.testing.memory_store import MemoryStore
from packtrain.testing.orders import Actor, Machine, Outcome, World, alone
from packtrain.training.checkpoint import Checkpoint

DAY = 24 * 3600.0
Flow = Callable[[Machine], object]


# What is published: two files; what the training's directory says is the subject of other tests.


@dataclass(frozen=True)
class Content:
    kind: str
    text: str

    @property
    def files(self) -> list[NewFile]:
        return [NewFile(name, Made(name, f"{name} of {self.text}".encode())) for name in ("config.json", "weights")]

    def source(self, path: str) -> Made:
        raise NotImplementedError

    def require_unchanged(self) -> None:
        pass


@contextmanager
def small() -> Iterator[None]:
    """Publishes without a look at the local disk. Each content has a lineage of its own."""
    hashed = lru_cache(lambda files: Hashed(hash_files(files, Silent()), {}))

    with (
        mock.patch("packtrain.flows.publish._preflight", return_value=()),
        mock.patch(
            "packtrain.flows.publish.lineage_of", lambda _, request, __: Lineage(template=str(request.directory))
        ),
        mock.patch("packtrain.flows.publish.files_of", lambda _, origin: origin.files),
        mock.patch("packtrain.flows.publish._hash", lambda _, files, __: hashed(tuple(files))),
    ):
        yield


def publish(name: str, text: str, *, base: str | None = None, force: bool = False) -> Flow:
    content = Content("adapter" if base else "merged", text)
    checkpoint = Checkpoint(Path(text), content.kind, (), ())
    request = Request(Path(text), name, base=base, force=force)

    def flow(machine: Machine) -> str:
        published: Published = publish_checkpoint(
            machine.store, machine.registry, request, checkpoint, content, Silent(), machine.clock
        )
        assert published.version is not None
        return str(published.version)

    return flow


def gc(grace: float = 0.0) -> Flow:
    def flow(machine: Machine) -> Collected:
        nowhere = Path("/proc/nowhere")
        cache = Cache(nowhere, boot="", clock=machine.clock, quota=Amount("0B"), floor=Amount("0B"))
        return collect(
            machine.store,
            machine.registry,
            cache,
            grace=timedelta(seconds=grace),
            reporter=Silent(),
            clock=machine.clock,
        )

    return flow


def retire(reference: str) -> Flow:
    return lambda machine: str(archive(machine.registry, Reference.parse(reference), reason=""))


def release(reference: str, alias: str = "production") -> Flow:
    return lambda machine: promote(machine.registry, Reference.parse(reference), alias, expect=None, reason="")


def read_in_place(reference: str) -> Flow:
    """An engine that opens a version's files one after the other, where they are."""
    wanted = Reference.parse(reference)

    def flow(machine: Machine) -> str:
        version = machine.registry.read(wanted.name).state.resolve(wanted)
        place = InPlace(
            machine.store,
            machine.registry,
            verify=False,
            holder=Holder("node", 1, "ada"),
            reporter=Silent(),
            clock=machine.clock,
        )
        with place:
            path = place.open(version)
            for name in ("config.json", "weights"):
                machine.pause(version.prefix)
                if not (path / name).exists():
                    raise Lost(f"{path / name} is gone while it is used in place")
        return "read"

    return flow


class MirroredStore(MemoryStore):
    """A store in memory whose objects are files, too, for those who open them where they are."""

    def __init__(self, home: Path) -> None:
        super().__init__()
        self._home = home
        self._directory = home / uuid.uuid1().hex
        self._directory.mkdir()

    @property
    def directory(self) -> Path:
        return self._directory

    def copy(self) -> MirroredStore:
        other = MirroredStore(self._home)
        for key, data in self.objects.items():
            other.upload(key, [data], len(data))
        return other

    def create(self, key: str, data: bytes) -> None:
        super().create(key, data)
        self._write(key, data)

    def upload(self, key: str, body: Iterable[bytes], size: int) -> None:
        super().upload(key, body, size)
        self._write(key, self.objects[key])

    def delete(self, key: str) -> None:
        super().delete(key)
        (self._directory / key).unlink(missing_ok=True)

    def _write(self, key: str, data: bytes) -> None:
        path = self._directory / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def asleep(flow: Flow) -> Flow:
    """Time passes, for everybody, and then: a flow. Its actor is one that is `everywhere`."""

    def both(machine: Machine) -> object:
        machine.clock.pass_(30 * DAY)
        return flow(machine)

    return both


def then(*flows: Flow) -> Flow:
    return lambda machine: [flow(machine) for flow in flows]


def world(*flows: Flow, store: MemoryStore | None = None) -> World:
    """What there is after flows that nobody disturbed. Every machine has seen its ledgers."""
    made = World(store or MemoryStore(), FakeClock(), registry=LedgerRegistry)
    for number, flow in enumerate(flows):
        made = settled(alone(made, Actor(f"before-{number}", flow)))
    return made


def settled(outcome: Outcome) -> World:
    """A world whose ledgers every machine has seen."""
    for answer in outcome.answers.values():
        assert not isinstance(answer, BaseException), answer
    objects = outcome.world.store.objects
    names = {key.split("/")[1] for key in objects if key.startswith("ledger/")}
    return replace(outcome.world, seen={name: log(objects, name) for name in names})


# What must hold


class Lost(Exception):
    """A byte that a version names is not there."""


def log(objects: Mapping[str, bytes], name: str) -> Log:
    events = []
    while (data := objects.get(event_key(name, len(events) + 1))) is not None:
        events.append(data)
    return folded(name, tuple(events))


@lru_cache(10_000)
def folded(name: str, events: tuple[bytes, ...]) -> Log:
    """Kept for worlds that begin alike, as the rules were: whoever changes these clears what is kept."""
    if not events:
        return Log(name)
    before, read = folded(name, events[:-1]), Log(name)
    read.events, read.head, read.state = list(before.events), before.head, before.state
    read.extend(events[-1])
    return read


_manifest = lru_cache(Manifest.decode)


@lru_cache(10_000)
def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def require_nothing_lost(seen: World) -> None:
    """Every version that is not archived is whole, its lineage and the base that it needs included."""
    objects = seen.store.objects
    for name in {key.split("/")[1] for key in objects if key.startswith("ledger/")}:
        state: State = log(objects, name).state
        for version in state.versions.values():
            if version.archived:
                continue
            _require_whole(objects, version.prefix, version.digest.hex, str(version))
            if version.base is not None:
                prefix = version_prefix(version.base.name, version.base.digest)
                _require_whole(objects, prefix, version.base.digest.hex, f"{version.base}, the base of {version},")
            assert version.lineage is not None
            _require(objects, record_key(name, version.lineage), version.lineage.hex, f"the lineage of {version}")


def _require_whole(objects: Mapping[str, bytes], prefix: str, digest: str, what: str) -> None:
    data = _require(objects, prefix + FILE_NAME, digest, what)
    for file in _manifest(data).files:
        _require(objects, prefix + file.path, file.sha256, what)


def _require(objects: Mapping[str, bytes], key: str, sha256: str, what: str) -> bytes:
    if (data := objects.get(key)) is None:
        raise Lost(f"{key} of {what} is gone")
    if _sha256(data) != sha256:
        raise Lost(f"{key} of {what} is damaged")
    return data


def require_no_garbage(seen: World) -> None:
    """Every folder of the store is named, by a version that is not archived, or as the base of one."""
    objects = seen.store.objects
    states = [log(objects, name).state for name in {key.split("/")[1] for key in objects if key.startswith("ledger/")}]
    live = [version for state in states for version in state.versions.values() if not version.archived]
    named = {version.prefix for version in live}
    named |= {version_prefix(version.base.name, version.base.digest) for version in live if version.base}
    assert {"/".join([*key.split("/")[:3], ""]) for key in objects if key.startswith("models/")} <= named
