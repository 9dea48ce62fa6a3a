"""The laws of `packtrain.ports.Registry`, asked of the ledger in every kind of store, and of one that MLflow shows."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.conformance.conftest import Place, decided, decisions
from tests.registry.machines import events, machine, promoting, publish, put, remove

from packtrain.errors import Conflict, IntegrityError, Refused, UsageError
from packtrain.model import canonical
from packtrain.model.digest import Digest
from packtrain.model.ledger import Draft, Log, State
from packtrain.ports import Store
from packtrain.storage import open_store

ROOT = Path(__file__).parents[2]
NO_MEMORY = Path(__file__) / "no folder"  # of a machine that cannot remember anything


# Law 2: exactly the event that was drafted, once, or nothing


def test_an_unknown_name_is_empty(place: Place, tmp_path: Path) -> None:
    registry = place.machine(tmp_path)
    assert registry.names() == []
    for log in (registry.read("m"), registry.remembered("m"), registry.audit("m")):
        assert (log.name, log.events, log.state) == ("m", [], State("m"))


def test_a_change_is_seen_by_everybody(place: Place, tmp_path: Path) -> None:
    one, other = place.machine(tmp_path / "1", "ada"), place.machine(tmp_path / "2", "bob")
    publish(one, "m", 2)
    log, event = other.change("m", promoting(2, reason="better"))
    assert event is not None
    assert (event.actor, event.action) == ("bob", "alias.promoted")
    assert event.details == {"alias": "production", "from": None, "to": 2, "reason": "better"}
    for seen in (log, one.read("m"), other.read("m"), other.remembered("m"), one.audit("m")):
        assert decided(seen)[-1] == event
        assert seen.state.aliases == {"production": 2}
    assert len(decisions(place.store)) == 5


def test_names_are_those_with_versions(place: Place, tmp_path: Path) -> None:
    registry = place.machine(tmp_path)
    for name in ("b", "a", "c.d"):
        publish(registry, name)
    registry.change("begun", lambda s: s.begin_publish(Digest("a" * 64), "1", "2026-01-01T00:00:00.000Z"))
    assert registry.names() == place.machine(tmp_path / "new").names() == ["a", "b", "c.d"]


def test_nothing_drafted_or_an_error_writes_nothing(place: Place, tmp_path: Path) -> None:
    registry = place.machine(tmp_path)
    publish(registry)
    registry.change("m", promoting(1))
    before = decisions(place.store)
    log, event = registry.change("m", promoting(1))
    assert event is None
    assert log.state.aliases == {"production": 1}
    with pytest.raises(Refused, match="cannot be archived"):
        registry.change("m", lambda s: s.archive(1))
    with pytest.raises(Conflict, match="nothing was changed"):
        registry.change("m", promoting(1, expect=7))
    assert decisions(place.store) == before


@pytest.mark.parametrize(("actor", "reason"), [("", "x"), ("ada", "\udcff")])
def test_what_readers_would_refuse_is_not_written(place: Place, tmp_path: Path, actor: str, reason: str) -> None:
    publish(place.machine(tmp_path))
    before = decisions(place.store)
    with pytest.raises(UsageError, match="cannot be written"):
        place.machine(tmp_path, actor).change("m", promoting(1, reason=reason))
    assert decisions(place.store) == before


def test_a_decision_rests_on_the_state_that_its_event_follows(place: Place, tmp_path: Path) -> None:
    """Another machine is faster three times: the decision is asked again on what it left."""
    slow, fast = place.machine(tmp_path / "slow"), place.machine(tmp_path / "fast")
    publish(slow, count=4)
    seen = []

    def decide(state: State) -> Draft | None:
        seen.append(state.current("production"))
        if len(seen) <= 3:
            fast.change("m", promoting(len(seen)))
        return state.promote("production", 4)

    log, event = slow.change("m", decide)
    assert seen == [None, 1, 2, 3]
    assert event is not None
    assert event.details["from"] == 3
    assert log.state.trails == {"production": (1, 2, 3, 4)}
    assert decided(fast.audit("m")) == decided(log)


def test_who_loses_the_race_for_what_it_expects_is_told_so(place: Place, tmp_path: Path) -> None:
    slow, fast = place.machine(tmp_path / "slow"), place.machine(tmp_path / "fast")
    publish(slow, count=3)

    def decide(state: State) -> Draft | None:
        if not state.aliases:
            fast.change("m", promoting(1, expect=0))
        return state.promote("production", 2, expect=0)

    with pytest.raises(Conflict, match="is at version 1, not at version 0"):
        slow.change("m", decide)
    assert fast.read("m").state.trails == {"production": (1,)}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["directory", "s3"])
def test_ten_processes_make_twenty_promotes_each(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Every outcome that a process was told equals what the ledger says. Half of them share one machine's memory."""
    if kind == "s3":
        url = f"{request.getfixturevalue('s3_environment').url}/contended"
    else:
        url = (tmp_path / "store").as_uri()
    registry = machine(open_store(url), tmp_path / "referee")
    publish(registry, count=5)

    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.registry.contend", url,
             str(tmp_path / ("shared" if n % 2 else f"own-{n}")), f"process-{n}"],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for n in range(10)
    ]  # fmt: skip
    try:
        for process in started:
            assert process.stdout is not None
            assert json.loads(process.stdout.readline()) == "ready"
        for process in started:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        told = [json.loads(line) for process in started for line in process.communicate()[0].splitlines()]
        assert [process.returncode for process in started] == [0] * 10
    finally:
        for process in started:
            process.kill()
            process.communicate()

    log = registry.audit("m")
    promoted = [e for e in log.events if e.action == "alias.promoted"]
    assert len(told) == 200
    assert sorted(outcome[1:] for outcome in told if outcome[0] == "moved") == [
        [e.sequence, e.details["from"], e.details["to"], e.details["reason"]] for e in promoted
    ]
    refused = {outcome[1] for outcome in told if outcome[0] == "conflict"}
    assert len(refused) + len(promoted) == 200
    assert not refused & {e.details["reason"] for e in promoted}
    assert all(e.details["reason"].startswith(f"{e.actor}, ") for e in promoted)
    for memory in [tmp_path / "shared", *tmp_path.glob("own-*")]:
        assert machine(open_store(url), memory).read("m").events == log.events


