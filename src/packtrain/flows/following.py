"""What a supervisor does beside its loop, each in a thread of its own: look at the alias, fetch, post."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any

from packtrain.errors import LocalDiskError, PacktrainError, PreflightRefused, Refused, Unavailable, UsageError
from packtrain.flows.serve import Supply, prepare
from packtrain.flows.waking import Waiting
from packtrain.model.ledger import Draft, Log, State
from packtrain.model.version import ModelVersion
from packtrain.ports import Registry, Reporter
from packtrain.serving import Arguments, Launch
from packtrain.serving.journal import Hold, Journal, Unposted
from packtrain.training.checkpoint import inspect
from packtrain.training.preflight import preflight

STEP = 0.5  # seconds between two looks whether there is something to be posted, or it is over
REST = 60  # looks at the ledger until what it would not take is offered again: many nodes may only read
JITTER = 0.2  # of the interval: a fleet that was started at once does not ask at once


class Abandoned(Exception):
    """Nobody wants any more what is being fetched."""


class Unservable(Exception):
    """The version itself is at fault, and will be when it is tried again. A store that refuses (expired credentials)
    says nothing about the version."""


class Progress:
    """A `Reporter` whose notes are log lines, and which says how far a download is. ``abandon`` ends the download."""

    def __init__(self, note: Callable[[str], object]) -> None:
        self._note = note
        self._lock = Lock()
        self._abandoned = False
        self.done = self.total = 0

    def abandon(self) -> None:
        self._abandoned = True

    def begin(self, what: str, total: int) -> None:  # noqa: ARG002 - a Reporter's
        with self._lock:
            self.done, self.total = 0, total

    def advance(self, count: int) -> None:
        if self._abandoned:
            raise Abandoned
        with self._lock:
            self.done += count

    def end(self) -> None: ...

    def note(self, text: str) -> None:
        self._note(text)


@dataclass(frozen=True, slots=True)
class Held:
    """A version that is here: opened, checked, and kept from eviction until it is released. ``weights`` in bytes, with
    those of its base."""

    version: ModelVersion
    launch: Launch
    supply: Supply
    weights: int

    def release(self) -> None:
        self.supply.__exit__(None, None, None)


def fetch(registry: Registry, supply: Supply, version: ModelVersion, arguments: Arguments, reporter: Reporter) -> Held:
    """Brings a version and its base here. Raises Unservable, Abandoned, and PacktrainError for what is tried again."""
    supply.__enter__()
    try:
        launch = prepare(registry, supply, version, arguments, reporter)
        paths = [launch.adapter.path] if launch.adapter else []
        paths += [Path(launch.model)] if Path(launch.model).is_absolute() else []
        if launch.adapter is None:
            _require_servable(version, Path(launch.model))
        return Held(version, launch, supply, sum(map(_weights, paths)))
    except BaseException as error:
        supply.__exit__(None, None, None)
        if isinstance(error, PreflightRefused):
            raise Unservable(str(error)) from error
        raise


def _require_servable(version: ModelVersion, path: Path) -> None:
    """What publish asks of every version, asked again: it may have been published by something else."""
    refusals = [f for f in preflight(inspect(path), allow_code=version.code) if f.level == "refuse"]
    if refusals:
        raise PreflightRefused(f"{version} cannot be served: {refusals[0]}", findings=refusals, hint=refusals[0].fix)


def _weights(path: Path) -> int:
    return sum(file.stat().st_size for file in path.glob("*.safetensors"))


@dataclass(frozen=True, slots=True)
class Blind:
    """The registry has not answered since then, and why."""

    since: datetime
    because: str


class Watcher:
    """Reads the ledger of a registered model again and again, and posts what is to be posted. ``seen(log)`` and
    ``blind(error)`` are told from its thread."""

    def __init__(
        self,
        registry: Registry,
        name: str,
        alias: str,
        *,
        interval: float,
        waiting: Waiting,
        node: str,
        journal: Journal,
        seen: Callable[[Log], None],
        blind: Callable[[PacktrainError], None],
        log: Any,
    ) -> None:
        self._registry = registry
        self._name, self._alias, self._node = name, alias, node
        self._interval, self._waiting = interval, waiting
        self._journal = journal
        self._seen, self._blind, self._log = seen, blind, log
        self._resting = 0
        self._over = Event()
        self._now = Event()
        self._thread = Thread(target=self._watch, name="watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Does not wait: a store that hangs must not keep anybody from ending."""
        self._over.set()
        self._now.set()

    def hurry(self) -> None:
        """Something is to be posted."""
        self._resting = 0
        self._now.set()

    def _watch(self) -> None:
        while not self._over.is_set():
            try:
                self._seen(self._registry.read(self._name))
                self._post()
            except PacktrainError as error:
                self._blind(error)
            except Exception as error:  # noqa: BLE001 - whatever it is, what serves keeps serving
                self._blind(Unavailable(f"{type(error).__name__}: {error}"))
            self._wait(self._interval * random.uniform(1 - JITTER, 1 + JITTER))

    def _wait(self, seconds: float) -> None:
        """Until it is time, or somebody has news."""
        while seconds > 0 and not self._now.is_set() and not self._waiting.wait(min(STEP, seconds)):
            seconds -= STEP
        self._now.clear()

    def _post(self) -> None:
        if self._resting > 0:
            self._resting -= 1
            return
        for each in self._journal.read().unposted:
            what: dict[str, Any] = {
                "action": "node.held" if isinstance(each, Hold) else "node.went_back",
                "version": each.target.number if each.target else None,
            }
            try:
                self._registry.change(self._name, lambda state, each=each: self._draft(state, each))  # type: ignore[misc]
                self._log.info("posted", **what)
            except (Refused, LocalDiskError) as error:
                self._log.warning("not_posted", **what, because=str(error))
                self._resting = REST
                return
            except UsageError as error:  # the ledger is another than the one that this node followed
                self._log.warning("not_posted", **what, because=str(error))
            self._journal.change(lambda memory, each=each: memory.posted(each))  # type: ignore[misc]

    def _draft(self, state: State, each: Unposted) -> Draft | None:
        if isinstance(each, Hold):
            number = each.target.number if each.target else None
            return state.hold(self._node, self._alias, number, each.by, each.reason)
        return state.went_back(self._node, self._alias, each.target.number, each.to.number, each.reason)
