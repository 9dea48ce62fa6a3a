"""The ledger: the append-only, hash-chained log of what happened to a registered model, and who did it.

Events are stored one an object, ``ledger/<name>/<0000000042>.json``, created only if absent. Each carries its
sequence number, the SHA-256 of the event before it, and a random nonce (so that a lost response is told from another
writer's equal event). `Log` takes their bytes, checks that each extends the chain, and folds them into a `State`.
A `State` answers questions and *decides*: its decision methods return the `Draft` of the event to append, None when
there is nothing to do, or raise. Whoever appends asks again when somebody else was faster, so a decision always
rests on the state it extends.

Actions of schema 1, with their details:

    publish.begin      digest, publish_id, lease_until      before the first upload; again to renew the lease
    attached           digest, kind, sha256                 a record that belongs to a manifest digest: lineage, golden,
                                                            gate (it passed one) or gate.failed, which end each other
    version.created    version, digest, payload, kind, size, publish_id, [code], [base {name, version, digest}]
    alias.promoted     alias, from, to, reason
    alias.rolled_back  alias, from, to, reason
    version.archived   version, reason
    policy             protected, gated                     aliases, sorted: what moving them demands
    referenced         base, name, digest                   in a base's ledger: an adapter needs its version
    condemned          digests, records                     given up: never named again, their objects may go
    node.went_back     node, alias, version, to, reason     a node found the version bad, and serves another
    node.held          node, alias, version, by, reason     somebody holds a node at a version; null: no longer

The law of garbage collection: nothing is deleted that was not condemned before, what is named cannot be condemned, and
what was condemned can never be named. The sequence of the log orders the two, so no clock and no delay can part them:
whoever deletes may sleep for a week in the middle. Bytes that come back have another digest (`State.uncondemned`).

And, where an MLflow server shows the ledger (`packtrain.model.mirror`):

    mirror.bound       created                              its registered model, by the time of its creation (ms)
    version.intent     as version.created, with version only for an entry that is there    before it gets its number
    alias.helped       alias, to                            another than its mover is about to set it in MLflow
    alias.settled      alias, to, own                       MLflow shows it; own: seen by whoever moved it
    alias.adopted      alias, from, to, reason              it was moved in MLflow, and the ledger follows
    alias.restored     alias, found, to                     it was moved in MLflow, and that is undone
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from packtrain.errors import Condemned, Conflict, IntegrityError, NotFound, Refused, UsageError
from packtrain.model import canonical
from packtrain.model.digest import Digest, is_hex256
from packtrain.model.manifest import KINDS, Manifest
from packtrain.model.mirror import Intent, Mirror, Policy
from packtrain.model.reference import Reference, check_alias, check_name
from packtrain.model.version import BaseVersion, ModelVersion

SCHEMA = "packtrain.ledger/1"
GENESIS = "0" * 64  # what the first event names as the one before it
GOLDEN = "golden"  # kinds of records
GATE, GATE_FAILED = "gate", "gate.failed"  # of which the newest counts
MOVES = frozenset({"alias.promoted", "alias.rolled_back", "alias.adopted"})  # actions that point an alias elsewhere

_TIMESTAMP = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z")


def event_key(name: str, sequence: int) -> str:
    """Where an event is in the store."""
    return f"ledger/{name}/{sequence:010d}.json"


def timestamp(moment: datetime) -> str:
    """RFC 3339 in UTC with milliseconds. Timestamps of this form sort as text."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass(frozen=True, slots=True)
class Draft:
    """What an event will say, before it has a place in the log."""

    action: str
    details: Mapping[str, Any]


Decide = Callable[["State"], Draft | None]