# Law 1: what was read extends what was read before on this machine


def truncate(store: Store) -> None:
    remove(store, 7)


def truncate_and_go_on(store: Store) -> None:
    remove(store, 7)
    remove(store, 6)
    put(store, 6, rechain(store, 6, events(store)[4], reason="another"))


def rewrite_the_last(store: Store) -> None:
    put(store, 7, rechain(store, 7, events(store)[6], reason="a better reason"))


def rewrite_the_middle(store: Store) -> None:
    for sequence in (5, 6, 7):
        put(store, sequence, rechain(store, sequence, events(store)[sequence - 1], actor="eve"))


def rewrite_and_go_on(store: Store) -> None:
    rewrite_the_last(store)
    machine(store, NO_MEMORY).change("m", promoting(2))


def remove_everything(store: Store) -> None:
    for sequence in range(1, 8):
        remove(store, sequence)


def damage_the_last(store: Store) -> None:
    put(store, 7, events(store)[6][:-1])


def start_anew(store: Store) -> None:
    remove_everything(store)
    publish(machine(store, NO_MEMORY), count=5)


def rechain(store: Store, sequence: int, data: bytes, *, actor: str = "", reason: str = "") -> bytes:
    """The event at another place, saying another thing, in a chain that holds: what a forger writes."""
    value = json.loads(data)
    before = events(store)[sequence - 2]
    value |= {"seq": sequence, "previous": Digest.of(before).hex}
    if actor:
        value["actor"] = actor
    if reason:
        state = Log("m")
        for each in events(store)[: sequence - 1]:
            state.extend(each)
        current = state.state.current("production")
        value["details"] |= {"reason": reason, "from": current, "to": 2 if current == 1 else 1}
    return canonical.encode(value)


def prepared(store: Store, home: Path) -> None:
    """Seven events: two versions, and three promotions."""
    registry = machine(store, home)  # a ledger that no MLflow shows: whoever shows one sees this the same way
    publish(registry, count=2)
    for number in (1, 2, 1):
        registry.change("m", promoting(number))
    assert len(events(store)) == 7


TAMPERED = [
    (truncate, "truncated: event 7 of the ledger of m, which this machine has seen, is gone"),
    (truncate_and_go_on, "truncated: event 7 of the ledger of m, which this machine has seen, is gone"),
    (rewrite_the_last, "rewritten: event 7 of the ledger of m, which this machine has seen, is now another"),
    (rewrite_the_middle, "rewritten: event 7 of the ledger of m, which this machine has seen, is now another"),
    (rewrite_and_go_on, "event 8 of the ledger of m does not follow event 7: the chain is broken"),
    (remove_everything, "truncated: event 7 of the ledger of m, which this machine has seen, is gone"),
    (damage_the_last, "rewritten: event 7 of the ledger of m, which this machine has seen, is now another"),
    (start_anew, "event 8 of the ledger of m does not follow event 7: the chain is broken"),
]


