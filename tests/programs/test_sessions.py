"""Two hundred processes killed at random moments, on several machines at once: nothing unverified is ever visible, the
next run cleans up and completes, and whatever is said says what to do.

PACKTRAIN_TEST_SEED=... chooses other moments, PACKTRAIN_TEST_TIMES=10 ten times as many.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from packtrain.cache import Cache
from packtrain.client import Silent
from packtrain.errors import NotFound
from packtrain.flows import integrity, verify
from packtrain.model.amount import Amount
from packtrain.model.manifest import FILE_NAME, Manifest
from packtrain.model.retention import Occupant
from packtrain.ports import Store
from packtrain.registry.ledger import LedgerRegistry
from packtrain.registry.memory import SeenLedgers
from packtrain.storage import open_store
from packtrain.storage.directory import DirectoryStore
from packtrain.testing.servers import S3Server
from packtrain.wiring import SystemClock
from tests.conftest import Models
from tests.flows.conftest import contents
from tests.programs.conftest import environment
from tests.programs.sessions import FRESH, SEED, TIMES, Machine, Session, alive

MOMENTS = {"directory": 140, "s3": 60}


def registry_of(store: Store, home: Path) -> LedgerRegistry:
    """As a machine that has never seen the store would read it."""
    seen = SeenLedgers(home / "nobody" / str(len(list(home.glob("nobody/*")))))
    return LedgerRegistry(store, seen, actor="nobody", clock=SystemClock(), nonce=lambda: "0" * 32)


def require_store_sound(store: Store, home: Path, names: list[str]) -> None:
    """Every chain is whole, and so is every byte that it names."""
    registry = registry_of(store, home)
    for name in names:
        try:
            verify.verify(store, registry, name, every_byte=True, reporter=Silent(), clock=SystemClock())
        except NotFound:  # nobody came as far as its first event
            continue
        payloads = [version.payload for version in registry.read(name).state.versions.values()]
        assert len(set(payloads)) == len(payloads), "the same bytes are one version"


def require_cache_sound(machine: Machine) -> None:
    """Every snapshot that is there is whole, whether it is trusted or not; and so is a folder of the user's own."""
    snapshots, places = machine.cache.glob("snapshots/*"), machine.home.glob("places/[!.]*")
    for folder in [*snapshots, *places]:
        manifest = Manifest.decode((folder / FILE_NAME).read_bytes())
        assert folder.name == manifest.digest.hex or folder.parent.name == "places"
        integrity.check_directory(folder, manifest, Silent())
        assert contents(folder).keys() == {FILE_NAME, *(file.path for file in manifest.files)}


def occupants(machine: Machine) -> tuple[Occupant, ...]:
    cache = Cache(machine.cache, boot="any", clock=SystemClock(), quota=Amount("100%"), floor=Amount("0%"))
    return cache.contents().occupants


def require_nothing_left(machine: Machine) -> None:
    """After one run of every command that might have something to clean up."""
    left = [
        *machine.cache.glob("trash/*"),
        *machine.cache.glob("partial/*"),
        *(path for path in machine.cache.glob("scratch/*") if path.name != "lock"),
        *(path for path in machine.cache.glob("watch/*") if path.suffix not in (".json", ".lock")),
        *machine.home.glob("places/.*"),
        *machine.home.glob("exports/*/*"),
    ]
    assert left == []
    assert not any(occupant.holds.in_use for occupant in occupants(machine)), "its holder is dead"


def require_gone(home: Path) -> None:
    """No engine outlives its supervisor by long."""
    deadline = time.monotonic() + 300
    while left := alive(home):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def finish(session: Session) -> None:
    """Everything again, and nobody is killed."""
    first = session.machines[0]
    for machine in session.machines:
        for occupant in occupants(machine):
            machine.run("cache", "unpin", str(occupant.digest))  # what was pulled just now may go
    for name in session.names:
        for machine in session.machines:
            exports = machine.exports_of(name)
            machine.run("watch", exports, "--name", name, "--once", "--remove-source", "--interval", "0.01")
        for model in session.models_of(name):
            first.run("publish", model, "--name", name)
        first.run("adopt", session.models_of(name)[0], "--name", name)
        for number in (1, 2):
            first.run("promote", f"{name}/{number}", "--to", "production")
        for machine in session.machines:
            for version in (f"{name}/1", f"{name}/2"):
                machine.run("pull", version)
                machine.run("cache", "unpin", version)
                machine.run("pull", version, "--to", machine.place_of(version))
    for machine in session.machines:
        machine.run("cache", "verify")
        machine.run("verify")


@pytest.mark.slow
@pytest.mark.parametrize("kind", MOMENTS)
def test_two_hundred_random_moments(
    kind: str, tmp_path: Path, models: Models, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, url = environment(tmp_path), (tmp_path / "store").as_uri()
    if kind == "s3":
        server: S3Server = request.getfixturevalue("s3_environment")
        base, url = {**base, **server.environment}, f"{server.url}/sessions"
    print(f"PACKTRAIN_TEST_SEED={SEED}")
    session = Session(tmp_path, url, models, base, SEED)
    store = open_store(url)
    while session.killed < MOMENTS[kind] * TIMES:
        session.round()
        for machine in session.machines:
            require_cache_sound(machine)
        if session.rounds % FRESH == 0:
            require_store_sound(store, tmp_path, session.names)
    assert session.ended, "some come through"
    finish(session)
    require_store_sound(store, tmp_path, session.names)
    for machine in session.machines:
        require_cache_sound(machine)
        require_nothing_left(machine)
    require_gone(tmp_path)
    registry = registry_of(store, tmp_path)
    for name in session.names:
        state = registry.read(name).state
        assert sorted(state.versions) == [1, 2] and state.current("production") == 2
    if isinstance(store, DirectoryStore):
        assert store.unfinished() == {}
        links = ("by-alias/production", "by-version/1", "by-version/2")
        assert store.links("serve/").keys() == {f"serve/{name}/{link}" for name in session.names for link in links}
