"""What a machine remembers of ledgers: damaged, lost or unwritable, it does no harm."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packtrain.model.ledger import Log
from packtrain.registry.memory import SeenLedgers
from packtrain.testing.memory_store import MemoryStore
from tests.model.examples import ledger_with_every_action
from tests.registry.machines import machine, promoting, publish

NAME = "llama-finetuned"
EVENTS = ledger_with_every_action().events


def log_of(count: int) -> Log:
    log = Log(NAME)
    for data in EVENTS[:count]:
        log.extend(data)
    return log


def lines(count: int) -> bytes:
    return b"".join(sha256(data).hexdigest().encode() + b" " + data + b"\n" for data in EVENTS[:count])


@pytest.fixture
def seen(tmp_path: Path) -> SeenLedgers:
    return SeenLedgers(tmp_path / "not" / "yet" / "there")


def test_a_log_reads_back(seen: SeenLedgers) -> None:
    assert seen.load(NAME).events == []
    assert seen.names() == []
    for count in (3, 5, 10):
        seen.save(log_of(count))
        assert seen.path(NAME).read_bytes() == lines(count)
        assert seen.load(NAME).events == log_of(count).events
        assert seen.load(NAME).state == log_of(count).state
    assert seen.names() == [NAME]


def test_who_has_seen_less_takes_nothing_away(seen: SeenLedgers) -> None:
    seen.save(log_of(8))
    seen.save(log_of(3))
    assert seen.path(NAME).read_bytes() == lines(8)


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "torn": lambda data: data[:-20],
    "without its last newline": lambda data: data[:-1],
    "one byte in the middle": lambda data: data[:1500] + b"~" + data[1501:],
    "one byte at the start": lambda data: b"~" + data[1:],
    "one byte at the end": lambda data: data[:-3] + b"~" + data[-2:],
    "a line is missing": lambda data: b"".join(data.splitlines(keepends=True)[:4] + data.splitlines(keepends=True)[5:]),
    "another time in the last": lambda data: data[:-9] + b"9" + data[-8:],
    "another time in one": lambda data: data.replace(b"03:04:10.678Z", b"03:04:11.678Z"),
    "zeros": lambda data: b"\0" * len(data),
    "newlines": lambda data: b"\n" * 100,
    "more than there is": lambda data: data + b"{}\n" * 5,
    "another ledger": lambda data: data.replace(NAME.encode(), b"llama-unrefined"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_gives_what_holds_and_is_mended(seen: SeenLedgers, damage: str) -> None:
    seen.save(log_of(10))
    seen.path(NAME).write_bytes(DAMAGES[damage](lines(10)))
    loaded = seen.load(NAME)
    assert [event.encode() for event in loaded.events] == EVENTS[: len(loaded.events)]
    seen.save(log_of(10))
    assert seen.load(NAME).events == log_of(10).events


@given(st.binary(max_size=300), st.integers(0, len(lines(10))), st.integers(0, len(lines(10))))
@settings(max_examples=50)
def test_any_damage_gives_a_beginning_of_what_was_seen(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes, start: int, end: int
) -> None:
    seen = SeenLedgers(tmp_path_factory.mktemp("seen"))
    good = lines(10)
    seen.path(NAME).write_bytes(good[:start] + noise + good[end:])
    loaded = seen.load(NAME)
    assert [event.encode() for event in loaded.events] == EVENTS[: len(loaded.events)]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_registry_over_a_damaged_memory_reads_and_writes(tmp_path: Path, damage: str) -> None:
    store = MemoryStore()
    registry = machine(store, tmp_path)
    publish(registry, NAME, count=5)
    file = tmp_path / f"{NAME}.events"
    file.write_bytes(DAMAGES[damage](file.read_bytes()))
    assert len(registry.read(NAME).events) == 10
    log, event = registry.change(NAME, promoting(3))
    assert event is not None
    assert event.sequence == 11
    assert registry.remembered(NAME).events == registry.audit(NAME).events == log.events


def in_the_way(directory: Path) -> None:
    directory.write_bytes(b"a file where the folder should be")


def a_folder_for_a_file(directory: Path) -> None:
    (directory / f"{NAME}.events").mkdir(parents=True)


@pytest.mark.parametrize("spoil", [in_the_way, a_folder_for_a_file])
def test_an_unusable_folder_remembers_nothing_and_harms_nobody(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    spoil(tmp_path / "seen")
    store = MemoryStore()
    registry = machine(store, tmp_path / "seen")
    publish(registry, NAME)
    _, event = registry.change(NAME, promoting(1))
    assert event is not None
    assert len(registry.read(NAME).events) == len(registry.audit(NAME).events) == 3
    assert registry.remembered(NAME).events == []
    assert registry.names() == [NAME]


AS_NOBODY = """
import os, sys
from pathlib import Path
from packtrain.model.ledger import Log
from packtrain.registry.memory import SeenLedgers

if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
seen = SeenLedgers(Path("seen"))
log = seen.load(sys.argv[1])
print(len(log.events))
for line in sys.stdin.buffer.read().splitlines():
    log.extend(line)
seen.save(log)
print(len(seen.load(sys.argv[1]).events))
SeenLedgers(Path("seen/new")).save(log)
print(SeenLedgers(Path("seen/new")).names())
"""


def test_a_read_only_memory_is_read_and_left(tmp_path: Path) -> None:
    """In a process without root's rights, for which permissions hold; paths from the working directory, because the
    folders above are closed to it."""
    seen = SeenLedgers(tmp_path / "seen")
    seen.save(log_of(7))
    seen.path(NAME).chmod(0o444)
    (tmp_path / "seen").chmod(0o555)
    tmp_path.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", AS_NOBODY, NAME],
        cwd=tmp_path,
        input=b"".join(data + b"\n" for data in EVENTS[7:]),
        capture_output=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == (b"7\n7\n[]\n", b"")
    assert seen.path(NAME).read_bytes() == lines(7)
