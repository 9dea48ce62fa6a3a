"""What nothing names any more: decided on states alone."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packtrain.errors import UsageError
from packtrain.model.digest import Digest
from packtrain.model.duration import about, duration
from packtrain.model.lease import Holder, Lease
from packtrain.model.ledger import Draft, Log, State, timestamp
from packtrain.model.manifest import Chunks, FileEntry, Manifest
from packtrain.model.reachability import SKEW, Hold, Holdings, Rules, World, epitaph, epitaph_of_record, later
from packtrain.model.version import BaseVersion
from tests.model.examples import START, Writer, hex_of

HOUR, DAY = timedelta(hours=1), timedelta(days=1)


def manifest(content: str, kind: str = "merged") -> Manifest:
    return Manifest.of(kind, [FileEntry("model", 1, hex_of(content), Chunks([1], [hex_of(content)]))])


def at(after: timedelta, grace: timedelta = 7 * DAY) -> Rules:
    return Rules(START + after, grace)


def holds(state: State, digest: Digest, rules: Rules, **others: State) -> Hold | None:
    return World({state.name: state, **others}, Holdings(), rules).hold(state, digest)


@pytest.fixture
def writer() -> Writer:
    """m/1 is archived, m/2 is not."""
    writer = Writer("m")
    writer.publish(manifest("one"))
    writer.publish(manifest("two"))
    writer.append(writer.log.state.archive(1))
    return writer


def test_what_a_version_names_stays_for_ever(writer: Writer) -> None:
    assert holds(writer.log.state, manifest("two").digest, at(9999 * DAY, timedelta(0))) == Hold("m/2 names it")


def test_an_archived_version_stays_for_its_grace_period(writer: Writer) -> None:
    state, digest = writer.log.state, manifest("one").digest
    archived = state.version(1).archived_at
    assert archived is not None
    hold = holds(state, digest, at(6 * DAY))
    assert hold == Hold(f"m/1 was archived at {archived}", later(archived, 7 * DAY))
    assert holds(state, digest, at(7 * DAY + HOUR)) is None
    assert holds(state, digest, at(timedelta(seconds=10), timedelta(0))) is None


def test_the_newest_of_several_versions_of_the_same_bytes_counts(writer: Writer) -> None:
    writer.publish(manifest("one"))
    digest = manifest("one").digest
    assert holds(writer.log.state, digest, at(99 * DAY)) == Hold("m/3 names it")
    writer.append(writer.log.state.archive(3))
    assert "m/3 was archived" in str(holds(writer.log.state, digest, at(DAY)))


def test_a_publish_stays_while_it_runs_and_as_long_as_it_may_go_on(writer: Writer) -> None:
    new = manifest("new").digest
    writer.append(writer.log.state.begin_publish(new, "id", timestamp(START + HOUR)))
    writer.append(writer.log.state.begin_publish(new, "other", timestamp(START + 2 * HOUR)))
    state = writer.log.state
    assert holds(state, new, at(HOUR)) == Hold("a publish is under way", timestamp(START + 2 * HOUR))
    hold = holds(state, new, at(3 * HOUR))
    assert hold == Hold("a publish that was interrupted may go on", timestamp(START + 2 * HOUR + 7 * DAY))
    assert holds(state, new, at(7 * DAY + 3 * HOUR)) is None
    assert epitaph(state, new) == f"a publish never finished; its lease ended at {timestamp(START + 2 * HOUR)}"


def test_a_reader_in_place_keeps_what_it_reads(writer: Writer) -> None:
    state, digest = writer.log.state, manifest("one").digest
    lease = Lease(Holder("gpu", 1, "ada"), timestamp(START + 30 * DAY))

    def hold(after: timedelta) -> Hold | None:
        return World({"m": state}, Holdings(leases={("m", digest): (lease,)}), at(after)).hold(state, digest)

    assert hold(30 * DAY) == Hold("ada on gpu (process 1) uses it in place", lease.until)
    assert hold(30 * DAY + SKEW / 2) is not None
    assert hold(30 * DAY + 2 * SKEW) is None


def test_a_base_goes_after_the_last_adapter_that_can_ever_need_it(writer: Writer) -> None:
    """One that no version names yet may be named when its publish wakes up; one that is condemned cannot."""
    base = BaseVersion("m", 2, manifest("two").digest)
    adapter = manifest("adapter", "adapter").digest
    writer.append(writer.log.state.reference(base.digest, "a", adapter))
    writer.append(writer.log.state.archive(2))
    state, rules = writer.log.state, at(99 * DAY)
    assert holds(state, base.digest, rules) == Hold(f"the adapter a {adapter.short} needs it as its base")
    other = Writer("a")
    other.append(other.log.state.begin_publish(adapter, "id", timestamp(START + HOUR)))
    assert holds(state, base.digest, rules, a=other.log.state) is not None
    world = World({"m": state, "a": other.log.state}, Holdings(), rules)
    assert world.condemnable(state)[0] == {manifest("one").digest}
    assert world.foresee() == {"m": {manifest("one").digest, base.digest}, "a": {adapter}}
    other.append(other.log.state.condemn([adapter], []))
    assert holds(state, base.digest, rules, a=other.log.state) is None


def test_records(writer: Writer) -> None:
    record, other, orphan = (Digest(hex_of(text)) for text in ("record", "other", "orphan"))
    unborn = manifest("unborn").digest
    writer.append(writer.log.state.begin_publish(unborn, "id", timestamp(START + HOUR)))
    writer.append(writer.log.state.attach(manifest("one").digest, "lineage", record))
    writer.append(writer.log.state.attach(unborn, "lineage", record))
    writer.append(writer.log.state.attach(unborn, "lineage", other))
    state = writer.log.state

    def condemnable(after: timedelta, written: datetime | None = START) -> set[Digest]:
        records = {("m", each): written for each in (record, other, orphan)}
        world = World({"m": state}, Holdings(records=records), at(after))
        return set(world.condemnable(state)[1])

    assert condemnable(timedelta(minutes=5), None) == set()  # a publish is under way
    assert condemnable(DAY) == set()
    assert condemnable(2 * HOUR, None) == {orphan}  # nobody knows how old it is, and no publish runs
    assert condemnable(7 * DAY + 2 * HOUR) == {orphan, other}  # that of an archived version stays: it is history
    assert epitaph_of_record(state, orphan) == "no event names it"
    assert "never finished" in epitaph_of_record(state, other)


def test_what_is_collected_has_its_epitaph(writer: Writer) -> None:
    digest = manifest("one").digest
    assert "was archived at" in epitaph(writer.log.state, digest)
    writer.append(writer.log.state.condemn([digest], []))
    assert writer.log.state.version(1).collected
    assert epitaph(writer.log.state, digest).startswith("m/1 was collected")
    assert writer.log.state.condemn([digest], []) is None
    again = writer.log.state.uncondemned(manifest("one"))
    assert (again.incarnation, again.payload) == (1, manifest("one").payload)
    assert Manifest.decode(again.encode(), expect=again.digest) == again
    assert writer.log.state.uncondemned(manifest("two")) == manifest("two")


@given(st.integers(0, 10**9), st.integers(0, 10**9))
def test_a_longer_grace_period_never_condemns_more(seconds: int, longer: int) -> None:
    writer = Writer("m")
    writer.publish(manifest("one"))
    writer.append(writer.log.state.archive(1))
    short, long = (at(timedelta(seconds=5 * 10**8), timedelta(seconds=s)) for s in (seconds, seconds + longer))
    state = writer.log.state
    assert (
        World({"m": state}, Holdings(), long).condemnable(state)[0]
        <= (World({"m": state}, Holdings(), short).condemnable(state)[0])
    )


def test_nobody_has_heard_of_an_empty_ledger() -> None:
    state = Log("m").state
    assert state.known == frozenset()
    assert World({"m": state}, Holdings(), at(DAY)).foresee() == {"m": frozenset()}
    assert replace(state, condemned=frozenset({Digest("0" * 64)})).known == {Digest("0" * 64)}


def test_no_period_is_too_long() -> None:
    assert later("2026-01-02T03:04:05.678Z", timedelta.max).startswith("9999-12-31")


@pytest.mark.parametrize(
    ("text", "length"),
    [("7d", 7 * DAY), ("12h", 12 * HOUR), ("90s", timedelta(seconds=90)), ("1.5 h", 1.5 * HOUR), ("2W", 14 * DAY)],
)
def test_durations(text: str, length: timedelta) -> None:
    assert duration(text) == length


@pytest.mark.parametrize("text", ["", "7", "d", "-1d", "1y", "1d2h", "1e3d", "9" * 30 + "w"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(UsageError, match="is not a duration"):
        duration(text)


def test_lengths_for_people() -> None:
    shown = [about(length) for length in (30 * DAY, 36 * HOUR, 12 * HOUR, timedelta(minutes=5), timedelta(seconds=1))]
    assert shown == ["30 days", "2 days", "12 hours", "5 min", "1 min"]


def test_what_is_about_to_get_its_number_stays(writer: Writer) -> None:
    """Whoever comes by writes its version, whatever became of its publish: it must not have been condemned."""
    new = manifest("new")
    writer.append(Draft("mirror.bound", {"created": 1}))
    writer.append(writer.log.state.begin_publish(new.digest, "id", timestamp(START + HOUR)))
    draft = writer.log.state.create_version(new, new.digest, "id", code=False, base=None, force=False)
    assert draft is not None
    details = {key: value for key, value in draft.details.items() if key != "version"}
    writer.append(Draft("version.intent", details))
    state, rules = writer.log.state, at(99 * DAY)
    assert holds(state, new.digest, rules) == Hold("it was announced, and waits for its number from MLflow")
    assert World({"m": state}, Holdings(), rules).foresee() == {"m": {manifest("one").digest}}
    condemning = state.condemn([new.digest], [])
    with pytest.raises(UsageError, match="that was announced"):
        writer.append(condemning)
    writer.append(Draft("version.created", {**details, "version": 3}))
    assert holds(writer.log.state, new.digest, rules) == Hold("m/3 names it")
