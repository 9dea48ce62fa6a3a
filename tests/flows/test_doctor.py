"""The doctor: every check can fail, says what to do, and leaves the store as it was."""

from __future__ import annotations

import os
import re
import select
import shutil
import socket
import socketserver
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from packtrain.cache import Cache
from packtrain.errors import Refused, Unavailable
from packtrain.flows.doctor import FAILURE, OK, WARNING, Check, cache_disk, engines, ledgers
from packtrain.flows.doctor import store as doctor
from packtrain.model.amount import Amount
from packtrain.ports import PartInfo, Store
from packtrain.storage import open_store
from packtrain.storage.directory import DirectoryStore
from packtrain.testing.clock import FakeClock
from packtrain.testing.faults import Fault, FaultyStore
from packtrain.testing.memory_store import MemoryMultipart, MemoryStore
from packtrain.testing.servers import S3Server
from packtrain.wiring import SystemClock
from tests.conftest import Models, as_nobody
from tests.flows.conftest import House

EVERY_STEP = ["store", "reading", "writing", "conditional writes", "uploads by parts", "deleting", "clock"]


def examined(store: Store, clock: object = None) -> list[Check]:
    return told(doctor.examine(store, clock or SystemClock(), "probe"))  # type: ignore[arg-type]


def told(checks: Iterable[Check]) -> list[Check]:
    """What the checks say, each held to what all promise."""
    found = list(checks)
    for check in found:
        assert check.what and bool(check.fix) == (check.level != OK)
        assert (check.code != 0) == (check.level == FAILURE)
    return found


def levels(checks: Iterable[Check]) -> list[tuple[str, str]]:
    return [(check.about, check.level) for check in checks]


@pytest.fixture
def share(tmp_path: Path) -> DirectoryStore:
    (tmp_path / "share").mkdir()
    return DirectoryStore(tmp_path / "share")


# The store


@pytest.mark.parametrize("kind", ["directory", "s3"])
def test_a_good_store_passes_and_keeps_nothing(kind: str, request: pytest.FixtureRequest) -> None:
    if kind == "s3":
        store = open_store(f"{request.getfixturevalue('s3_environment').url}/doctor-test")
    else:
        store = request.getfixturevalue("share")
    steps = [step for step in EVERY_STEP if kind == "s3" or step != "uploads by parts"]
    assert levels(examined(store)) == [(step, OK) for step in steps]
    assert list(store.list("")) == []


def test_a_folder_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    (check,) = examined(DirectoryStore(tmp_path / "mnt" / "models"))
    assert (check.about, check.level) == ("store", WARNING)
    assert "mount that first" in check.fix
    assert list(tmp_path.iterdir()) == []


