"""The ledger: decisions, the fold, and what no chain may say."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packtrain.errors import Conflict, IntegrityError, NotFound, Refused, UsageError
from packtrain.model import canonical
from packtrain.model.digest import Digest
from packtrain.model.ledger import GENESIS, Draft, Event, Log, timestamp
from packtrain.model.manifest import Chunks, FileEntry, Manifest
from packtrain.model.mirror import Policy
from packtrain.model.reference import Reference
from tests.model.examples import MERGED, Writer, hex_of, ledger_with_every_action
from tests.model.strategies import mutations

NAME = "llama-finetuned"
EVENTS = ledger_with_every_action().events


def manifest(text: str) -> Manifest:
    return Manifest.of("merged", [FileEntry("a", 1, hex_of(text), Chunks([1], [hex_of(text)]))])


def with_versions(count: int) -> Writer:
    writer = Writer("m")
    for number in range(1, count + 1):
        writer.publish(manifest(str(number)))
    return writer


def read(events: list[bytes]) -> Log:
    log = Log(NAME)
    for data in events:
        log.extend(data)
    return log


def rechained(values: list[dict[str, Any]]) -> list[bytes]:
    """The events with right numbers and a chain that holds: what a forger would write."""
    events: list[bytes] = []
    previous = GENESIS
    for number, value in enumerate(values, start=1):
        events.append(canonical.encode({**value, "seq": number, "previous": previous}))
        previous = Digest.of(events[-1]).hex
    return events


def values() -> list[dict[str, Any]]:
    return [json.loads(data) for data in EVENTS]


# Decisions


def test_a_gated_alias_takes_what_passed_its_last_gate() -> None:
    writer = with_versions(2)
    writer.append(writer.log.state.set_policy(Policy(gated=frozenset({"production"}))))
    digest = writer.log.state.versions[2].digest

    def attach(kind: str, record: str) -> None:
        draft = writer.log.state.attach(digest, kind, Digest(hex_of(record)))
        assert draft is not None
        writer.append(draft)

    with pytest.raises(Refused, match="m/2 has not passed a gate") as refused:
        writer.log.state.promote("production", 2)
    assert refused.value.advice.endswith("packtrain gate m/2")
    assert writer.log.state.promote("staging", 2) is not None
    attach("golden", "golden")
    attach("gate", "passed")
    assert writer.log.state.promote("production", 2) is not None
    attach("gate.failed", "failed")
    with pytest.raises(Refused, match="m/2 failed its gate"):
        writer.log.state.promote("production", 2)
    attach("gate", "passed")
    assert writer.log.state.promote("production", 2) is not None


def test_promote_and_expect() -> None:
    writer = with_versions(2)
    state = writer.log.state
    with pytest.raises(NotFound, match="m/3 does not exist; its newest is 2"):
        state.promote("production", 3)
    with pytest.raises(UsageError, match="reserved"):
        state.promote("latest", 1)
    with pytest.raises(Conflict, match="is not set, not at version 1"):
        state.promote("production", 1, expect=1)
    writer.append(state.promote("production", 1, expect=0))
    state = writer.log.state
    assert state.current("production") == 1
    assert state.promote("production", 1) is None
    assert state.promote("production", 1, expect=1) is None
    with pytest.raises(Conflict, match="is at version 1, not at version 0"):
        state.promote("production", 2, expect=0)
    with pytest.raises(Conflict, match="is at version 1, not at version 2"):
        state.roll_back("production", expect=2)


def promote(writer: Writer, *numbers: int) -> None:
    for number in numbers:
        writer.append(writer.log.state.promote("p", number))


def roll_back(writer: Writer, to: int | None = None) -> int | None:
    writer.append(writer.log.state.roll_back("p", to=to))
    return writer.log.state.current("p")


def test_rollback_goes_further_back_and_never_to_and_fro() -> None:
    writer = with_versions(3)
    promote(writer, 1, 2, 3)
    assert [roll_back(writer), roll_back(writer)] == [2, 1]
    with pytest.raises(Refused, match="no earlier one"):
        roll_back(writer)


def test_rollback_after_a_promotion_goes_to_what_was_before_it() -> None:
    writer = with_versions(4)
    promote(writer, 1, 2, 3)
    assert roll_back(writer) == 2
    promote(writer, 4)
    assert [roll_back(writer), roll_back(writer)] == [2, 1]


def test_rollback_skips_archived_versions_and_the_current_one() -> None:
    writer = with_versions(3)
    promote(writer, 1, 2, 3, 2)
    writer.append(writer.log.state.archive(3))
    assert roll_back(writer) == 1
    with pytest.raises(Refused, match="no earlier one"):
        roll_back(writer)


def test_rollback_to_one_further_back() -> None:
    writer = with_versions(4)
    promote(writer, 1, 2, 3)
    with pytest.raises(Refused, match="was not at version 4 before 3") as caught:
        roll_back(writer, to=4)
    assert "packtrain promote m/4 --to p" in caught.value.hint
    with pytest.raises(Refused, match="was not at version 3 before 3"):
        roll_back(writer, to=3)
    writer.append(writer.log.state.archive(2))
    with pytest.raises(Refused, match="m/2 is archived"):
        roll_back(writer, to=2)
    assert roll_back(writer, to=1) == 1
    with pytest.raises(NotFound, match="no alias 'q'"):
        writer.log.state.roll_back("q")


def test_archive() -> None:
    writer = with_versions(2)
    promote(writer, 1)
    with pytest.raises(Refused, match="m/1 is @p"):
        writer.log.state.archive(1)
    with pytest.raises(NotFound):
        writer.log.state.archive(3)
    writer.append(writer.log.state.archive(2, reason="bad"))
    state = writer.log.state
    assert state.archive(2) is None
    assert state.latest.number == 1
    with pytest.raises(Refused, match="archived and cannot be promoted"):
        state.promote("p", 2)


def test_the_same_bytes_are_the_version_that_they_are() -> None:
    writer = with_versions(2)
    again = manifest("1")

    def create(force: bool = False) -> Draft | None:
        return writer.log.state.create_version(again, again.digest, "id", code=False, base=None, force=force)

    assert create() is None
    forced = create(force=True)
    assert forced is not None
    assert forced.details["version"] == 3
    writer.append(writer.log.state.archive(1))
    assert create() is not None  # an archived version is not one to point people to


def test_reference() -> None:
    writer = with_versions(1)
    base, adapter = manifest("1").digest, Digest.of(b"adapter")
    writer.append(writer.log.state.reference(base, "a", adapter))
    assert writer.log.state.reference(base, "a", adapter) is None
    assert writer.log.state.reference(base, "b", adapter) is not None
    with pytest.raises(Refused, match="has no version"):
        writer.log.state.reference(adapter, "a", adapter)
    writer.append(writer.log.state.archive(1))
    with pytest.raises(Refused, match="is archived"):
        writer.log.state.reference(base, "b", adapter)


def test_attach_notes_a_record_once_before_or_after_the_version() -> None:
    writer = Writer("m")
    one, first, second = manifest("1"), Digest.of(b"1"), Digest.of(b"2")
    writer.append(writer.log.state.attach(one.digest, "lineage", first))
    assert writer.log.state.attach(one.digest, "lineage", first) is None
    writer.publish(one)
    assert writer.log.state.version(1).lineage == first
    writer.append(writer.log.state.attach(one.digest, "lineage", second))
    writer.append(writer.log.state.attach(one.digest, "golden", first))
    assert writer.log.state.version(1).lineage == second
    assert writer.log.state.records[one.digest] == {"lineage": second, "golden": first}


def test_resolve() -> None:
    writer = with_versions(2)
    promote(writer, 1)
    state = writer.log.state

    def number(text: str) -> int:
        return state.resolve(Reference.parse(text)).number

    assert number("m") == number("m@latest") == number("m/2") == 2
    assert number("m@p") == number("m/1") == number(f"m@{manifest('1').digest}") == 1
    with pytest.raises(NotFound, match="m/7 does not exist; its newest is 2"):
        number("m/7")
    with pytest.raises(NotFound, match=r"no alias 'q' \(its aliases: p\)"):
        number("m@q")
    with pytest.raises(NotFound, match="no version with the digest"):
        number(f"m@{MERGED.digest}")
    with pytest.raises(NotFound, match=r"m has no version$"):
        Log("m").state.resolve(Reference("m"))
    writer.append(state.archive(2))
    assert writer.log.state.resolve(Reference("m")).number == 1


def test_a_name_whose_versions_are_all_archived() -> None:
    writer = with_versions(1)
    writer.append(writer.log.state.archive(1))
    with pytest.raises(NotFound, match="no version that is not archived"):
        _ = writer.log.state.latest


@given(
    st.datetimes(
        timezones=st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=30))]), min_value=datetime(1, 1, 3)
    ),
    st.timedeltas(timedelta(0), timedelta(days=300)),
)
def test_timestamps_sort_as_text(moment: datetime, later: timedelta) -> None:
    try:
        after = moment + later
        assert timestamp(moment) <= timestamp(after)
    except OverflowError:
        return
    assert datetime.fromisoformat(timestamp(moment)) <= moment


# Nothing is written that every reader refuses


@pytest.mark.parametrize(
    ("draft", "actor"),
    [
        (Draft("alias.promoted", {"alias": "p", "from": None, "to": 1, "reason": "\ud800"}), "ada"),
        (Draft("alias.promoted", {"alias": "p", "from": None, "to": 9, "reason": ""}), "ada"),
        (Draft("version.archived", {"version": 1, "reason": ""}), ""),
        (Draft("version.archived", {"version": 1, "reason": ""}), "\udcff"),
        (Draft("publish.begin", {"digest": "a" * 64, "publish_id": "i", "lease_until": "tomorrow"}), "ada"),
        (Draft("made.up", {}), "ada"),
    ],
)
def test_a_draft_that_readers_would_refuse_is_not_drafted(draft: Draft, actor: str) -> None:
    log = with_versions(1).log
    with pytest.raises(UsageError, match="cannot be written into the ledger of m"):
        log.draft(draft, nonce="1", time=Writer.moment(9), actor=actor)


def test_a_time_of_another_form_is_not_drafted() -> None:
    with pytest.raises(UsageError):
        with_versions(1).log.draft(
            Draft("version.archived", {"version": 1, "reason": ""}), nonce="1", time="2026-01-02 03:04", actor="ada"
        )


# What no chain may say


def test_the_fold_of_the_bytes_is_the_fold() -> None:
    log = read(EVENTS)
    assert log.state == ledger_with_every_action().log.state
    assert [event.encode() for event in log.events] == EVENTS
    assert log.head == Digest.of(EVENTS[-1]).hex


def first_refusal(events: list[bytes]) -> int | None:
    """The number of the event at which reading stops; nothing of it may stay in the log."""
    log = Log(NAME)
    for number, data in enumerate(events, start=1):
        state, head = log.state, log.head
        try:
            log.extend(data)
        except IntegrityError as error:
            assert error.message.startswith(f"event {number} of the ledger of {NAME}")  # noqa: PT017
            assert (log.state, log.head, len(log.events)) == (state, head, number - 1)
            return number
    return None


@given(st.data())
def test_a_flipped_bit_shows_at_once_or_in_the_next_event(data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(EVENTS) - 1))
    place, bit = data.draw(st.integers(0, len(EVENTS[index]) - 1)), data.draw(st.integers(0, 7))
    bad = EVENTS[index][:place] + bytes([EVENTS[index][place] ^ (1 << bit)]) + EVENTS[index][place + 1 :]
    refused = first_refusal([*EVENTS[:index], bad, *EVENTS[index + 1 :]])
    if index + 1 < len(EVENTS):
        assert refused in (index + 1, index + 2)
    elif refused is None:  # the last event may say another thing that can be; whoever has seen the head knows
        assert read([*EVENTS[:-1], bad]).head != read(EVENTS).head


@given(st.permutations(range(len(EVENTS))))
def test_events_in_another_order_are_refused(order: list[int]) -> None:
    moved = [place for place, index in enumerate(order) if place != index]
    assert first_refusal([EVENTS[i] for i in order]) == (moved[0] + 1 if moved else None)


@pytest.mark.parametrize("index", range(len(EVENTS) - 1))
def test_a_removed_or_repeated_event_is_refused(index: int) -> None:
    assert first_refusal(EVENTS[:index] + EVENTS[index + 1 :]) == index + 1
    assert first_refusal(EVENTS[: index + 1] + EVENTS[index:]) == index + 2


def test_the_ledger_of_another_model_is_refused() -> None:
    with pytest.raises(IntegrityError, match="says that it is event 1 of llama-finetuned"):
        Log("other").extend(EVENTS[0])


# What an event may say instead, one mutation away, and still be possible. None of it can be told from the truth by
# reading; whoever has seen the head refuses it.
POSSIBLE = {
    f".{text} {how}"
    for text in ("actor", "nonce", "details.reason", "details.alias", "details.kind", "details.name",
                 "details.publish_id", "details.base.name", "details.node", "details.by")
    for how in ("longer", "shorter", "in capitals")
} | {
    ".details with an unknown field", ".details.base with an unknown field", ".details.base removed",
    ".details.base.version + 1", ".details.code removed", ".details.size + 1",
    ".details.digests[0] removed", ".details.records[0] removed",
}  # fmt: skip


@pytest.mark.parametrize(
    "index", range(len(EVENTS)), ids=[f"{json.loads(e)['action']}-{i}" for i, e in enumerate(EVENTS)]
)
def test_a_forged_event_in_a_chain_that_holds_cannot_say_what_cannot_be(index: int) -> None:
    good = values()
    accepted = set()
    for what, mutated in mutations(good[index]):
        if not isinstance(mutated, dict) or what.startswith((".seq", ".previous")):
            continue  # `rechained` sets them right
        if first_refusal(rechained([*good[:index], mutated])) is None:
            accepted.add(what)
    assert accepted <= POSSIBLE


DIGEST, OTHER = MERGED.digest.hex, "0" * 64
BEGIN = {"digest": OTHER, "publish_id": "again", "lease_until": Writer.moment(0)}
CREATE = {"version": 3, "digest": DIGEST, "payload": OTHER, "kind": "merged", "size": 1, "publish_id": "again"}


@pytest.mark.parametrize(
    ("action", "details", "complaint"),
    [
        ("alias.promoted", {"alias": "production", "from": 1, "to": 3, "reason": ""}, "does not exist or is archived"),
        ("alias.promoted", {"alias": "production", "from": 1, "to": 2, "reason": ""}, "does not exist or is archived"),
        ("alias.promoted", {"alias": "production", "from": 1, "to": 1, "reason": ""}, "from 1 to 1"),
        ("alias.promoted", {"alias": "production", "from": 2, "to": 1, "reason": ""}, "it was at 1"),
        ("alias.promoted", {"alias": "production", "from": None, "to": 1, "reason": ""}, "it was at 1"),
        ("alias.promoted", {"alias": "staging", "from": 1, "to": 1, "reason": ""}, "it was at None"),
        ("alias.promoted", {"alias": "staging", "from": False, "to": 1, "reason": ""}, "it was at None"),
        ("alias.promoted", {"alias": "latest", "from": None, "to": 1, "reason": ""}, "reserved"),
        ("alias.promoted", {"alias": "a/b", "from": None, "to": 1, "reason": ""}, "is not an alias"),
        ("alias.promoted", {"alias": "staging", "from": None, "to": 1}, "it lacks 'reason'"),
        ("alias.promoted", {"alias": "staging", "from": None, "to": 0, "reason": ""}, "not a version number"),
        ("alias.promoted", {"alias": "staging", "from": None, "to": True, "reason": ""}, "not a version number"),
        ("alias.promoted", {"alias": ["a"], "from": None, "to": 1, "reason": ""}, "is not a text"),
        ("alias.rolled_back", {"alias": "production", "from": 1, "to": 2, "reason": ""}, "archived"),
        ("alias.rolled_back", {"alias": "production", "from": 1, "to": 1, "reason": ""}, "from 1 to 1"),
        ("alias.rolled_back", {"alias": "staging", "from": None, "to": 1, "reason": ""}, "was not at"),
        ("version.archived", {"version": 1, "reason": ""}, "an alias points at"),
        ("version.archived", {"version": 2, "reason": ""}, "archived already"),
        ("version.archived", {"version": 3, "reason": ""}, "it lacks 3"),
        ("version.created", {**CREATE}, "no publish.begin"),
        ("version.created", {**CREATE, "version": 4}, "out of order"),
        ("version.created", {**CREATE, "version": 1}, "out of order"),
        ("version.created", {**CREATE, "publish_id": ["x"]}, "not valid"),
        ("referenced", {"base": OTHER, "name": "a", "digest": OTHER}, "does not exist or is archived"),
        ("referenced", {"base": DIGEST, "name": "../a", "digest": OTHER}, "is not a name"),
        ("attached", {"digest": DIGEST, "kind": "", "sha256": OTHER}, "is not a text"),
        ("attached", {"digest": DIGEST.upper(), "kind": "x", "sha256": OTHER}, "not a SHA-256 digest"),
        ("publish.begin", {**BEGIN, "lease_until": "soon"}, "not a timestamp"),
    ],
)  # fmt: skip
def test_impossible_events(action: str, details: dict[str, Any], complaint: str) -> None:
    forged = rechained([*values(), {**values()[-1], "action": action, "details": details}])
    assert first_refusal(forged) == len(forged)
    with pytest.raises(IntegrityError, match=complaint):
        read(forged)


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "quantized"}, {"size": -1}, {"size": True}, {"code": False}, {"code": 1}, {"base": {}}, {"base": None},
        {"base": {"name": "../../x", "version": 1, "digest": DIGEST}}, {"payload": "x"}, {"digest": OTHER},
        {"base": {"name": "x", "version": 0, "digest": DIGEST}},
        {"kind": "merged", "base": {"name": "x", "version": 1, "digest": DIGEST}},
    ],
    ids=repr,
)  # fmt: skip
def test_versions_that_no_publish_creates(change: dict[str, Any]) -> None:
    created = values()[6]
    assert created["action"] == "version.created"
    forged = rechained([*values()[:6], {**created, "details": {**created["details"], **change}}])
    assert first_refusal(forged) == 7


def test_a_version_needs_its_own_publish() -> None:
    """The second version.created of one publish.begin is refused: it was used up by the first."""
    good = values()
    again = {**good[2], "details": {**good[2]["details"], "version": 2}}
    assert first_refusal(rechained([*good[:3], again])) == 4


def test_a_publish_is_not_renewed_for_another_digest() -> None:
    good = values()
    other = {**good[1], "details": {**good[1]["details"], "digest": OTHER}}
    assert first_refusal(rechained([*good[:2], other])) == 3
    assert first_refusal(rechained([*good[:2], good[1], good[2]])) is None


def test_an_unknown_action_says_what_to_do() -> None:
    with pytest.raises(
        IntegrityError, match=r"the action 'alias\.teleported', which this Packtrain does not know"
    ) as e:
        read(rechained([{**values()[0], "action": "alias.teleported"}]))
    assert "upgrade" in e.value.hint


@pytest.mark.parametrize("schema", ["packtrain.ledger/2", None, 1])
def test_an_unknown_schema_says_what_to_do(schema: Any) -> None:
    with pytest.raises(IntegrityError, match=r"has the schema .*; this Packtrain reads packtrain\.ledger/1") as e:
        read(rechained([{**values()[0], "schema": schema}]))
    assert "upgrade" in e.value.hint


@given(st.binary() | st.text().map(str.encode))
def test_nonsense_is_an_integrity_error(data: bytes) -> None:
    with pytest.raises(IntegrityError):
        Event.decode(data, what="it")


def swap(one: int, other: int) -> Callable[[list[dict[str, Any]]], list[dict[str, Any]]]:
    def swapped(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
        events[one], events[other] = events[other], events[one]
        return events

    return swapped


@pytest.mark.parametrize("forge", [swap(1, 2), swap(2, 3), swap(6, 7), swap(7, 8), swap(8, 9)])
def test_a_rechained_history_in_an_impossible_order_is_refused(forge: Callable[[Any], list[dict[str, Any]]]) -> None:
    assert first_refusal(rechained(forge(values()))) is not None