@dataclass(frozen=True, slots=True)
class Event:
    """One entry of the log. ``time`` is the writer's clock and orders nothing; ``sequence`` does."""

    name: str
    sequence: int
    previous: str  # 64 hex: SHA-256 of the bytes of the event before
    nonce: str
    time: str
    actor: str
    action: str
    details: Mapping[str, Any]

    def encode(self) -> bytes:
        return canonical.encode(
            {
                "schema": SCHEMA,
                "name": self.name,
                "seq": self.sequence,
                "previous": self.previous,
                "nonce": self.nonce,
                "time": self.time,
                "actor": self.actor,
                "action": self.action,
                "details": dict(self.details),
            }
        )

    @classmethod
    def decode(cls, data: bytes, *, what: str) -> Event:
        """Raises IntegrityError. The chain is `Log`'s to check."""
        value = canonical.decode(data, what=what)
        if not isinstance(value, dict) or value.get("schema") != SCHEMA:
            found = value.get("schema") if isinstance(value, dict) else None
            raise IntegrityError(
                f"{what} has the schema {found!r}; this Packtrain reads {SCHEMA}",
                hint="It was written by another version of Packtrain: upgrade this one.",
            )
        texts = [value.get(key) for key in ("name", "previous", "nonce", "time", "actor", "action")]
        if (
            value.keys() != _EVENT_FIELDS
            or not all(isinstance(text, str) and text for text in texts)
            or not is_hex256(value["previous"])
            or not _TIMESTAMP.fullmatch(value["time"])
            or type(value["seq"]) is not int
            or not isinstance(value["details"], dict)
        ):
            raise IntegrityError(f"{what} is not a valid ledger event")
        return cls(
            name=value["name"],
            sequence=value["seq"],
            previous=value["previous"],
            nonce=value["nonce"],
            time=value["time"],
            actor=value["actor"],
            action=value["action"],
            details=value["details"],
        )


_EVENT_FIELDS = {"schema", "name", "seq", "previous", "nonce", "time", "actor", "action", "details"}


@dataclass(frozen=True, slots=True)
class OpenPublish:
    """A publish that began and has not created its version. ``sequence`` is of its newest publish.begin."""

    digest: Digest
    lease_until: str
    sequence: int


