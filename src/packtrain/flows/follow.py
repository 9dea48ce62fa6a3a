"""An alias is followed: vLLM serves, behind our proxy, the version that the alias names.

One loop in the main thread. Threads tell it what happens (`following.Watcher`, the engines' keepers, fetches, gates,
the proxy); each thing told is a call that is made in the loop and changes the `Rollout`. After each, the rollout says
what is to be done, and `_perform` begins it. Nothing here waits for anything else.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

import structlog

from packtrain.errors import LocalDiskError, PacktrainError, Unavailable, UsageError
from packtrain.flows.following import Abandoned, Blind, Held, Progress, Unservable, Watcher, fetch
from packtrain.flows.serve import Supply
from packtrain.flows.waking import Waiting
from packtrain.model.digest import Digest
from packtrain.model.fitting import Fit, fit
from packtrain.model.ledger import Log, timestamp
from packtrain.model.reference import Reference
from packtrain.model.rollout import (
    Action,
    Drain,
    Engine,
    Fetch,
    Gate,
    Limits,
    Named,
    Open,
    Proved,
    Release,
    Rollout,
    Start,
    Stop,
    Target,
    WentBack,
)
from packtrain.model.version import ModelVersion
from packtrain.ports import Clock, Registry, Reporter
from packtrain.serving import Arguments, find_vllm
from packtrain.serving import devices as hardware
from packtrain.serving.arguments import Endpoint
from packtrain.serving.edge import Edge
from packtrain.serving.gate import Answering, Verdict, gate
from packtrain.serving.journal import Journal, Memory
from packtrain.serving.keeper import Keeper
from packtrain.serving.metrics import Metrics
from packtrain.serving.processes import adopting_orphans, free_port
from packtrain.serving.proxy import Proxy
from packtrain.serving.runs import RunFile, end_abandoned
from packtrain.serving.traffic import Backend, Traffic

TICK = 0.5  # seconds between two looks at how clients fare

Judge = Callable[[Answering, ModelVersion], Verdict]


@dataclass(frozen=True, slots=True)
class Manner:
    """How an alias is followed. Times in seconds. ``hold``: how long a request waits for an engine."""

    strategy: str = "auto"
    devices: tuple[str, ...] = ()
    poll: float = 10.0
    drain: float = 60.0
    keep: int = 2
    limits: Limits = field(default_factory=Limits)
    hold: float = 300.0
    start_within: float = 1800.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where this node keeps what it remembers: one folder for what runs, one file for the alias; ``cache_dir`` is where
    others leave word that there is news. ``boot`` names this boot of the machine."""

    cache_dir: Path
    runs: Path
    journal: Path
    boot: str


def follow(
    registry: Registry,
    supply: Callable[[Reporter], Supply],
    reference: Reference,
    arguments: Sequence[str],
    *,
    vllm: str,
    manner: Manner,
    place: Place,
    clock: Clock,
    judge: Judge | None = None,
) -> int:
    """Serves what an alias names, until a signal ends it. Returns 0.

    ``judge`` is the gate: it is asked, in a thread, before an engine takes traffic. Raises what a command can be told
    before anything was started: UsageError, NotFound, EngineError, and Unavailable if the registry cannot be reached
    and nothing is remembered of it. Must be called in the main thread.
    """
    executable, said = find_vllm(vllm), Arguments.read(arguments)
    endpoint = said.endpoint
    if said.hides_health or endpoint is None:
        raise UsageError(
            f"with {said.hides_health} there is no port for the proxy that stands before the engines",
            hint=f"Leave it out (TLS belongs before the proxy), or serve one version: {reference.name}/3.",
        )
    fit(manner.strategy, hardware.look(manner.devices, said, os.environ), 0, 0)  # an unknown strategy is refused
    with ExitStack() as stack:
        supervisor = _Supervisor(
            registry, supply, reference, said, endpoint, executable, manner, place, clock, judge or _judge, stack
        )
        return supervisor.run()


def _judge(engine: Answering, version: ModelVersion) -> Verdict:  # noqa: ARG001 - a judge may need it
    return gate(engine)


@dataclass(slots=True)
class _Running:
    """An engine's process and what clients are told of it."""

    keeper: Keeper
    backend: Backend
    devices: str


