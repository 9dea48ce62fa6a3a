"""A registry whose ledger an MLflow server shows: the ledger decides, MLflow's versions and aliases follow.

A version gets its number from MLflow, so that both say NAME/3 of the same thing: it is announced in the ledger, created
in MLflow under a tag that tells whose it is, and noted with its number. An alias moves in the ledger, then in MLflow;
it is settled when MLflow was seen to show what the ledger says at its head. Whoever reads or changes a model does first
what somebody else announced and did not finish, so a crash between any two steps is made good by whoever comes next.

Reading needs no MLflow: while it is down, what the ledger says counts, and so does a promotion or a rollback, which
MLflow is shown later. Only a new version needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass, field, replace
from datetime import timedelta

from packtrain.errors import Conflict, IntegrityError, NotFound, PacktrainError, Refused, Unavailable, UsageError
from packtrain.model.digest import Digest
from packtrain.model.ledger import MOVES, Decide, Draft, Event, Log, State, timestamp
from packtrain.model.mirror import Intent
from packtrain.model.projection import Drift, Shown, drifts, help_out, no_longer_waits, record, settle
from packtrain.model.reference import check_name
from packtrain.model.version import version_prefix
from packtrain.ports import Clock, Registry, Reporter, Store
from packtrain.registry.mlflow import Mlflow

PUBLISH_ID = "packtrain.publish_id"  # the tag that tells whose version in MLflow it is
DIGEST = "packtrain.digest"
STATE = "packtrain.state"
ARCHIVED = "archived"

PATIENCE = timedelta(seconds=10)  # after which whoever announced a version is taken for dead
LATE = timedelta(minutes=15)  # how long a request to MLflow that was overtaken may still be under way
_ROUNDS = 50  # of showing MLflow what the ledger says, each overtaken by a change: beyond that something is wrong


@dataclass(frozen=True, slots=True)
class Entry:
    """What a version in MLflow says besides its source."""

    tags: Mapping[str, str] = field(default_factory=dict)
    run_id: str | None = None
    description: str = ""


Describe = Callable[[State, Intent], Entry]


class MirroringRegistry:
    """Keeps `packtrain.ports.Registry`'s laws over a `Registry` that is a ledger, with an MLflow server that shows it.

    ``describe`` says what MLflow is told about a version; it may be asked more than once for one.
    """

    def __init__(
        self, inner: Registry, mlflow: Mlflow, store: Store, reporter: Reporter, clock: Clock, describe: Describe
    ) -> None:
        self._inner = inner
        self._mlflow = mlflow
        self._store = store
        self._reporter = reporter
        self._clock = clock
        self._describe = describe
        self._own: set[tuple[str, str, int]] = set()  # (name, alias, sequence) of moves of this process
        self._told: set[str] = set()
        self._adopts: int | None = None

    def names(self) -> list[str]:
        return self._inner.names()

    def known(self) -> list[str]:
        return self._inner.known()

    def remembered(self, name: str) -> Log:
        return self._inner.remembered(name)

    def audit(self, name: str) -> Log:
        return self._inner.audit(name)

    def read(self, name: str) -> Log:
        log = self._inner.read(name)
        if log.state.mirror.created is None:
            return log
        log, trouble = self._tend(log)
        if trouble is not None:
            self._tell(f"warning: {trouble}. The ledger counts; MLflow may show something else")
        return log

    def change(self, name: str, decide: Decide) -> tuple[Log, Event | None]:
        log, trouble = self._tend(self._inner.read(name))

        def prepared(state: State) -> Draft | None:
            draft = decide(state)
            if draft is None or draft.action not in ("publish.begin", "version.created"):
                return draft
            if trouble is not None and draft.details["publish_id"] not in state.publishes:
                raise trouble  # before anything is uploaded
            if state.mirror.created is None:
                raise _UnboundError
            if draft.action == "publish.begin":
                return draft
            if self._adopts is not None:
                return Draft("version.intent", {**draft.details, "version": self._adopts})
            details = {key: value for key, value in draft.details.items() if key != "version"}
            for intent in state.mirror.intents.values():
                if intent.details["payload"] == details["payload"]:
                    raise _AnnouncedError(intent)
            return Draft("version.intent", details)

        while True:
            try:
                log, event = self._inner.change(name, prepared)
                break
            except _UnboundError:
                self.register(name)
            except _AnnouncedError as other:
                self._await(name, other.intent)
        if event is None:
            return log, None
        if event.action == "version.intent":
            return self._finish(log, log.state.mirror.intents[event.details["publish_id"]])
        if event.action in MOVES and log.state.mirror.created is not None:
            self._own.add((name, event.details["alias"], event.sequence))
            self._follow(log, event, trouble)
        if event.action == "version.archived":
            self._mark_archived(log, event.details["version"])
        return log, event

    def adopting(self, number: int) -> MirroringRegistry:
        """The same, but the version that is created next is one that MLflow has already."""
        other = copy(self)
        other._adopts = number
        return other

    def register(self, name: str) -> Log:
        """Makes the model that MLflow has under this name, or a new one, the one that shows the ledger: with all its
        versions, under their numbers, and aliases. Where it shows something else (MLflow's database is an older one),
        the ledger wins. Raises Refused if that model has other versions."""
        log = self._inner.read(name)
        if (shown := self._mlflow.model(name)) is None:
            self._mlflow.create_model(name, "")
            shown = self._mlflow.model(name)
        if shown is None:
            raise Conflict(f"the registered model {name} vanished from MLflow while it was made", hint="Try again.")
        if log.state.versions:
            self._register_versions(log)
        created = shown.created

        def bind(state: State) -> Draft | None:
            return None if state.mirror.created == created else Draft("mirror.bound", {"created": created})

        log, _ = self._inner.change(name, bind)
        for drift in drifts(log.state, shown, timestamp(self._clock.now() - LATE)):
            if drift.ledger is not None:
                log = self._deal_with(log, replace(drift, becomes="restored"), log.state)
        log, trouble = self._tend(log)
        if trouble is not None:
            raise trouble
        return log

    # Aliases

    def _follow(self, log: Log, event: Event, trouble: PacktrainError | None) -> None:
        """MLflow is shown a move. If that fails, the move counts all the same."""
        if trouble is None:
            _, trouble = self._tend(log)
        if trouble is not None:
            self._tell(
                f"warning: {trouble}. @{event.details['alias']} is moved in the ledger, which counts (event "
                f"{event.sequence}); MLflow will be shown by the next command that finds it"
            )

    def _tend(self, log: Log) -> tuple[Log, PacktrainError | None]:
        """Does what is announced and not done, and deals with what was done in MLflow alone. Returns the log after
        that, and what prevented it."""
        if log.state.mirror.created is None:
            return log, None
        try:
            return self._converge(log), None
        except IntegrityError:
            raise
        except PacktrainError as error:
            return log, error

    def _converge(self, log: Log) -> Log:
        name = log.name
        for _ in range(_ROUNDS):
            log = self._finish_abandoned(log)
            shown = self._shown(log.state)
            seen = log.state
            for drift in drifts(seen, shown, timestamp(self._clock.now() - LATE)):
                log = self._deal_with(log, drift, seen)
            log, hidden = self._show(log, shown)
            if not log.state.mirror.unsettled.keys() - hidden:
                return log
        raise Unavailable(f"the aliases of {name} in MLflow changed {_ROUNDS} times while they were set")

    def _shown(self, state: State) -> Shown:
        """What MLflow shows of the model that shows this ledger. Raises NotFound if it is another one."""
        shown = self._mlflow.model(state.name)
        if shown is None or shown.created != state.mirror.created:
            what = (
                "was deleted or renamed" if shown is None else "was deleted and created again, or another renamed to it"
            )
            raise NotFound(
                f"the registered model {state.name} {what} in MLflow",
                hint=f"The ledger has all its versions. To register them there again: packtrain register {state.name}",
            )
        return shown

    def _deal_with(self, log: Log, drift: Drift, seen: State) -> Log:
        name, where = log.name, f"version {drift.found}" if drift.found else "not set"
        if drift.becomes == "foreign":
            self._tell(
                f"warning: in MLflow @{drift.alias} of {name} is at {where}, which "
                + (
                    "is archived"
                    if drift.found in seen.versions
                    else f"was registered without Packtrain (packtrain adopt {name}/{drift.found})"
                )
                + f"; it counts as {f'version {drift.ledger}' if drift.ledger else 'not set'}"
            )
            return log
        log, event = self._inner.change(name, lambda state: record(state, drift, seen))
        if event is not None:
            self._own.add((name, drift.alias, event.sequence))
            self._tell(
                f"@{drift.alias} of {name} was moved in MLflow, to {where}: "
                + ("the ledger follows" if drift.becomes == "adopted" else "that is undone")
                + f" (event {event.sequence})"
            )
        return log

    def _show(self, log: Log, shown: Shown) -> tuple[Log, set[str]]:
        """Sets in MLflow what it may not show, reads it back and notes what it shows. Returns aliases that it cannot
        show, too."""
        hidden = set[str]()
        if not log.state.mirror.unsettled:
            return log, hidden
        seen = log.state
        for alias, number in seen.mirror.unsettled.items():
            if shown.aliases.get(alias) == number:
                continue
            if not self._is_own(seen, alias):
                log, _ = self._inner.change(log.name, lambda state: help_out(state, alias, seen))  # noqa: B023
                if no_longer_waits(log.state, alias, seen):
                    continue
            try:
                if number is None:
                    self._mlflow.remove_alias(log.name, alias)
                else:
                    self._mlflow.set_alias(log.name, alias, number)
            except NotFound:
                hidden.add(alias)
                self._tell(
                    f"warning: {log.name}/{number} was deleted in MLflow, so it cannot show @{alias} there; the ledger "
                    f"has both, and nodes serve it. Promote another version, then packtrain archive {log.name}/{number}"
                )
        shown = self._shown(log.state)
        for alias in log.state.mirror.unsettled:
            own = self._is_own(log.state, alias)
            log, _ = self._inner.change(log.name, lambda state: settle(state, alias, shown, own=own))  # noqa: B023
        return log, hidden

    def _is_own(self, state: State, alias: str) -> bool:
        """Whether this process made the newest move of an alias."""
        return (state.name, alias, state.mirror.moves.get(alias, 0)) in self._own

    # Versions

    def _finish_abandoned(self, log: Log) -> Log:
        for intent in log.state.mirror.intents.values():
            if intent.time < timestamp(self._clock.now() - PATIENCE):
                log, _ = self._finish(log, intent, taken_over=True)
        return log

    def _await(self, name: str, intent: Intent) -> None:
        """Until a version that somebody else announced has its number; after a while this process sees to it."""
        waited = timedelta()
        while waited < PATIENCE:
            log = self._inner.read(name)
            if intent.publish_id not in log.state.mirror.intents:
                return
            self._clock.sleep(0.2)
            waited += timedelta(seconds=0.2)
        self._finish(log, intent, taken_over=True)

    def _finish(self, log: Log, intent: Intent, *, taken_over: bool = False) -> tuple[Log, Event | None]:
        """Gets an announced version its number, and writes it down. Of several who do so at once, the first one's
        number counts, and the others' entries in MLflow go."""
        name = log.name
        self._shown(log.state)
        try:
            number, alone = self._number(log.state, intent, taken_over)
        except PacktrainError as error:
            raise _pending(error, f"{name} {intent.digest[:12]}") from error

        def created(state: State) -> Draft | None:
            if intent.publish_id not in state.mirror.intents:
                return None
            return Draft("version.created", {**intent.details, "version": number})

        log, event = self._inner.change(name, created)
        final = log.state.mirror.numbers[intent.publish_id]
        if not alone or final != number:
            self._remove_duplicates(name, intent.publish_id, final)
        if event is None:
            event = next(e for e in reversed(log.events) if _creates(e, final))
        return log, event

    def _number(self, state: State, intent: Intent, taken_over: bool) -> tuple[int, bool]:
        """The number of an announced version in MLflow, and whether nobody else can have created one for it."""
        if not taken_over and intent.version is None:
            entry = self._describe(state, intent)
            try:
                return self._create(state.name, intent, entry), True
            except Unavailable:
                if found := self._created(state.name, intent.publish_id):
                    return found[0], False
                raise
        if intent.version is not None:
            for key, value in self._tags(intent, self._describe(state, intent)).items():
                self._mlflow.tag_version(state.name, intent.version, key, value)
            return intent.version, True
        if found := self._created(state.name, intent.publish_id):
            return found[0], False
        return self._create(state.name, intent, self._describe(state, intent)), False

    def _create(self, name: str, intent: Intent, entry: Entry) -> int:
        source = self._store.locate(version_prefix(name, Digest(intent.digest))).rstrip("/")
        return self._mlflow.create_version(
            name, source, run_id=entry.run_id, tags=self._tags(intent, entry), description=entry.description
        )

    def _tags(self, intent: Intent, entry: Entry) -> dict[str, str]:
        return {**entry.tags, PUBLISH_ID: intent.publish_id, DIGEST: f"sha256:{intent.digest}"}

    def _created(self, name: str, publish_id: str) -> list[int]:
        """The versions that were created in MLflow for a publish: more than one if answers were lost."""
        return [each.number for each in self._mlflow.versions(name) if each.tags.get(PUBLISH_ID) == publish_id]

    def _remove_duplicates(self, name: str, publish_id: str, keep: int) -> None:
        for number in self._created(name, publish_id):
            if number != keep:
                self._mlflow.delete_version(name, number)

    def _mark_archived(self, log: Log, number: int) -> None:
        if log.state.mirror.created is None:
            return
        try:
            self._shown(log.state)
            self._mlflow.tag_version(log.name, number, STATE, ARCHIVED)
        except PacktrainError as error:
            self._tell(f"warning: {error}. {log.name}/{number} is archived; MLflow does not show that")

    def _register_versions(self, log: Log) -> None:
        """Every version of a ledger, in MLflow. A number that the ledger does not have is used and given up."""
        there = {each.number: each for each in self._mlflow.versions(log.name)}
        for number, found in there.items():
            version = log.state.versions.get(number)
            if version is None or found.tags.get(DIGEST) != str(version.digest):
                raise Refused(
                    f"MLflow has a {log.name}/{number} that is not the ledger's",
                    hint="Rename that model in MLflow, or delete it there, and try again.",
                )
        for number in range(1, max(log.state.versions) + 1):
            if number in there:
                continue
            version = log.state.versions.get(number)
            if version is None:
                got = self._mlflow.create_version(log.name, self._store.url + "/none", run_id=None, tags={})
                self._mlflow.delete_version(log.name, got)
            else:
                details = next(event.details for event in log.events if _creates(event, number))
                intent = Intent(f"registered-{number}", details, None, 0, version.created, version.actor)
                got = self._create(log.name, intent, self._describe(log.state, intent))
                if version.archived:
                    self._mlflow.tag_version(log.name, got, STATE, ARCHIVED)
            if got != number:
                self._mlflow.delete_version(log.name, got)
                raise Refused(
                    f"MLflow gives {log.name}/{number} the number {got}: versions were deleted there",
                    hint=f"Delete the registered model {log.name} in MLflow, which then counts from 1, and try again.",
                )

    def _tell(self, text: str) -> None:
        """Once in the life of this process: a node polls for weeks."""
        if text not in self._told:
            self._told.add(text)
            self._reporter.note(text)


def register(registry: Registry, name: str) -> State:
    """Makes MLflow show a ledger. Raises NotFound, and UsageError where there is no MLflow."""
    if not isinstance(registry, MirroringRegistry):
        raise UsageError(
            "the registry is the store itself, so there is nowhere to register what is in it",
            hint="Name an MLflow server: --registry http://mlflow.example.com:5000",
        )
    if not registry.audit(check_name(name)).state.versions:  # a read would follow what MLflow shows
        raise NotFound(f"there is no registered model {name}", hint="packtrain models lists what exists.")
    return registry.register(name).state


class _UnboundError(Exception):
    """No MLflow shows this ledger yet."""


class _AnnouncedError(Exception):
    """Somebody else is about to name the same bytes."""

    def __init__(self, intent: Intent) -> None:
        super().__init__()
        self.intent = intent


def _creates(event: Event, number: int) -> bool:
    return event.action == "version.created" and event.details["version"] == number


def _pending(error: PacktrainError, what: str) -> PacktrainError:
    error.hint = (
        f"Every byte of {what} is in the store, and the version is announced in the ledger: the same command again, or "
        f"any other about this model, gives it its number. {error.hint}"
    )
    return error