@dataclass(frozen=True, slots=True)
class State:
    """The fold of a log. Never changed: `Log` replaces it event by event.

    ``trails`` maps each alias to the versions it was promoted to, oldest first, the current one last; a rollback
    shortens it, so that a second rollback goes further back and never to and fro.
    """

    name: str
    versions: Mapping[int, ModelVersion] = field(default_factory=dict)
    trails: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    publishes: Mapping[str, OpenPublish] = field(default_factory=dict)
    records: Mapping[Digest, Mapping[str, Digest]] = field(default_factory=dict)  # manifest -> kind -> record
    references: Mapping[Digest, frozenset[tuple[str, Digest]]] = field(default_factory=dict)  # base -> adapters
    attachments: Mapping[Digest, frozenset[Digest]] = field(default_factory=dict)  # record -> manifests, ever
    condemned: frozenset[Digest] = frozenset()  # manifests and records
    policy: Policy = field(default_factory=Policy)
    mirror: Mirror = field(default_factory=Mirror)
    bad: Mapping[int, frozenset[str]] = field(default_factory=dict)  # version -> nodes, since its last promotion
    holds: Mapping[tuple[str, str], int] = field(default_factory=dict)  # node, alias -> version

    # Questions

    @property
    def aliases(self) -> dict[str, int]:
        return {alias: trail[-1] for alias, trail in sorted(self.trails.items())}

    @property
    def latest(self) -> ModelVersion:
        """The newest version that is not archived. Raises NotFound."""
        for number in sorted(self.versions, reverse=True):
            if not self.versions[number].archived:
                return self.versions[number]
        raise NotFound(
            f"{self.name} has no version" + (" that is not archived" if self.versions else ""),
            hint=f"Publish one: packtrain publish DIR --name {self.name}   (packtrain models lists what exists)",
        )

    def aliases_of(self, number: int) -> list[str]:
        return [alias for alias, current in self.aliases.items() if current == number]

    def version(self, number: int) -> ModelVersion:
        """Raises NotFound."""
        if number not in self.versions:
            known = f"; its newest is {max(self.versions)}" if self.versions else ""
            raise NotFound(f"{self.name}/{number} does not exist{known}", hint=f"See: packtrain show {self.name}")
        return self.versions[number]

    def current(self, alias: str) -> int | None:
        trail = self.trails.get(alias)
        return trail[-1] if trail else None

    def resolve(self, reference: Reference) -> ModelVersion:
        """The version that a reference names now. Raises NotFound."""
        if reference.version is not None:
            return self.version(reference.version)
        if reference.alias is not None:
            number = self.current(reference.alias)
            if number is None:
                known = ", ".join(self.aliases) or "none yet"
                raise NotFound(
                    f"{self.name} has no alias {reference.alias!r} (its aliases: {known})",
                    hint=f"Set it: packtrain promote {self.name}/VERSION --to {reference.alias}",
                )
            return self.versions[number]
        if reference.digest is not None:
            for number in sorted(self.versions, reverse=True):
                if self.versions[number].digest == reference.digest:
                    return self.versions[number]
            raise NotFound(
                f"{self.name} has no version with the digest {reference.digest}",
                hint=f"See: packtrain show {self.name}",
            )
        return self.latest

    def same_payload(self, payload: Digest) -> ModelVersion | None:
        """The newest live version that holds exactly these exported bytes."""
        live = [v for v in self.versions.values() if v.payload == payload and not v.archived]
        return max(live, key=lambda v: v.number, default=None)

    @property
    def known(self) -> frozenset[Digest]:
        """Every manifest that was ever about to become a version, or was condemned. Bytes of any
        other are not to be judged by this ledger: it may have been restored from an old backup."""
        return frozenset(
            {
                *(version.digest for version in self.versions.values()),
                *(publish.digest for publish in self.publishes.values()),
                *self.condemned,
            }
        )

    def versions_of(self, digest: Digest) -> list[ModelVersion]:
        """Oldest first. Several, if a version was published again."""
        return [version for _, version in sorted(self.versions.items()) if version.digest == digest]

    def passed_gate(self, digest: Digest) -> bool:
        """Whether the last gate that a version was put through was passed."""
        return GATE in self.records.get(digest, {})

    def uncondemned(self, manifest: Manifest) -> Manifest:
        """The same files under the first digest that can be named."""
        while manifest.digest in self.condemned:
            manifest = manifest.again()
        return manifest

    def uncondemned_record(self, record: bytes) -> bytes:
        """The same record as the first bytes that can be named: a newline at the end of JSON says nothing."""
        while Digest.of(record) in self.condemned:
            record += b"\n"
        return record

    # Decisions

    def begin_publish(self, digest: Digest, publish_id: str, lease_until: str) -> Draft:
        self._require_uncondemned(digest)
        return Draft("publish.begin", {"digest": digest.hex, "publish_id": publish_id, "lease_until": lease_until})

    def attach(self, digest: Digest, kind: str, record: Digest) -> Draft | None:
        self._require_uncondemned(record)
        if not self.versions_of(digest):
            self._require_uncondemned(digest)
        if self.records.get(digest, {}).get(kind) == record:
            return None
        return Draft("attached", {"digest": digest.hex, "kind": kind, "sha256": record.hex})

    def create_version(
        self,
        manifest: Manifest,
        digest: Digest,
        publish_id: str,
        *,
        code: bool,
        base: BaseVersion | None,
        force: bool,
    ) -> Draft | None:
        """None when a live version holds these bytes already and ``force`` is not given."""
        if not force and self.same_payload(manifest.payload):
            return None
        self._require_uncondemned(digest)
        details: dict[str, Any] = {
            "version": max(self.versions, default=0) + 1,
            "digest": digest.hex,
            "payload": manifest.payload.hex,
            "kind": manifest.kind,
            "size": manifest.size,
            "publish_id": publish_id,
        }
        if code:
            details["code"] = True
        if base is not None:
            details["base"] = {"name": base.name, "version": base.version, "digest": base.digest.hex}
        return Draft("version.created", details)

    def promote(self, alias: str, number: int, *, expect: int | None = None, reason: str = "") -> Draft | None:
        """Moves an alias to a version. ``expect`` is the version it must point at now (0: it must not exist)."""
        check_alias(alias)
        version = self.version(number)
        current = self._expect(alias, expect)
        if version.archived:
            raise Refused(
                f"{version} is archived and cannot be promoted",
                hint="Publish it again with --force, or promote another version.",
            )
        if current == number:
            return None
        if alias in self.policy.gated and not self.passed_gate(version.digest):
            failed = GATE_FAILED in self.records.get(version.digest, {})
            raise Refused(
                f"{version} {'failed its' if failed else 'has not passed a'} gate, which the policy of {self.name} "
                f"demands for @{alias}",
                hint=f"Run it, on a machine with vLLM: packtrain gate {version}",
            )
        return Draft("alias.promoted", {"alias": alias, "from": current, "to": number, "reason": reason})

    def roll_back(self, alias: str, *, to: int | None = None, expect: int | None = None, reason: str = "") -> Draft:
        """Moves an alias back to the version promoted before the current one, or to ``to`` further back."""
        current = self._expect(alias, expect)
        if current is None:
            raise NotFound(f"{self.name} has no alias {alias!r}", hint=f"See: packtrain show {self.name}")
        earlier = [n for n in self.trails[alias][:-1] if n != current]
        if to is not None:
            if to not in earlier:
                raise Refused(
                    f"{self.name}@{alias} was not at version {to} before {current}, so it cannot go back to it",
                    hint=f"To move it there all the same: packtrain promote {self.name}/{to} --to {alias}",
                )
            if self.versions[to].archived:
                raise Refused(f"{self.name}/{to} is archived", hint="Choose another version.")
            target = to
        else:
            live = [n for n in earlier if not self.versions[n].archived and n not in self.bad]
            if not live:
                raise Refused(
                    f"{self.name}@{alias} is at version {current} and there is no earlier one to go back to",
                    hint=f"See: packtrain history {self.name}",
                )
            target = live[-1]
        return Draft("alias.rolled_back", {"alias": alias, "from": current, "to": target, "reason": reason})

    def archive(self, number: int, *, reason: str = "") -> Draft | None:
        version = self.version(number)
        if aliases := self.aliases_of(number):
            raise Refused(
                f"{version} is @{', @'.join(aliases)} and cannot be archived",
                hint=f"Move the alias first: packtrain promote {self.name}/OTHER --to {aliases[0]}",
            )
        if version.archived:
            return None
        return Draft("version.archived", {"version": number, "reason": reason})

    def set_policy(self, policy: Policy) -> Draft | None:
        for alias in policy.protected | policy.gated:
            check_alias(alias)
        if policy == self.policy:
            return None
        return Draft("policy", {"protected": sorted(policy.protected), "gated": sorted(policy.gated)})

    def reference(self, base: Digest, name: str, digest: Digest) -> Draft | None:
        """Notes that an adapter needs one of this model's versions. Refused when none of them is live."""
        holders = [v for v in self.versions.values() if v.digest == base]
        if not any(not v.archived for v in holders):
            raise Refused(
                f"the base {self.name}@{base} is archived" if holders else f"{self.name} has no version {base}",
                hint="Publish the base model again, then the adapter.",
            )
        if (name, digest) in self.references.get(base, frozenset()):
            return None
        return Draft("referenced", {"base": base.hex, "name": name, "digest": digest.hex})

    def condemn(self, digests: Iterable[Digest], records: Iterable[Digest]) -> Draft | None:
        """Gives up manifests and records for good. `packtrain.model.reachability` says which may be."""
        given = [sorted(digest.hex for digest in {*each} - self.condemned) for each in (digests, records)]
        return Draft("condemned", {"digests": given[0], "records": given[1]}) if any(given) else None

    def _require_uncondemned(self, digest: Digest) -> None:
        if digest in self.condemned:
            raise Condemned(
                f"garbage collection gave up {digest} of {self.name} before it could be named",
                hint="Run the command again: it starts anew.",
            )

    def went_back(self, node: str, alias: str, number: int, to: int, reason: str) -> Draft | None:
        """Notes that a node found a version bad and went to another by itself."""
        if node in self.bad.get(number, frozenset()):
            return None
        details = {"node": node, "alias": alias, "version": number, "to": to, "reason": reason}
        return Draft("node.went_back", details)

    def hold(self, node: str, alias: str, number: int | None, by: str, reason: str) -> Draft | None:
        """Notes that somebody holds a node at a version, whatever its alias names; None: no longer."""
        if self.holds.get((node, alias)) == number:
            return None
        return Draft("node.held", {"node": node, "alias": alias, "version": number, "by": by, "reason": reason})

    def _expect(self, alias: str, expect: int | None) -> int | None:
        current = self.current(alias)
        if expect is not None and (current or 0) != expect:
            seen = f"at version {current}" if current else "not set"
            raise Conflict(
                f"{self.name}@{alias} is {seen}, not at version {expect} as expected; nothing was changed",
                hint=f"See who moved it: packtrain history {self.name}",
            )
        return current