class _Supervisor:
    def __init__(
        self,
        registry: Registry,
        supply: Callable[[Reporter], Supply],
        reference: Reference,
        arguments: Arguments,
        endpoint: Endpoint,
        executable: str,
        manner: Manner,
        place: Place,
        clock: Clock,
        judge: Judge,
        stack: ExitStack,
    ) -> None:
        assert reference.alias is not None
        self._registry, self._supply, self._reference, self._alias = registry, supply, reference, reference.alias
        self._arguments, self._executable = arguments, executable
        self._manner, self._place, self._clock, self._judge = manner, place, clock, judge
        self._log = structlog.get_logger("packtrain.serve").bind(model=reference.name, alias=self._alias)
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._journal = Journal(place.journal)
        self._memory = self._remember(self._journal.read)
        self._hold, self._stamp = self._memory.hold, self._journal.stamp()
        self._state = Rollout(
            limits=manner.limits,
            keep=manner.keep,
            bad=self._memory.bad,
            proven=self._memory.proven,
            held=self._hold.target if self._hold else None,
        )
        self._versions: dict[Digest, ModelVersion] = {}
        self._held: dict[Digest, Held] = {}
        self._running: dict[int, _Running] = {}
        self._fetching = Progress(self._note)
        self._fit = Fit(1, "nothing is here yet")
        self._blind: Blind | None = None
        self._named_at = clock.monotonic()
        self._goes_back = False  # what serves next does so because another version failed
        self._closed_at: float | None = None  # since when no engine takes requests, once one did
        self._without_service = 0.0
        self._started = clock.now()
        self._last_switch: dict[str, Any] | None = None
        self._verdicts: dict[Digest, Verdict] = {}
        self._metrics = Metrics()
        self._key = arguments_key(arguments) or secrets.token_urlsafe(24)  # what engines ask for
        keys = (*(arguments.values("--api-key") or ()), *filter(None, [os.environ.get("VLLM_API_KEY")]))
        proxy = Proxy(Traffic(), self._metrics, keys=keys, hold=manner.hold)
        self._run_file = RunFile(place.runs, boot=place.boot, follows=str(reference))
        self._edge = Edge(endpoint, proxy, self._metrics, key=self._run_file.key, status=lambda: self._document)
        self._document: Mapping[str, Any] = {}
        self._stack = stack

    def run(self) -> int:
        self._first_look()
        ended, stuck = end_abandoned(self._place.runs, boot=self._place.boot, clock=self._clock)
        if ended or stuck:
            self._log.warning("ended_engines_of_a_killed_supervisor", groups=ended, that_would_not_end=stuck)
        self._stack.enter_context(adopting_orphans())
        self._stack.enter_context(self._run_file)
        self._document = self._describe()
        self._stack.enter_context(self._edge)
        self._run_file.listens(self._edge.endpoint.url)
        self._stack.enter_context(self._signals())
        watcher = Watcher(
            self._registry,
            self._reference.name,
            self._alias,
            interval=self._manner.poll,
            waiting=Waiting(self._place.cache_dir, self._reference.name, self._clock),
            node=socket.gethostname(),
            journal=self._journal,
            seen=lambda log: self._tell(self._saw, log),
            blind=lambda error: self._tell(self._saw_nothing, error),
            log=self._log,
        )
        self._watcher = watcher
        watcher.start()
        self._stack.callback(watcher.stop)
        self._stack.callback(self._release_all)
        self._log.info("following", url=self._edge.endpoint.url, strategy=self._manner.strategy)
        self._advance()
        while not self._state.finished:
            with suppress(Empty):
                self._inbox.get(timeout=TICK)()
            self._look_for_holds()
            self._feel()
            self._advance()
        self._log.info("stopped")
        return 0

    # What happens

    def _tell(self, function: Callable[..., None], *arguments: Any) -> None:
        """From any thread: the call is made in the loop."""
        self._inbox.put(partial(function, *arguments))

    def _first_look(self) -> None:
        """What the alias names now, or named when this node last saw it. Raises NotFound, Unavailable."""
        name = self._reference.name
        try:
            log = self._registry.read(name)
        except Unavailable as error:
            log = self._registry.remembered(name)
            if self._alias not in log.state.trails:
                raise
            self._saw_nothing(error)
        log.state.resolve(self._reference)
        self._learn(log)
        known = {digest for digest, version in self._versions.items() if not version.collected}
        proven = tuple(target for target in self._state.proven if target.digest in known)
        held = self._state.held if self._state.held and self._state.held.digest in known else None
        self._state = replace(self._state, proven=proven, held=held)

    def _saw(self, log: Log) -> None:
        if self._blind is not None:
            self._log.info("registry_back", blind_since=timestamp(self._blind.since))
            self._blind = None
        self._learn(log)

    def _saw_nothing(self, error: PacktrainError) -> None:
        """Changes nothing: what serves keeps serving."""
        if self._blind is None:
            self._blind = Blind(self._clock.now(), str(error))
            self._log.warning("registry_unreachable", because=str(error))
        self._blind = replace(self._blind, because=str(error))

    def _learn(self, log: Log) -> None:
        self._versions |= {version.digest: version for version in log.state.versions.values()}
        named = Named.read(log, self._alias)
        if named is None or named == self._state.named:
            return
        before = self._state.named
        if before is None or before.current != named.current:
            self._named_at = self._clock.monotonic()
            self._log.info("named", version=named.current.number, digest=str(named.current.digest))
        self._state = self._state.name(named)

    def _look_for_holds(self) -> None:
        """Somebody on this node may have written one into the journal."""
        stamp = self._journal.stamp()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        self._memory = self._remember(self._journal.read)
        hold = self._memory.hold
        if hold is None or hold == self._hold:
            return
        self._hold = hold
        if hold.target and hold.target.digest not in self._versions:  # whoever held it has seen a newer ledger
            self._learn(self._registry.remembered(self._reference.name))
        self._log.warning(
            "held" if hold.target else "released",
            version=hold.target.number if hold.target else None,
            by=hold.by,
            reason=hold.reason,
        )
        self._named_at = self._now
        self._state = self._state.hold(hold.target)
        self._watcher.hurry()

    def _feel(self) -> None:
        """How clients fare, as long as it matters."""
        serving = self._state.serving
        if serving is not None and self._state.watched_until is not None:
            self._state = self._state.feel(self._edge.call(self._edge.traffic.vitals, serving), self._now)

    @property
    def _now(self) -> float:
        return self._clock.monotonic()

    # What is to be done

    def _advance(self) -> None:
        self._state, actions = self._state.step(self._now)
        for action in actions:
            self._perform(action)
        if self._state.abandons is not None:
            self._fetching.abandon()
        self._metrics.blind.set((self._clock.now() - self._blind.since).total_seconds() if self._blind else 0)
        self._metrics.ready.set(self._state.serving is not None)
        self._document = self._describe()

    def _perform(self, action: Action) -> None:
        match action:
            case Fetch(target):
                self._fetching = Progress(self._note)
                self._spawn(self._fetch, target, self._versions[target.digest], self._fetching)
            case Release(digest):
                self._held.pop(digest).release()
            case Start(engine):
                self._start(engine)
            case Gate(engine):
                self._spawn(self._gate, engine)
            case Open(engine):
                self._open(engine)
            case Drain(engine):
                self._close(engine)
                self._log.info("draining", version=engine.target.number, within=self._manner.drain)
                done = partial(self._tell, self._drained, engine.number)
                self._edge.call(self._edge.traffic.drain, engine.number, self._manner.drain, done)
            case Stop(engine):
                self._stop(engine)
            case WentBack():
                self._went_back(action)
            case Proved(target):
                self._log.info("proved", version=target.number)
                self._memory = self._remember(
                    lambda: self._journal.change(lambda memory: replace(memory, proven=self._state.proven))
                )

    def _spawn(self, function: Callable[..., None], *arguments: Any) -> None:
        Thread(target=function, args=arguments, name=function.__name__.strip("_"), daemon=True).start()

    def _fetch(self, target: Target, version: ModelVersion, progress: Progress) -> None:
        try:
            held = fetch(self._registry, self._supply(progress), version, self._arguments, progress)
        except Abandoned:
            self._tell(self._not_fetched, target, "it is not wanted any more", True)
        except Unservable as error:
            self._tell(self._refused, target, str(error))
        except PacktrainError as error:
            self._tell(self._not_fetched, target, str(error), False)
        except Exception as error:  # noqa: BLE001 - whatever it is, what serves keeps serving
            self._tell(self._not_fetched, target, f"{type(error).__name__}: {error}", False)
        else:
            self._tell(self._fetched, target, held)

    def _fetched(self, target: Target, held: Held) -> None:
        self._held[target.digest] = held
        self._log.info("here", version=target.number, path=held.launch.model)
        self._state = self._state.fetched(target)
        self._fit_in(held)

    def _not_fetched(self, target: Target, reason: str, abandoned: bool) -> None:
        self._log.log(20 if abandoned else 40, "not_fetched", version=target.number, because=reason)
        self._state = self._state.not_fetched(target, reason, self._now, abandoned=abandoned)

    def _refused(self, target: Target, reason: str) -> None:
        self._log.error("refused", version=target.number, because=reason)
        self._state = self._state.refused(target, reason, self._now)

    def _fit_in(self, held: Held) -> None:
        """How many engines may run at once from now on."""
        served = self._state.served
        before = self._held[served.digest].weights if served else held.weights
        found = fit(
            self._manner.strategy,
            hardware.look(self._manner.devices, self._arguments, os.environ),
            before,
            held.weights,
        )
        if found != self._fit:
            self._fit = found
            self._log.info("strategy", strategy=found.strategy, because=found.why)
        self._state = replace(self._state, capacity=found.engines)

    def _start(self, engine: Engine) -> None:
        held = self._held[engine.target.digest]
        version = held.version
        port = free_port()
        devices = self._free_devices()
        environment = {**held.launch.environment, **hardware.environment(devices), "VLLM_API_KEY": self._key}
        launch = replace(held.launch, arguments=self._arguments.behind(port), environment=environment)
        self._log.info("starting", version=version.number, port=port, **({"devices": devices} if devices else {}))
        try:
            keeper = Keeper(
                launch,
                self._executable,
                held.supply.pins,
                start_within=self._manner.start_within,
                clock=self._clock,
                healthy=partial(self._tell, self._healthy, engine.number),
                sick=partial(self._tell, self._sick, engine.number),
                gone=partial(self._tell, self._gone, engine.number),
            )
        except (PacktrainError, OSError) as error:
            self._tell(self._gone, engine.number, f"could not be started: {error}")
            return
        self._run_file.begins(keeper.group)
        url = f"http://127.0.0.1:{port}"
        backend = Backend(engine.number, url, self._key, version.name, version.number, str(version.digest))
        self._running[engine.number] = _Running(keeper, backend, devices)

    def _free_devices(self) -> str:
        taken = {running.devices for running in self._running.values()}
        return next((each for each in self._manner.devices if each not in taken), "")

    def _healthy(self, number: int) -> None:
        self._log.info("healthy", version=self._number_of(number))
        self._state = self._state.healthy(number)

    def _sick(self, number: int, reason: str) -> None:
        self._log.error("engine_failed", version=self._number_of(number), because=reason)
        self._metrics.restarts.inc()
        self._state = self._state.failed(number, reason, self._now)

    def _gone(self, number: int, reason: str) -> None:
        running = self._running.pop(number, None)
        if running is not None:
            self._run_file.ends(running.keeper.group)
        self._edge.call(self._edge.traffic.forget, number)
        engine = self._state.engines[number]
        expected = engine.stage == "stopping"
        self._log.log(20 if expected else 40, "engine_ended", version=engine.target.number, how=reason)
        if not expected:
            self._metrics.restarts.inc()
            self._close(engine)
        self._state = self._state.gone(number, reason, self._now)

    def _number_of(self, engine: int) -> int:
        return self._state.engines[engine].target.number

    def _gate(self, engine: Engine) -> None:
        running = self._running[engine.number]
        version = self._held[engine.target.digest].version
        answering = Answering(running.keeper.endpoint, version.name, self._key)
        try:
            verdict = self._judge(answering, version)
        except Exception as error:  # noqa: BLE001 - a gate that fails has not let anything pass
            verdict = Verdict(f"the gate itself failed: {type(error).__name__}: {error}")
        self._tell(self._gated, engine, verdict)

    def _gated(self, engine: Engine, verdict: Verdict) -> None:
        result = "passed" if verdict.passed else "failed"
        self._verdicts[engine.target.digest] = verdict
        self._metrics.gates.labels(result).inc()
        self._metrics.gate_seconds.observe(verdict.seconds)
        level = 20 if verdict.passed else 40
        more = {"because": verdict.reason} if verdict.reason else {}
        if verdict.golden is not None:
            more["golden"] = str(verdict.golden)
            self._metrics.gate_distance.labels(str(engine.target.number)).set(verdict.golden.distance)
        self._log.log(level, f"gate_{result}", version=engine.target.number, seconds=round(verdict.seconds, 2), **more)
        self._state = self._state.gated(
            engine.number, passed=verdict.passed, reason=f"the gate: {verdict.reason}", now=self._now
        )

    def _open(self, engine: Engine) -> None:
        backend = self._running[engine.number].backend
        self._edge.call(self._edge.traffic.direct, backend)
        without = self._now - self._closed_at if self._closed_at is not None else 0.0
        self._without_service += without
        self._metrics.without_service.inc(without)
        self._closed_at = None
        self._metrics.now_serves(backend.model, backend.number, backend.digest)
        since_named = self._now - self._named_at
        before = self._last_switch["to"] if self._last_switch else None
        if self._goes_back:
            self._metrics.went_back_seconds.observe(since_named)
        elif before not in (None, backend.number):
            self._metrics.switch_seconds.observe(since_named)
        if before is None:
            self._log.info(
                "ready",
                version=backend.number,
                digest=backend.digest,
                url=self._edge.endpoint.url,
                seconds=round(since_named, 2),
            )
        elif before != backend.number:
            self._metrics.switches.labels(self._fit.strategy).inc()
            self._log.info(
                "switched",
                version=backend.number,
                digest=backend.digest,
                before=before,
                strategy=self._fit.strategy,
                seconds=round(since_named, 2),
                without_service=round(without, 2),
            )
        else:
            self._log.info("serving_again", version=backend.number, without_service=round(without, 2))
        self._goes_back = False
        self._last_switch = {
            "from": before,
            "to": backend.number,
            "at": timestamp(self._clock.now()),
            "seconds": round(since_named, 3),
            "without_service": round(without, 3),
        }

    def _close(self, engine: Engine) -> None:
        """It takes no new requests from now on. The time until another one does is time without service."""
        self._edge.call(self._edge.traffic.close, engine.number)
        if self._edge.traffic.open is None and self._closed_at is None and self._last_switch is not None:
            self._closed_at = self._now
            self._metrics.now_serves("", None, "")

    def _drained(self, number: int) -> None:
        self._state = self._state.drained(number)

    def _stop(self, engine: Engine) -> None:
        self._close(engine)
        running = self._running.get(engine.number)
        if running is not None:
            self._edge.call(self._edge.traffic.break_off, engine.number, "the engine failed and was stopped")
            running.keeper.stop()

    def _went_back(self, went: WentBack) -> None:
        self._metrics.went_back.inc()
        self._named_at = self._now
        serves = self._edge.traffic.open
        self._goes_back = serves is None or serves.digest != str(went.to.digest)
        if not self._goes_back:
            self._metrics.went_back_seconds.observe(0)
        self._log.error("went_back", version=went.target.number, to=went.to.number, because=went.reason)
        self._memory = self._remember(lambda: self._journal.change(lambda memory: memory.went_back(went)))
        self._watcher.hurry()

    def _remember(self, action: Callable[[], Memory]) -> Memory:
        """The journal, whose disk may be full: then what it should hold lasts as long as this process."""
        try:
            return action()
        except LocalDiskError as error:
            self._log.error("journal_unusable", because=str(error))
            return getattr(self, "_memory", Memory())

    def _release_all(self) -> None:
        while self._held:
            self._held.popitem()[1].release()

    def _note(self, text: str) -> None:
        self._log.info("note", text=text)

    # Its end

    @contextmanager
    def _signals(self) -> Iterator[None]:
        def handle(signum: int, _: object) -> None:
            self._tell(self._leave, signum)

        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
        handled = [signum for signum in numbers if signal.getsignal(signum) is not signal.SIG_IGN]
        before = {signum: signal.signal(signum, handle) for signum in handled}
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)

    def _leave(self, signum: int) -> None:
        """The first signal drains and stops; Ctrl-C after it does not wait."""
        if self._state.stopping:
            if signum == signal.SIGINT:
                self._log.warning("killing")
                for number, running in self._running.items():
                    self._edge.call(self._edge.traffic.break_off, number, "the server was killed")
                    running.keeper.kill()
            return
        self._log.info("stopping", signal=signal.Signals(signum).name, within=self._manner.drain)
        self._edge.call(self._edge.traffic.end)
        self._fetching.abandon()
        self._state = self._state.stop()

    # What it says of itself

    def _describe(self) -> Mapping[str, Any]:
        state = self._state
        waited = self._now - self._closed_at if self._closed_at is not None else 0.0
        served = state.served
        return {
            "reference": str(self._reference),
            "model": self._reference.name,
            "alias": self._alias,
            "pid": os.getpid(),
            "since": timestamp(self._started),
            "ready": served is not None and not state.stopping,
            "stopping": state.stopping,
            "named": _target(state.named.current) if state.named else None,
            "serving": _target(served) if served else None,
            "hold": self._describe_hold(),
            "gate": _verdict(self._verdicts.get(served.digest)) if served else None,
            "watched": state.watched_until is not None,
            "strategy": {"name": self._fit.strategy, "asked": self._manner.strategy, "because": self._fit.why},
            "engines": [self._describe_engine(engine) for engine in state.engines.values()],
            "fetching": self._describe_fetch(),
            "bad": [
                {
                    "version": self._versions[digest].number if digest in self._versions else None,
                    "digest": str(digest),
                    "because": bad.reason,
                }
                for digest, bad in state.bad.items()
                if state.is_bad(Target(0, digest, self._promotion_of(digest)))
            ],
            "failing": [
                {"digest": str(digest), "times": each.times, "because": each.reason}
                for digest, each in state.failing.items()
            ],
            "held": [_target(each) for each in state.proven],
            "registry": {
                "reachable": self._blind is None,
                "unreachable_since": timestamp(self._blind.since) if self._blind else None,
                "because": self._blind.because if self._blind else None,
            },
            "last_switch": self._last_switch,
            "without_service_seconds": round(self._without_service + waited, 3),
        }

    def _promotion_of(self, digest: Digest) -> int:
        named = self._state.named
        for target in (named.current, *named.earlier) if named else ():
            if target.digest == digest:
                return target.promotion
        return 0

    def _describe_engine(self, engine: Engine) -> Mapping[str, Any]:
        running = self._running.get(engine.number)
        return {
            **_target(engine.target),
            "engine": engine.number,
            "stage": "serving" if engine.number == self._state.serving else engine.stage.value,
            "pid": running.keeper.group if running else None,
        }

    def _describe_hold(self) -> Mapping[str, Any] | None:
        hold = self._hold
        if hold is None or hold.target is None:
            return None
        return {**_target(hold.target), "by": hold.by, "reason": hold.reason, "since": hold.at}

    def _describe_fetch(self) -> Mapping[str, Any] | None:
        fetching = self._state.fetching
        if fetching is None:
            return None
        return {**_target(fetching), "done": self._fetching.done, "total": self._fetching.total}


def arguments_key(arguments: Arguments) -> str:
    """The key that a --config file gives the engine, if it does: then no other would do."""
    configured = replace(arguments, given=()).values("--api-key") or ()
    return configured[0] if configured else ""


def _verdict(verdict: Verdict | None) -> dict[str, Any] | None:
    if verdict is None:
        return None
    golden = verdict.golden
    return {
        "passed": verdict.passed,
        "seconds": round(verdict.seconds, 3),
        "golden": {
            "prompts": golden.prompts,
            "tokens": golden.tokens,
            "equal": golden.equal,
            "distance": round(golden.distance, 6),
            "shift": round(golden.shift, 6),
        }
        if golden
        else None,
    }


def _target(target: Target) -> dict[str, Any]:
    return {"version": target.number, "digest": str(target.digest), "event": target.promotion}