@pytest.mark.parametrize(("tamper", "complaint"), TAMPERED, ids=[tamper.__name__ for tamper, _ in TAMPERED])
def test_who_has_seen_the_head_refuses_another_history(
    store: Store, tmp_path: Path, tamper: Callable[[Store], None], complaint: str
) -> None:
    prepared(store, tmp_path)
    tamper(store)
    left = events(store)
    for registry in (machine(store, tmp_path, "ada"), machine(store, tmp_path, "bob")):  # of the same machine
        for ask in (
            lambda r: r.read("m"),
            lambda r: r.change("m", promoting(2)),
            lambda r: r.names(),
        ):
            with pytest.raises(IntegrityError, match=complaint) as caught:
                ask(registry)
            assert "backup" in caught.value.hint
        with pytest.raises(IntegrityError, match="ledger of m"):
            registry.audit("m")
    assert events(store) == left  # nothing was written onto it
    assert len(machine(store, tmp_path).remembered("m").events) == 7


def test_a_ledger_that_was_started_anew_on_purpose(store: Store, tmp_path: Path) -> None:
    """The hint names the file to remove, and removing it is enough."""
    prepared(store, tmp_path / "seen")
    remove_everything(store)
    with pytest.raises(IntegrityError) as caught:
        machine(store, tmp_path / "seen").read("m")
    file = Path(caught.value.hint.rpartition("remove ")[2].removesuffix("."))
    file.unlink()
    assert machine(store, tmp_path / "seen").read("m").events == []


@pytest.mark.parametrize("sequence", [1, 3, 6])
def test_a_removed_event_in_the_middle_is_found_by_audit_and_by_newcomers(
    store: Store, tmp_path: Path, sequence: int
) -> None:
    prepared(store, tmp_path)
    remove(store, sequence)
    seen = machine(store, tmp_path)
    assert len(seen.read("m").events) == 7  # it has them all, and the head is there
    for ask in (seen.audit, machine(store, tmp_path / "new").read):
        with pytest.raises(IntegrityError, match=f"event {sequence} of the ledger of m is missing; it has 7"):
            ask("m")


@pytest.mark.parametrize("sequence", [1, 4])
def test_a_changed_event_in_the_middle_is_found_by_audit_and_by_newcomers(
    store: Store, tmp_path: Path, sequence: int
) -> None:
    prepared(store, tmp_path)
    value = json.loads(events(store)[sequence - 1])
    put(store, sequence, canonical.encode({**value, "actor": "eve"}))
    seen = machine(store, tmp_path)
    assert len(seen.read("m").events) == 7
    for ask in (seen.audit, machine(store, tmp_path / "new").read):
        with pytest.raises(IntegrityError, match=f"event {sequence + 1} .* the chain is broken"):
            ask("m")


def test_stray_files_in_the_ledgers_folder_are_not_events(store: Store, tmp_path: Path) -> None:
    prepared(store, tmp_path)
    strays = [
        "README", ".hidden", "0000000008.json.tmp", "0000000008", "8.json", "00000000008.json", "0000000000.json",
        "+000000008.json", "٠٠٠٠٠٠٠٠٠٨.json", "sub/0000000008.json", "0000000009.json/x", "x.json",
    ]  # fmt: skip
    for stray in strays:
        store.upload(f"ledger/m/{stray}", [b"stray"], 5)
    for registry in (machine(store, tmp_path), machine(store, tmp_path / "new")):
        assert len(registry.read("m").events) == len(registry.audit("m").events) == 7
        assert registry.names() == ["m"]
    _, event = machine(store, tmp_path / "new").change("m", promoting(2))
    assert event is not None
    assert event.sequence == 8


def test_an_event_from_nowhere_beyond_the_end_is_found_by_audit(store: Store, tmp_path: Path) -> None:
    prepared(store, tmp_path)
    put(store, 9, events(store)[6])
    assert len(machine(store, tmp_path).read("m").events) == 7
    with pytest.raises(IntegrityError, match="event 8 of the ledger of m is missing; it has 9"):
        machine(store, tmp_path).audit("m")


def test_what_is_no_event_is_refused_by_everybody(store: Store, tmp_path: Path) -> None:
    prepared(store, tmp_path)
    put(store, 8, b"{}")
    for registry in (machine(store, tmp_path), machine(store, tmp_path / "new")):
        for ask in (registry.read, registry.audit, lambda n, r=registry: r.change(n, promoting(2))):
            with pytest.raises(IntegrityError, match="event 8 of the ledger of m"):
                ask("m")