_DAMAGED = "Read it again. If it stays, it was changed or damaged: restore the ledger folder from a backup."


class Log:
    """A chain of events that was checked as it was read, and its fold.

    `extend` takes the bytes of the next event; it raises IntegrityError, naming the event, and changes nothing, if
    they do not extend the chain or say something that cannot have happened.
    """

    def __init__(self, name: str) -> None:
        self.events: list[Event] = []
        self.head = GENESIS  # SHA-256 (hex) of the newest event's bytes
        self.state = State(name)

    @property
    def name(self) -> str:
        return self.state.name

    def draft(self, draft: Draft, *, nonce: str, time: str, actor: str) -> Event:
        """The event that would extend this log. Raises UsageError if it would not, so that nothing is ever written
        that every reader refuses."""
        event = Event(
            name=self.name,
            sequence=len(self.events) + 1,
            previous=self.head,
            nonce=nonce,
            time=time,
            actor=actor,
            action=draft.action,
            details=draft.details,
        )
        what = f"the next event of the ledger of {self.name}"
        try:
            _fold(self.state, Event.decode(event.encode(), what=what), what)
        except (ValueError, IntegrityError) as error:
            raise UsageError(
                f"{draft.action} by {actor!r} cannot be written into the ledger of {self.name}: {error}",
                hint="Check the texts that were given: the actor must not be empty, and all must be valid Unicode.",
            ) from error
        return event

    def extend(self, data: bytes) -> Event:
        try:
            event = self._checked(data)
        except IntegrityError as error:
            error.hint = error.hint or _DAMAGED
            raise
        self.events.append(event)
        self.head = hashlib.sha256(data).hexdigest()
        return event

    def _checked(self, data: bytes) -> Event:
        """The event, folded into the state."""
        sequence = len(self.events) + 1
        what = f"event {sequence} of the ledger of {self.name}"
        event = Event.decode(data, what=what)
        if event.name != self.name or event.sequence != sequence:
            raise IntegrityError(f"{what} says that it is event {event.sequence} of {event.name}")
        if event.previous != self.head:
            raise IntegrityError(
                f"{what} does not follow event {sequence - 1}: the chain is broken",
                hint="Somebody changed or removed an event. Restore the ledger folder from a backup.",
            )
        self.state = _fold(self.state, event, what)
        return event


