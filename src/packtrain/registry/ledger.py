"""The registry in the store: one hash-chained ledger for each registered model."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from packtrain.errors import AlreadyExists, Conflict, IntegrityError, NotFound, Unavailable
from packtrain.model.ledger import Decide, Event, Log, event_key, timestamp
from packtrain.ports import Clock, Store
from packtrain.registry.memory import SeenLedgers

_READERS = 16
_EARLY = 4  # events that are asked for before it is known how many there are: of a first version and its promotion
_ATTEMPTS = 200  # of one append, each lost to another writer: beyond that something is wrong


class LedgerRegistry:
    """Keeps `packtrain.ports.Registry`'s laws with nothing but a store that can create if absent.

    ``nonce`` gives 32 random hex digits; ``actor`` is written into every event.
    """

    def __init__(
        self,
        store: Store,
        seen: SeenLedgers,
        *,
        actor: str,
        clock: Clock,
        nonce: Callable[[], str],
    ) -> None:
        self._store = store
        self._seen = seen
        self._actor = actor
        self._clock = clock
        self._nonce = nonce
        self._jitter = Random()

    def names(self) -> list[str]:
        from concurrent.futures import ThreadPoolExecutor  # a node that knows its ledgers reads no two at once

        names = sorted({*self._store.children("ledger/"), *self._seen.names()})  # a ledger that is gone is missed
        with ThreadPoolExecutor(_READERS) as pool:
            logs = list(pool.map(self.read, names))
        return [name for name, log in zip(names, logs, strict=True) if log.state.versions]

    def known(self) -> list[str]:
        return sorted(self._seen.names())

    def remembered(self, name: str) -> Log:
        return self._seen.load(name)

    def read(self, name: str) -> Log:
        log = self._seen.load(name)
        known = len(log.events)
        if known:
            self._extend(log)
            if len(log.events) == known:
                self._require_head(log)
        else:
            self._fetch(log)
        if len(log.events) > known:
            self._seen.save(log)
        return log

    def change(self, name: str, decide: Decide) -> tuple[Log, Event | None]:
        log = self.read(name)
        for attempt in range(_ATTEMPTS):
            draft = decide(log.state)
            if draft is None:
                return log, None
            now = timestamp(self._clock.now())
            event = log.draft(draft, nonce=self._nonce(), time=now, actor=self._actor)
            if self._append(log, event):
                return log, event
            self._clock.sleep(self._jitter.uniform(0, min(1.0, 0.01 * 2 ** min(attempt, 7))))
            self._extend(log)
            self._seen.save(log)
        raise Conflict(
            f"the ledger of {name} changed {_ATTEMPTS} times while this command tried to write to it",
            hint="Nothing was changed. Find out who writes so often: packtrain history " + name,
        )

    def audit(self, name: str) -> Log:
        seen = self._seen.load(name)  # first: what others see meanwhile may be newer than what is fetched
        log = Log(name)
        self._fetch(log)
        if len(seen.events) > len(log.events) or any(
            mine != theirs for mine, theirs in zip(seen.events, log.events, strict=False)
        ):
            self._require_head(seen)
            raise IntegrityError(
                f"the ledger of {name} was rewritten: it is not the one that this machine has seen",
                hint=self._remedy(name),
            )
        return log

    def _append(self, log: Log, event: Event) -> bool:
        """Whether ``event`` is now in the store at its place; False if another writer's event is there."""
        data = event.encode()
        key = event_key(event.name, event.sequence)
        try:
            self._store.create(key, data)
        except (AlreadyExists, Unavailable) as error:
            # It may be ours all the same, if only the answer was lost: the nonce tells.
            try:
                landed = self._store.get(key)
            except (NotFound, Unavailable):
                raise Unavailable(
                    f"the store did not confirm an event for the ledger of {event.name}: {error}",
                    hint=f"See whether it is there before you repeat the command: packtrain history {event.name}",
                ) from error
            if landed != data:
                return False
        log.extend(data)
        self._seen.save(log)
        return True

    def _extend(self, log: Log) -> None:
        """Reads the events after the log's head: one GET for each, and one that finds nothing."""
        while (data := self._peek(log.name, len(log.events) + 1)) is not None:
            log.extend(data)

    def _fetch(self, log: Log) -> None:
        """Reads every event into an empty log: one listing, which tells how many there are, and beside it the first
        few, so that a new model's ledger takes one round trip; then what they left, all at once."""
        from concurrent.futures import ThreadPoolExecutor

        prefix = f"ledger/{log.name}/"
        with ThreadPoolExecutor(_READERS) as pool:
            early = pool.map(lambda n: self._peek(log.name, n), range(1, _EARLY + 1))
            keys = {info.key for info in self._store.list(prefix)}
            count = max((n for key in keys if (n := _sequence(key.removeprefix(prefix)))), default=0)
            found = {n: data for n, data in enumerate(early, 1) if data is not None}
            for data in pool.map(lambda n: found.get(n) or self._event(log.name, n, count), range(1, count + 1)):
                log.extend(data)

    def _peek(self, name: str, sequence: int) -> bytes | None:
        """An event's bytes; None if it is not there."""
        try:
            return self._store.get(event_key(name, sequence))
        except NotFound:
            return None

    def _event(self, name: str, sequence: int, count: int) -> bytes:
        data = self._peek(name, sequence)
        if data is None:
            raise IntegrityError(
                f"event {sequence} of the ledger of {name} is missing; it has {count}",
                hint="Somebody removed it. Restore the ledger folder from a backup.",
            )
        return data

    def _require_head(self, log: Log) -> None:
        """The newest event that this machine has seen must still be there, as it was."""
        what = f"event {len(log.events)} of the ledger of {log.name}, which this machine has seen,"
        data = self._peek(log.name, len(log.events))
        if data is None:
            self._require_store()
            raise IntegrityError(
                f"the ledger of {log.name} was truncated: {what} is gone",
                hint=self._remedy(log.name),
            )
        if data != log.events[-1].encode():
            raise IntegrityError(
                f"the ledger of {log.name} was rewritten: {what} is now another",
                hint=self._remedy(log.name),
            )

    def _require_store(self) -> None:
        """A share that is not mounted leaves an empty folder, or none. A store that is there has at least the folder of
        unfinished files, even when all its objects are gone."""
        directory = self._store.directory
        if directory is None or (directory.is_dir() and any(directory.iterdir())):
            return
        raise Unavailable(
            f"the store is not there: {directory} is {'empty' if directory.is_dir() else 'missing'}",
            hint="Mount the share. If the store was started anew on purpose, remove what this machine has seen of it: "
            f"{self._seen.directory}.",
        )

    def _remedy(self, name: str) -> str:
        return (
            "Restore the ledger folder from a backup; nothing is promoted or pulled from it until then. "
            f"If it was started anew on purpose, remove {self._seen.path(name)}."
        )


def _sequence(file_name: str) -> int:
    """The number of an event's file; 0 for a file that is none."""
    digits, _, suffix = file_name.partition(".")
    return int(digits) if len(digits) == 10 and digits.isascii() and digits.isdecimal() and suffix == "json" else 0
