"""Decisions and the fold against a model that keeps a list for each alias."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from packtrain.errors import Conflict, NotFound, Refused
from packtrain.model.digest import Digest
from packtrain.model.ledger import Draft, Log
from packtrain.model.manifest import Chunks, FileEntry, Manifest
from tests.model.examples import Writer, hex_of

aliases = st.sampled_from(["production", "staging"])
numbers = st.integers(1, 6)
expects = st.none() | st.integers(0, 4)


def manifest(content: str) -> Manifest:
    return Manifest.of("merged", [FileEntry("model", 1, hex_of(content), Chunks([1], [hex_of(content)]))])


class Ledger(RuleBasedStateMachine):
    """``contents`` of each version, which are ``archived``, and ``trail`` of each alias: all that people know."""

    def __init__(self) -> None:
        super().__init__()
        self.writer = Writer("m")
        self.contents: list[str] = []
        self.archived: set[int] = set()
        self.trails: dict[str, list[int]] = {}
        self.left_by_rollback: dict[str, set[int]] = {}  # since the last promotion

    def append(self, draft: Draft) -> None:
        """A decision that drafts something always extends the log."""
        before = len(self.writer.log.events)
        self.writer.append(draft)
        assert len(self.writer.log.events) == before + 1

    def current(self, alias: str) -> int:
        return self.trails[alias][-1] if alias in self.trails else 0

    @initialize()
    def first_version(self) -> None:
        self.publish("a", force=False)

    @rule(content=st.sampled_from("abc"), force=st.booleans())
    def publish(self, content: str, force: bool) -> None:
        state, new = self.writer.log.state, manifest(content)
        live = [n for n, c in enumerate(self.contents, start=1) if c == content and n not in self.archived]
        draft = state.create_version(new, new.digest, "id", code=False, base=None, force=force)
        assert (draft is None) == (bool(live) and not force)
        if draft is None:
            found = state.same_payload(new.payload)
            assert found is not None
            assert found.number == live[-1]
        else:
            self.writer.publish(new)
            self.contents.append(content)

    @rule(alias=aliases, number=numbers, expect=expects)
    def promote(self, alias: str, number: int, expect: int | None) -> None:
        current = self.current(alias)
        try:
            draft = self.writer.log.state.promote(alias, number, expect=expect, reason="r")
        except NotFound:
            assert number > len(self.contents)
        except Conflict:
            assert expect not in (None, current)
        except Refused:
            assert number in self.archived
        else:
            assert number <= len(self.contents)
            assert number not in self.archived
            assert expect in (None, current)
            if draft is None:
                assert current == number
            else:
                self.append(draft)
                self.trails.setdefault(alias, []).append(number)
                self.left_by_rollback[alias] = set()

    @rule(alias=aliases, to=st.none() | numbers, expect=expects)
    def roll_back(self, alias: str, to: int | None, expect: int | None) -> None:
        current = self.current(alias)
        trail = self.trails.get(alias, [])
        choices = [n for n in trail[:-1] if n != current and n not in self.archived and to in (None, n)]
        try:
            draft = self.writer.log.state.roll_back(alias, to=to, expect=expect)
        except Conflict:
            assert expect not in (None, current)
        except NotFound:
            assert current == 0
        except Refused:
            assert choices == []
        else:
            assert expect in (None, current)
            self.append(draft)
            self.left_by_rollback[alias].add(current)
            while trail[-1] != choices[-1]:
                trail.pop()
            if len(set(trail)) == len(trail):  # unless it was promoted twice, it never comes back
                assert choices[-1] not in self.left_by_rollback[alias]

    @rule(number=numbers)
    def archive(self, number: int) -> None:
        try:
            draft = self.writer.log.state.archive(number)
        except NotFound:
            assert number > len(self.contents)
        except Refused:
            assert number in {trail[-1] for trail in self.trails.values()}
        else:
            assert (draft is None) == (number in self.archived)
            if draft is not None:
                self.append(draft)
                self.archived.add(number)

    @rule(content=st.sampled_from("abc"), record=st.sampled_from("xy"))
    def attach(self, content: str, record: str) -> None:
        digest, named = manifest(content).digest, Digest(hex_of(record))
        if draft := self.writer.log.state.attach(digest, "lineage", named):
            self.append(draft)
        assert self.writer.log.state.records[digest]["lineage"] == named

    @rule(content=st.sampled_from("abc"), adapter=st.sampled_from("xy"))
    def reference(self, content: str, adapter: str) -> None:
        live = [n for n, c in enumerate(self.contents, start=1) if c == content and n not in self.archived]
        digest, needs = manifest(content).digest, Digest(hex_of(adapter))
        try:
            draft = self.writer.log.state.reference(digest, "adapter", needs)
        except Refused:
            assert live == []
        else:
            assert live
            if draft:
                self.append(draft)

    @invariant()
    def the_state_is_what_people_know(self) -> None:
        state = self.writer.log.state
        assert [state.versions[n].payload for n in range(1, len(self.contents) + 1)] == [
            manifest(content).payload for content in self.contents
        ]
        assert {n for n, version in state.versions.items() if version.archived} == self.archived
        assert {alias: list(trail) for alias, trail in state.trails.items()} == self.trails
        assert state.aliases == {alias: self.current(alias) for alias in sorted(self.trails)}

    @invariant()
    def what_serves_is_not_archived(self) -> None:
        assert not {trail[-1] for trail in self.trails.values()} & self.archived

    def teardown(self) -> None:
        again = Log("m")
        for data in self.writer.events:
            again.extend(data)
        assert again.state == self.writer.log.state
        assert again.head == self.writer.log.head
        assert again.events == self.writer.log.events


Ledger.TestCase.settings = settings(max_examples=60, stateful_step_count=30)
TestLedger = Ledger.TestCase