# The fold: what each action does to the state. Whoever writes events checks first (State's decisions); whoever reads
# them checks again, so that a forged event cannot say what no Packtrain would have written.


def _fold(state: State, event: Event, what: str) -> State:
    apply = _ACTIONS.get(event.action)
    if apply is None:
        raise IntegrityError(
            f"{what} has the action {event.action!r}, which this Packtrain does not know",
            hint="It was written by a newer Packtrain: upgrade this one.",
        )
    try:
        return apply(state, event)
    except KeyError as error:
        raise IntegrityError(f"{what} ({event.action}) is not valid: it lacks {error}") from error
    except (TypeError, ValueError, UsageError) as error:
        raise IntegrityError(f"{what} ({event.action}) is not valid: {error}") from error


def _begin(state: State, event: Event) -> State:
    d = event.details
    opened = OpenPublish(Digest(d["digest"]), _moment(d["lease_until"]), event.sequence)
    _refuse_condemned(state, opened.digest)
    before = state.publishes.get(_text(d["publish_id"]))
    if before and before.digest != opened.digest:
        raise ValueError("it renews a publish of another digest")
    return replace(state, publishes={**state.publishes, d["publish_id"]: opened})


_ENDS = {GATE: GATE_FAILED, GATE_FAILED: GATE}