def with_variables(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def test_wrong_keys(s3_environment: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-key")
    (check,) = examined(open_store(s3_environment.url))
    assert (check.about, check.level, check.code) == ("store", FAILURE, 3)
    assert "not-the-key" not in check.what + check.fix and "Check the credentials" in check.fix


def test_no_bucket(s3_environment: S3Server) -> None:
    (check,) = examined(open_store("s3://no-such-bucket"))
    assert (check.about, check.level, check.code) == ("store", FAILURE, 7)
    assert "Create the bucket" in check.fix


def test_a_server_that_cannot_be_reached(s3_environment: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    (check,) = examined(open_store(s3_environment.url))
    assert (check.about, check.level, check.code) == ("store", FAILURE, 7)


def test_an_identity_that_may_only_read_can_serve(s3_environment: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with_variables(monkeypatch, s3_environment.reader_environment)
    checks = examined(open_store(s3_environment.url))
    assert levels(checks) == [("store", OK), ("reading", OK), ("writing", WARNING)]
    assert "only pulls and serves" in checks[-1].fix


@pytest.mark.root
def test_a_share_that_this_user_may_only_read(open_folder: Path) -> None:
    store = DirectoryStore(open_folder)
    with as_nobody():
        checks = examined(store)
    assert levels(checks) == [("store", OK), ("reading", OK), ("writing", WARNING)]
    assert "Permission denied" in checks[-1].what


@pytest.mark.root
def test_a_share_that_this_user_may_not_read(open_folder: Path) -> None:
    (open_folder / "doctor").mkdir(mode=0o700)
    with as_nobody():
        (check,) = examined(DirectoryStore(open_folder))
    assert (check.about, check.level, check.code) == ("store", FAILURE, 3)


class Replacing(MemoryStore):
    """A server that ignores If-None-Match."""

    def create(self, key: str, data: bytes) -> None:
        self.objects[key] = data


class LookingFirst(MemoryStore):
    """A gateway that looks whether an object is there, and then writes it: good for one writer at a time."""

    def __init__(self) -> None:
        super().__init__()
        self._together = threading.Barrier(doctor.RACERS)

    def create(self, key: str, data: bytes) -> None:
        if key in self.objects or not key.endswith(".race"):
            super().create(key, data)
        else:
            self._together.wait(60)  # all have looked
            self.objects[key] = data


@pytest.mark.parametrize(("store", "found"), [(Replacing(), "replaced"), (LookingFirst(), "8 succeeded")])
def test_writes_that_are_not_conditional(store: MemoryStore, found: str) -> None:
    checks = examined(store)
    assert levels(checks) == [("store", OK), ("reading", OK), ("writing", OK), ("conditional writes", FAILURE)]
    assert found in checks[-1].what and "If-None-Match" in checks[-1].fix
    assert store.objects == {}


@contextmanager
def without_the_condition(endpoint: str) -> Iterator[str]:
    """A proxy that takes If-None-Match away."""
    server = urlsplit(endpoint)

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with socket.create_connection((server.hostname, server.port)) as behind:
                while True:
                    for end in select.select([self.request, behind], [], [])[0]:
                        data = end.recv(65536)
                        if not data:
                            return
                        if end is behind:
                            self.request.sendall(data)
                        else:
                            behind.sendall(re.sub(rb"(?i)if-none-match: \*\r\n", b"", data))

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as proxy:
        proxy.daemon_threads = True
        thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{proxy.server_address[1]}"
        finally:
            proxy.shutdown()
            thread.join()


def test_a_proxy_that_takes_the_condition_away(s3_environment: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is signed, so the server notices; nothing is ever written without it."""
    with without_the_condition(s3_environment.endpoint) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        checks = examined(open_store(f"{s3_environment.url}/proxied"))
    assert levels(checks) == [("store", OK), ("reading", OK), ("writing", WARNING)]
    assert "SignatureDoesNotMatch" in checks[-1].what and "a proxy on the way" in checks[-1].fix


class Late(MemoryStore):
    """A store whose listings are those of a minute ago."""

    def list(self, prefix: str) -> Iterator[object]:  # type: ignore[override]
        return iter(())


def test_a_store_that_shows_writes_late() -> None:
    store = Late()
    checks = examined(store)
    assert levels(checks) == [("store", OK), ("reading", OK), ("writing", FAILURE)]
    assert checks[-1].code == 6
    assert store.objects == {}


class Keeping(MemoryStore):
    """A bucket whose policy forbids to delete."""

    def delete(self, key: str) -> None:
        raise Refused(f"{key}: 403 Forbidden", hint="Ask for permission.")


def test_what_a_server_lacks_for_uploads_by_parts_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    multipart = MemoryMultipart(store, silent=True, copies=False)
    (check,) = [check for check in examined(store) if check.about == "uploads by parts"]
    assert check.level == WARNING
    assert "it confirms no checksums: what is uploaded is read back" in check.what
    assert "it copies no ranges: what an earlier version holds is sent again" in check.what
    assert "open uploads" not in check.what and "does not list parts" not in check.what
    assert store.objects == {} and list(multipart.open_uploads("")) == []

    def unknown(*_: object) -> list[PartInfo]:
        raise Refused("NotImplemented")

    monkeypatch.setattr(multipart, "parts", unknown)
    monkeypatch.setattr(multipart, "open_uploads", unknown)
    (check,) = [check for check in examined(store) if check.about == "uploads by parts"]
    assert "does not list parts" in check.what and "does not list open uploads" in check.what


def test_deleting_may_be_forbidden() -> None:
    checks = examined(Keeping())
    assert levels(checks)[-1] == ("deleting", WARNING)
    assert "memory://store/doctor/probe stays" in checks[-1].what


class Lingering(MemoryStore):
    """A store behind a cache that goes on showing what was deleted."""

    def delete(self, key: str) -> None: ...


def test_a_store_that_shows_what_was_deleted() -> None:
    checks = examined(Lingering())
    assert levels(checks)[-1] == ("deleting", FAILURE)
    assert "memory://store/doctor/probe was deleted and is still there" in checks[-1].what
    assert "the store itself" in checks[-1].fix


@pytest.mark.parametrize("minutes", [-10, 10])
def test_clocks_that_differ(share: DirectoryStore, minutes: int) -> None:
    began = datetime.now(UTC)
    clock = FakeClock(began - timedelta(minutes=minutes))
    check = examined(share, clock)[-1]
    took = (datetime.now(UTC) - began).total_seconds()
    assert (check.about, check.level) == ("clock", WARNING)
    way = "ahead of" if minutes > 0 else "behind"
    seconds = int(check.what.removeprefix("the store's is ").partition(" s ")[0])
    assert abs(seconds - 600) <= took + 2 and check.what.endswith(f"s {way} this machine's")


def test_what_killed_doctors_left_is_removed_and_what_others_write_now_is_not(share: DirectoryStore) -> None:
    for key in ("doctor/killed", "doctor/at-work"):
        share.create(key, b"")
    os.utime(share.directory / "doctor/killed", (0, 0))
    examined(share)
    assert [info.key for info in share.list("")] == ["doctor/at-work"]


@pytest.mark.parametrize("fault", [Fault.UNAVAILABLE, Fault.LOST_ANSWER, Fault.FLIPPED_BIT])
def test_a_store_that_fails_at_any_call_is_told_and_nothing_is_raised(fault: Fault) -> None:
    whole = FaultyStore(MemoryStore())
    examined(whole)
    for k in range(whole.calls):
        inner = MemoryStore()
        checks = examined(FaultyStore(inner, {k: fault}))
        assert levels(checks)[-1][1] == FAILURE or levels(checks)[-1][0] == "deleting"
        if all(check.level == OK for check in checks):
            assert fault is Fault.FLIPPED_BIT or not inner.objects


def test_credentials_are_named_and_not_shown(s3_environment: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    now = datetime(2026, 3, 2, tzinfo=UTC)

    def credentials() -> Check:
        (check,) = told(doctor.credentials("s3://bucket", now))
        assert s3_environment.secret_key not in check.what
        return check

    assert credentials().what == "AWS_ACCESS_KEY_ID of the environment"
    monkeypatch.setenv("AWS_CREDENTIAL_EXPIRATION", "2026-03-02T01:00:00+00:00")
    assert credentials().what.endswith("until 2026-03-02 01:00:00 UTC")
    monkeypatch.setenv("AWS_CREDENTIAL_EXPIRATION", "2026-03-01T23:00:00+00:00")
    assert (credentials().level, credentials().code) == (FAILURE, 3)
    assert list(doctor.credentials("file:///srv/models", now)) == []


# Ledgers, leftovers, links


def looked_at(house: House) -> list[Check]:
    return told(ledgers.examine(house.store, house.registry, house.clock.now()))


def test_nothing_is_published_yet(house: House) -> None:
    assert levels(looked_at(house)) == [("ledgers", OK), ("leftovers", OK)]


def test_a_broken_ledger_is_named_and_the_others_are_read(house: House, models: Models) -> None:
    for name in ("good", "bad", "ugly"):
        house.publish(models.first, name)
    assert isinstance(house.store, MemoryStore)
    house.store.objects["ledger/bad/0000000002.json"] = b"{}"
    del house.store.objects["ledger/ugly/0000000003.json"]
    checks = looked_at(house)
    assert [(check.level, check.code) for check in checks[:2]] == [(FAILURE, 6)] * 2
    assert "event 2 of the ledger of bad" in checks[0].what
    assert "the ledger of ugly was truncated" in checks[1].what
    assert levels(checks[2:]) == [("leftovers", OK)]


def test_a_store_that_is_not_the_one_that_this_machine_knows(make_house: Callable[..., House], models: Models) -> None:
    """An empty folder where the volume should be mounted."""
    make_house("node").publish(models.first)
    checks = looked_at(make_house("node", store=MemoryStore()))
    assert (checks[0].level, checks[0].code) == (FAILURE, 6)
    assert "truncated" in checks[0].what


def test_what_an_interrupted_publish_left(make_house: Callable[..., House], models: Models, store: MemoryStore) -> None:
    house = make_house(store=FaultyStore(store, {40: Fault.UNAVAILABLE}))
    with pytest.raises(Unavailable):
        house.publish(models.first)
    assert levels(looked_at(house))[-1] == ("leftovers", OK)  # the publish may be under way: it has a lease
    house.clock.sleep(timedelta(days=2).total_seconds())
    checks = looked_at(house)
    assert levels(checks) == [("ledgers", OK), ("leftovers", WARNING)]
    assert "Publish the same directory again" in checks[-1].fix
    house.publish(models.first)
    assert levels(looked_at(house)) == [("ledgers", OK), ("leftovers", OK)]


def test_stray_links_are_mended(make_house: Callable[..., House], share: DirectoryStore, models: Models) -> None:
    house = make_house(store=share)
    house.publish(models.first, alias="production")
    missing = looked_at(house)  # the registry of these tests makes none
    assert {(check.about, check.level) for check in missing[2:]} == {("links", OK)}
    assert all("mended" in check.what for check in missing[2:])
    assert (share.directory / "serve/llama/by-alias/production/config.json").is_file()
    assert [check.what for check in looked_at(house)[2:]] == [f"{share.directory}/serve is as the ledgers say"]
    link = share.directory / "serve/llama/by-alias/production"
    link.unlink()
    link.symlink_to("elsewhere")
    assert "points at elsewhere" in looked_at(house)[2].what
    assert link.readlink() != Path("elsewhere")


@pytest.mark.root
def test_links_that_cannot_be_mended(make_house: Callable[..., House], open_folder: Path, models: Models) -> None:
    house = make_house(store=DirectoryStore(open_folder))
    house.publish(models.first)
    with as_nobody():
        checks = looked_at(house)
    assert levels(checks)[-1] == ("links", WARNING)
    assert "could not be mended" in checks[-1].fix


# The cache's disk


def disk(root: Path, quota: str = "100%", floor: str = "0%") -> list[Check]:
    cache = Cache(root, boot="boot", clock=FakeClock(), quota=Amount(quota), floor=Amount(floor))
    return told(cache_disk.examine(cache))


def test_a_cache_that_is_not_there_yet_is_not_made(tmp_path: Path) -> None:
    checks = disk(tmp_path / "a" / "cache")
    assert {check.level for check in checks} <= {OK, WARNING}
    assert "is not there yet and can be made" in checks[0].what
    assert list(tmp_path.iterdir()) == []


def test_a_cache_in_which_nothing_more_fits(house: House, models: Models) -> None:
    house.publish(models.first)
    house.pull("llama")
    room = disk(house.cache.root)[1]
    assert (room.level, room.what.partition(",")[0]) == (OK, "1.1 MB used")
    assert disk(house.cache.root, quota="1MB")[1].level == WARNING
    assert disk(house.cache.root, floor="100%")[1].level == WARNING


@pytest.mark.root
def test_a_cache_of_another_user(open_folder: Path) -> None:
    (open_folder / "cache").mkdir()
    with as_nobody():
        (check,) = disk(open_folder / "cache")
        (above,) = disk(open_folder / "other")
    assert (check.level, check.code) == (FAILURE, 8)
    assert "belongs to root" in check.what and "Set another cache_dir" in check.fix
    assert "cannot be written: Permission denied" in above.what


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    mount = tmp_path / "small"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", mount], check=True)
    yield mount
    subprocess.run(["umount", mount], check=True)


@pytest.mark.root
def test_a_full_disk_one_in_memory_and_one_that_is_read_only(small: Path) -> None:
    in_memory = disk(small)
    assert in_memory[-1].level == WARNING
    assert in_memory[-1].what.startswith("on tmpfs, with hard links, without reflinks: it takes memory")
    assert os.listdir(small) == []
    (small / "filler").write_bytes(bytes(4 << 20))
    (full,) = disk(small)
    assert (full.level, full.code) == (FAILURE, 8)
    assert "No space left on device" in full.what and "full" in full.fix
    (small / "filler").unlink()
    subprocess.run(["mount", "-o", "remount,ro", small], check=True)
    (fixed,) = disk(small)
    assert "Read-only file system" in fixed.what


# Engines


def test_engines_are_found_with_their_versions_and_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = tmp_path / "engine" / "bin" / "vllm"
    command.parent.mkdir(parents=True)
    command.write_text("#!/bin/sh\ntouch ran\n")
    command.chmod(0o755)
    assert levels(engines.examine(str(command), "no-such-command")) == [("vllm", OK), ("llamafactory", WARNING)]
    found, missing = told(engines.examine(str(command), "no-such-command"))
    assert found.what == f"{command}, of unknown version"
    assert "PACKTRAIN_LLAMAFACTORY" in missing.fix
    (tmp_path / "engine/lib/python3.12/site-packages/vllm-0.32.0+cpu.dist-info").mkdir(parents=True)
    (tmp_path / "engine/lib/python3.12/site-packages/vllm-flash-attn.dist-info").mkdir()
    shim = tmp_path / "bin" / "vllm"
    shim.parent.mkdir()
    shim.symlink_to(command)
    monkeypatch.setenv("PATH", str(shim.parent))
    assert told(engines.examine("vllm", "no-such-command"))[0].what == f"{shutil.which('vllm')}, 0.32.0+cpu"