def _attached(state: State, event: Event) -> State:
    d = event.details
    digest, record = Digest(d["digest"]), Digest(d["sha256"])
    _refuse_condemned(state, record)
    if not state.versions_of(digest):
        _refuse_condemned(state, digest)
    ended = _ENDS.get(_text(d["kind"]))
    before = {kind: each for kind, each in state.records.get(digest, {}).items() if kind != ended}
    records = {**state.records, digest: {**before, d["kind"]: record}}
    versions = dict(state.versions)
    if d["kind"] == "lineage":
        for number, version in versions.items():
            if version.digest == digest:
                versions[number] = replace(version, lineage=record)
    attachments = {**state.attachments, record: state.attachments.get(record, frozenset()) | {digest}}
    return replace(state, records=records, attachments=attachments, versions=versions)


def _created(state: State, event: Event) -> State:
    d = event.details
    number, digest = _version_number(d["version"]), Digest(d["digest"])
    intent = state.mirror.intents.get(d["publish_id"])
    if intent is not None:
        if number in state.versions or intent.version not in (None, number):
            raise ValueError(f"it creates version {number}, which exists or is not the one that was announced")
        if {**d, "version": None} != {**intent.details, "version": None}:
            raise ValueError("it is not what the version.intent before it says")
    elif state.mirror.created is not None:
        raise ValueError("MLflow numbers the versions of this model, and no version.intent came before it")
    elif number != max(state.versions, default=0) + 1:
        raise ValueError(f"it creates version {number} out of order")
    _check_version(state, d)
    version = ModelVersion(
        name=state.name,
        number=number,
        digest=digest,
        payload=Digest(d["payload"]),
        kind=d["kind"],
        size=d["size"],
        created=event.time,
        actor=event.actor,
        code="code" in d,
        base=_base(d["base"]) if "base" in d else None,
        lineage=state.records.get(digest, {}).get("lineage"),
    )
    publishes = {key: value for key, value in state.publishes.items() if key != d["publish_id"]}
    return replace(
        state,
        versions={**state.versions, number: version},
        publishes=publishes,
        mirror=state.mirror.numbered(d["publish_id"], number),
    )


def _intended(state: State, event: Event) -> State:
    _require_bound(state)
    d = event.details
    _check_version(state, d)
    details = {key: value for key, value in d.items() if key != "version"}
    version = _version_number(d["version"]) if "version" in d else None
    intent = Intent(d["publish_id"], details, version, event.sequence, event.time, event.actor)
    if d["publish_id"] in state.mirror.intents or version in state.versions:
        raise ValueError("it announces what is announced already, or exists")
    return replace(state, mirror=state.mirror.announced(intent))


def _check_version(state: State, d: Mapping[str, Any]) -> None:
    """Raises ValueError for details of a version that cannot be."""
    _refuse_condemned(state, Digest(d["digest"]))
    publish = state.publishes.get(d["publish_id"])
    if publish is None or publish.digest != Digest(d["digest"]):
        raise ValueError("no publish.begin of this digest came before it")
    Digest(d["payload"])
    if d["kind"] not in KINDS or type(d["size"]) is not int or d["size"] < 0 or d.get("code", True) is not True:
        raise ValueError("its kind, size or code is not valid")
    if "base" in d:
        _base(d["base"])
        if d["kind"] != "adapter":
            raise ValueError("only an adapter has a base")


def _base(value: Any) -> BaseVersion:
    return BaseVersion(check_name(_text(value["name"])), _version_number(value["version"]), Digest(value["digest"]))


def _promoted(state: State, event: Event) -> State:
    alias, target = _move(state, event)
    return _moved(_forgiven(state, target), event, alias, (*state.trails.get(alias, ()), target))


def _rolled_back(state: State, event: Event) -> State:
    alias, target = _move(state, event)
    earlier = state.trails.get(alias, ())[:-1]
    if target not in earlier:
        raise ValueError("it goes back to a version that the alias was not at")
    last = len(earlier) - 1 - earlier[::-1].index(target)
    return _moved(state, event, alias, earlier[: last + 1])


def _adopted(state: State, event: Event) -> State:
    _require_bound(state)
    alias, target = _move(state, event)
    return _moved(_forgiven(state, target), event, alias, (*state.trails.get(alias, ()), target), shown=True)


def _forgiven(state: State, number: int) -> State:
    """A version that is promoted again gets another chance."""
    return replace(state, bad={bad: nodes for bad, nodes in state.bad.items() if bad != number})


def _moved(state: State, event: Event, alias: str, trail: tuple[int, ...], *, shown: bool = False) -> State:
    mirror = state.mirror.moved(alias, trail[-1], event.sequence, event.time, shown=shown)
    return replace(state, trails={**state.trails, alias: trail}, mirror=mirror)


def _restored(state: State, event: Event) -> State:
    _require_bound(state)
    d = event.details
    alias = check_alias(_text(d["alias"]))
    if d["to"] != state.current(alias) or d["found"] == d["to"] or alias in state.mirror.unsettled:
        raise ValueError(f"it restores {alias!r} to {d['to']!r}, but it is at {state.current(alias)}")
    if d["found"] is not None:
        _version_number(d["found"])
    _require_bound(state)
    return replace(state, mirror=state.mirror.moved(alias, d["to"], event.sequence, event.time))


def _helped(state: State, event: Event) -> State:
    d = event.details
    alias = check_alias(_text(d["alias"]))
    if alias not in state.mirror.unsettled or d["to"] != state.current(alias) or alias in state.mirror.helped:
        raise ValueError(f"it helps to set {alias!r} to {d['to']!r}, which nobody waits for")
    return replace(state, mirror=state.mirror.helping(alias))


def _settled(state: State, event: Event) -> State:
    d = event.details
    alias = check_alias(_text(d["alias"]))
    if alias not in state.mirror.unsettled or d["to"] != state.current(alias) or type(d["own"]) is not bool:
        raise ValueError(f"it settles {alias!r} at {d['to']!r}, but it is at {state.current(alias)}, or settled")
    return replace(state, mirror=state.mirror.settled(alias, event.time, own=d["own"]))


def _bound(state: State, event: Event) -> State:
    created = event.details["created"]
    if type(created) is not int or created < 0 or created == state.mirror.created:
        raise ValueError(f"{created!r} is not the time of another creation")
    return replace(state, mirror=state.mirror.bound(created, state.aliases))


def _require_bound(state: State) -> None:
    if state.mirror.created is None:
        raise ValueError("no mirror.bound came before it")


def _policy(state: State, event: Event) -> State:
    protected, gated = (event.details[key] for key in ("protected", "gated"))
    for aliases in (protected, gated):
        if not isinstance(aliases, list) or aliases != sorted({check_alias(_text(alias)) for alias in aliases}):
            raise ValueError(f"{aliases!r} are not aliases")
    return replace(state, policy=Policy(frozenset(protected), frozenset(gated)))


def _move(state: State, event: Event) -> tuple[str, int]:
    d = event.details
    alias, target = check_alias(_text(d["alias"])), _version_number(d["to"])
    current = state.current(alias)
    if d["from"] != current or isinstance(d["from"], bool) or target == current:
        raise ValueError(f"it moves {alias!r} from {d['from']!r} to {target}, but it was at {current}")
    _reason(d)
    if target not in state.versions or state.versions[target].archived:
        raise ValueError(f"it moves {alias!r} to version {target}, which does not exist or is archived")
    return alias, target


def _archived(state: State, event: Event) -> State:
    number = _version_number(event.details["version"])
    if state.aliases_of(number) or state.versions[number].archived:
        raise ValueError("it archives a version that an alias points at, or that is archived already")
    _reason(event.details)
    version = replace(state.versions[number], archived_at=event.time)
    return replace(state, versions={**state.versions, number: version})


def _referenced(state: State, event: Event) -> State:
    d = event.details
    base, adapter = Digest(d["base"]), (check_name(_text(d["name"])), Digest(d["digest"]))
    if not any(v.digest == base and not v.archived for v in state.versions.values()):
        raise ValueError("it references a version that does not exist or is archived")
    references = {**state.references, base: state.references.get(base, frozenset()) | {adapter}}
    return replace(state, references=references)


def _condemned(state: State, event: Event) -> State:
    digests, records = (_digests(state, event.details[key]) for key in ("digests", "records"))
    if not digests | records:
        raise ValueError("it condemns nothing")
    if digests - state.known:
        raise ValueError("it condemns what nobody began to publish")
    if any(v.digest in digests and not v.archived for v in state.versions.values()):
        raise ValueError("it condemns a version that is not archived")
    if any(Digest(intent.digest) in digests for intent in state.mirror.intents.values()):
        raise ValueError("it condemns a version that was announced")
    gone = (state.condemned | digests) - {version.digest for version in state.versions.values()}
    if any(state.attachments.get(record, frozenset()) - gone for record in records):
        raise ValueError("it condemns a record that belongs to a version, or may yet")
    return replace(
        state,
        condemned=state.condemned | digests | records,
        publishes={key: each for key, each in state.publishes.items() if each.digest not in digests},
        versions={n: replace(v, collected=v.collected or v.digest in digests) for n, v in state.versions.items()},
    )


def _digests(state: State, value: Any) -> set[Digest]:
    """Sorted, each once, and none of them condemned before."""
    if not isinstance(value, list) or value != sorted({_text(each) for each in value}):
        raise ValueError("digests are not a sorted list")
    found = {Digest(each) for each in value}
    for digest in found:
        _refuse_condemned(state, digest)
    return found


def _refuse_condemned(state: State, digest: Digest) -> None:
    if digest in state.condemned:
        raise ValueError(f"{digest} was condemned before")


def _went_back(state: State, event: Event) -> State:
    d = event.details
    number, node = _version_number(d["version"]), _text(d["node"])
    check_alias(_text(d["alias"]))
    _reason(d)
    if d["to"] == number or not {number, _version_number(d["to"])} <= state.versions.keys():
        raise ValueError("it goes from a version to itself, or one of the two does not exist")
    return replace(state, bad={**state.bad, number: state.bad.get(number, frozenset()) | {node}})


def _held(state: State, event: Event) -> State:
    d = event.details
    node, alias = _text(d["node"]), _text(d["alias"])
    check_alias(alias)
    _text(d["by"])
    _reason(d)
    if d["version"] == state.holds.get((node, alias)):
        raise ValueError("it was so already")
    holds = {key: number for key, number in state.holds.items() if key != (node, alias)}
    if d["version"] is None:
        return replace(state, holds=holds)
    number = _version_number(d["version"])
    if number not in state.versions:
        raise ValueError("it holds a version that does not exist")
    return replace(state, holds={**holds, (node, alias): number})


_ACTIONS: dict[str, Callable[[State, Event], State]] = {
    "publish.begin": _begin,
    "attached": _attached,
    "version.created": _created,
    "alias.promoted": _promoted,
    "alias.rolled_back": _rolled_back,
    "version.archived": _archived,
    "referenced": _referenced,
    "condemned": _condemned,
    "policy": _policy,
    "mirror.bound": _bound,
    "version.intent": _intended,
    "alias.helped": _helped,
    "alias.settled": _settled,
    "alias.adopted": _adopted,
    "alias.restored": _restored,
    "node.went_back": _went_back,
    "node.held": _held,
}


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{value!r} is not a text")
    return value


def _version_number(value: Any) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(f"{value!r} is not a version number")
    return value


def _moment(value: Any) -> str:
    if not _TIMESTAMP.fullmatch(_text(value)):
        raise ValueError(f"{value!r} is not a timestamp")
    return str(value)


def _reason(details: Mapping[str, Any]) -> None:
    if details["reason"] != "":
        _text(details["reason"])
