"""The Python API. What the command line does, it does through this."""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from packtrain.errors import PacktrainError, UsageError, disk_error
from packtrain.model.digest import Digest
from packtrain.model.duration import duration
from packtrain.model.lease import Holder
from packtrain.model.ledger import Event, State
from packtrain.model.reference import Reference
from packtrain.model.version import ModelVersion
from packtrain.ports import Reporter
from packtrain.settings import Settings, load, origins
from packtrain.storage import open_store
from packtrain.wiring import Parts, open_source, wire

if TYPE_CHECKING:
    from packtrain.flows.attest import Attested
    from packtrain.flows.caching import Checked, Listing, Removed
    from packtrain.flows.catalog import Entry
    from packtrain.flows.check import Verdict
    from packtrain.flows.doctor import Check
    from packtrain.flows.fetch import Outlook
    from packtrain.flows.garbage import Collected
    from packtrain.flows.gate import Gated
    from packtrain.flows.in_place import InPlace
    from packtrain.flows.promote import Move
    from packtrain.flows.publish import Published
    from packtrain.flows.pull import Node, Snapshot
    from packtrain.flows.repair import Repaired
    from packtrain.flows.serve import Supply
    from packtrain.flows.verify import Verified
    from packtrain.flows.watch import Happened
    from packtrain.flows.what import What
    from packtrain.model.ancestry import Ancestry
    from packtrain.model.comparison import Comparison
    from packtrain.model.delta import Delta
    from packtrain.model.mirror import Policy
    from packtrain.model.run import TrainingRun
    from packtrain.serving.journal import Hold


class Silent:
    """A reporter that says nothing."""

    def begin(self, what: str, total: int) -> None: ...
    def advance(self, count: int) -> None: ...
    def end(self) -> None: ...
    def note(self, text: str) -> None: ...


def _working_directory() -> Path:
    try:
        return Path.cwd()
    except OSError as error:
        raise disk_error(error, "the working directory cannot be found") from error


def diagnose(reporter: Reporter | None = None, **flags: str | None) -> Iterator[Check]:
    """Looks at everything that Packtrain needs here, even where it is too wrong for a `Client`. ``flags`` are settings
    as `Client` takes them. Only the working directory can make it raise a PacktrainError."""
    from packtrain.flows.doctor import FAILURE, cache_disk, engines, ledgers, program, store
    from packtrain.flows.doctor.check import failure

    directory = _working_directory()
    yield program.version()
    yield from program.variables(os.environ)
    try:
        settings = load(flags, environ=os.environ, directory=directory)
        yield program.settings(origins(flags, environ=os.environ, directory=directory))
        parts = wire(settings, reporter or Silent())
    except PacktrainError as error:
        yield failure("settings", error)
        return
    yield from store.credentials(parts.store.url, parts.clock.now())
    answers = True
    for check in store.examine(parts.store, parts.clock, uuid.uuid4().hex):
        answers = answers and check.level != FAILURE
        yield check
    if answers:
        yield from ledgers.examine(parts.store, parts.registry, parts.clock.now())
        if parts.mlflow is not None:
            from packtrain.flows.doctor import mlflow

            yield from mlflow.examine(parts.mlflow, parts.store, parts.registry, uuid.uuid4().hex)
    yield from cache_disk.examine(parts.cache)
    yield from engines.examine(settings.vllm, settings.llamafactory)


class Client:
    """Packtrain, as a library.

        client = Client(store="s3://models/prod")
        published = client.publish("output/merged", "llama-finetuned")
        client.promote("llama-finetuned/3", to="production", reason="eval 0.87")
        snapshot = client.pull("llama-finetuned@production")
        snapshot.path                      # a complete, verified, read-only directory

    Settings that are not given come from packtrain.toml and PACKTRAIN_* variables, as for the command line.
    References are texts (``NAME``, ``NAME@alias``, ``NAME/3``, ``NAME@sha256:...``). Every method raises
    `packtrain.errors.PacktrainError` with a message and a hint, and nothing else.
    """

    def __init__(
        self,
        *,
        store: str | None = None,
        registry: str | None = None,
        storage_class: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        cache_quota: str | None = None,
        cache_free: str | None = None,
        pull: str | None = None,
        pull_memory: str | None = None,
        pull_bandwidth: str | None = None,
        actor: str | None = None,
        vllm: str | None = None,
        llamafactory: str | None = None,
        strategy: str | None = None,
        devices: str | None = None,
        poll: str | None = None,
        watch_window: str | None = None,
        error_limit: str | None = None,
        latency_limit: str | None = None,
        drain: str | None = None,
        keep_versions: str | None = None,
        reporter: Reporter | None = None,
    ) -> None:
        given = {
            "store": store,
            "registry": registry,
            "storage_class": storage_class,
            "cache_dir": os.fspath(cache_dir) if cache_dir is not None else None,
            "cache_quota": cache_quota,
            "cache_free": cache_free,
            "pull": pull,
            "pull_memory": pull_memory,
            "pull_bandwidth": pull_bandwidth,
            "actor": actor,
            "vllm": vllm,
            "llamafactory": llamafactory,
            "strategy": strategy,
            "devices": devices,
            "poll": poll,
            "watch_window": watch_window,
            "error_limit": error_limit,
            "latency_limit": latency_limit,
            "drain": drain,
            "keep_versions": keep_versions,
        }
        self.settings: Settings = load(given, environ=os.environ, directory=_working_directory())
        self._reporter: Reporter = reporter or Silent()
        self._parts: Parts = wire(self.settings, self._reporter)

    def check(
        self,
        directory: str | os.PathLike[str],
        *,
        base: str | None = None,
        allow_code: bool = False,
        scan: bool = False,
    ) -> Verdict:
        """Whether a directory could be served: its findings, those that refuse a publish included. Reads headers;
        with ``scan`` every number of the weights."""
        from packtrain.flows.check import check

        parts = self._parts
        return check(
            parts.store,
            parts.registry,
            Path(directory),
            base=base,
            allow_code=allow_code,
            every_number=scan,
            reporter=self._reporter,
        )

    def publish(
        self,
        directory: str | os.PathLike[str],
        name: str,
        *,
        alias: str | None = None,
        training_config: str | os.PathLike[str] | None = None,
        export_config: str | os.PathLike[str] | None = None,
        training_dir: str | os.PathLike[str] | None = None,
        exported_with: str | None = None,
        base: str | None = None,
        allow_code: bool = False,
        force: bool = False,
        paranoid: bool = False,
        dry_run: bool = False,
    ) -> Published:
        """Makes a directory of LLaMA-Factory's a version of the registered model ``name``.

        The configurations, the training's directory and the version of LLaMA-Factory that exported it are for the
        lineage. ``paranoid`` reads everything back from the store before the version is named.
        """
        from packtrain.flows.publish import Request, publish

        request = Request(
            directory=Path(directory),
            name=name,
            alias=alias,
            training_config=_path(training_config),
            export_config=_path(export_config),
            training_dir=_path(training_dir),
            exported_with=exported_with,
            base=base,
            allow_code=allow_code,
            force=force,
            paranoid=paranoid,
            dry_run=dry_run,
        )
        parts = self._parts
        return publish(parts.store, parts.registry, request, reporter=self._reporter, clock=parts.clock)

    def export(
        self,
        config: str | os.PathLike[str],
        name: str,
        *,
        alias: str | None = None,
        training_config: str | os.PathLike[str] | None = None,
        training_dir: str | os.PathLike[str] | None = None,
        base: str | None = None,
        allow_code: bool = False,
        force: bool = False,
        paranoid: bool = False,
    ) -> Published:
        """Runs ``llamafactory-cli export CONFIG`` and publishes what it wrote, with the lineage that it gives."""
        from packtrain.training import llamafactory

        command = self.settings.llamafactory
        directory = llamafactory.export(Path(config), command=command)
        return self.publish(
            directory,
            name,
            alias=alias,
            training_config=training_config,
            export_config=config,
            exported_with=llamafactory.version(command),
            training_dir=training_dir,
            base=base,
            allow_code=allow_code,
            force=force,
            paranoid=paranoid,
        )

    def repair(
        self,
        directory: str | os.PathLike[str],
        name: str,
        *,
        training_config: str | os.PathLike[str] | None = None,
        training_dir: str | os.PathLike[str] | None = None,
        base: str | None = None,
    ) -> list[Repaired]:
        """Mends what the store holds of the versions that were published from a directory. What publish was given
        besides is needed only to make a damaged manifest or lineage record again."""
        from packtrain.flows.publish import Request
        from packtrain.flows.repair import repair

        request = Request(
            directory=Path(directory),
            name=name,
            training_config=_path(training_config),
            training_dir=_path(training_dir),
            base=base,
        )
        return repair(self._parts.store, self._parts.registry, request, reporter=self._reporter)

    def adopt(
        self,
        source: str | os.PathLike[str],
        name: str | None = None,
        *,
        alias: str | None = None,
        training_config: str | os.PathLike[str] | None = None,
        training_dir: str | os.PathLike[str] | None = None,
        base: str | None = None,
        allow_code: bool = False,
        paranoid: bool = False,
        dry_run: bool = False,
    ) -> Published:
        """Makes a folder, or everything under a URL like gs://bucket/prefix/v1, a version of ``name``. The source is
        only read. NAME/2 is the version that somebody registered in MLflow without Packtrain; it keeps its number."""
        from packtrain.flows.adopt import adopt, adopt_registered, target
        from packtrain.flows.publish import Request

        place = os.fspath(source)
        name, registered = target(place, name)
        request = Request(
            directory=Path(place),
            name=name,
            alias=alias,
            training_config=_path(training_config),
            training_dir=_path(training_dir),
            base=base,
            allow_code=allow_code,
            paranoid=paranoid,
            dry_run=dry_run,
        )
        if registered is not None:
            return adopt_registered(
                self._parts.store,
                self._parts.registry,
                self._parts.mlflow,
                open_store,
                registered,
                request,
                scratch=self.settings.cache_dir / "scratch",
                reporter=self._reporter,
                clock=self._parts.clock,
            )
        return adopt(
            self._parts.store,
            self._parts.registry,
            open_source(place),
            request,
            scratch=self.settings.cache_dir / "scratch",
            reporter=self._reporter,
            clock=self._parts.clock,
        )

    def watch(
        self,
        directory: str | os.PathLike[str],
        name: str,
        *,
        alias: str | None = None,
        remove_source: bool = False,
        interval: float = 30.0,
        once: bool = False,
    ) -> Iterator[Happened]:
        """Publishes exports as they are finished in a folder, and tells what happens. Goes on until it is left,
        unless ``once``."""
        from packtrain.flows.watch import Watch, watch

        return watch(
            self._parts.store,
            self._parts.registry,
            Watch(Path(directory), name, alias, remove_source, interval, once),
            memory=self.settings.cache_dir / "watch",
            reporter=self._reporter,
            clock=self._parts.clock,
        )

    def models(self, name: str | None = None) -> list[Entry]:
        """Every version of every registered model, or of one, newest first."""
        from packtrain.flows.catalog import models

        return models(self._parts.store, self._parts.registry, name)

    def show(self, reference: str) -> Entry:
        """One version, its aliases and its lineage."""
        from packtrain.flows.catalog import show

        return show(self._parts.store, self._parts.registry, Reference.parse(reference))

    def lineage(self, reference: str) -> Ancestry:
        """A version and how it was made, then its base and so on, as far as they are published."""
        from packtrain.flows.lineage import trace

        ancestry = trace(self._parts.store, self._parts.registry, Reference.parse(reference))
        if self._parts.mlflow is None:
            return ancestry
        from packtrain.flows.runs import follow

        return tuple(replace(each, run=follow(self._parts.mlflow, each.version, self._reporter)) for each in ancestry)

    def run_of(self, reference: str) -> TrainingRun | None:
        """The training run that MLflow links a version to, if there is an MLflow and it has one."""
        from packtrain.flows.runs import follow

        wanted = Reference.parse(reference)
        if self._parts.mlflow is None:
            return None
        version = self._parts.registry.read(wanted.name).state.resolve(wanted)
        return follow(self._parts.mlflow, version, self._reporter)

    def compare(self, before: str, after: str) -> Comparison:
        """What changed between two versions: training, data, files, tokenizer, tensors. Downloads no weights."""
        from packtrain.flows.compare import compare

        return compare(self._parts.store, self._parts.registry, Reference.parse(before), Reference.parse(after))

    def diff(self, before: str, after: str, *, exact: bool = False) -> Delta:
        """Which tensors changed, and what a node that has ``before`` gets for ``after``. Downloads no weights; with
        ``exact``, the small tensors that cannot be told apart otherwise."""
        from packtrain.flows.diff import diff

        references = Reference.parse(before), Reference.parse(after)
        return diff(self._parts.store, self._parts.registry, *references, exact=exact)

    def url(self, reference: str) -> str:
        """The immutable URL of a version's directory in the store."""
        from packtrain.flows.catalog import url

        return url(self._parts.store, self._parts.registry, Reference.parse(reference))

    def history(self, name: str) -> list[Event]:
        """Everything that happened to a registered model, oldest first."""
        from packtrain.flows.catalog import history

        return history(self._parts.registry, name)

    def seen(self) -> list[State]:
        """What this machine last saw of each registered model, without asking anybody."""
        registry = self._parts.registry
        return [registry.remembered(name).state for name in sorted(registry.known())]

    def promote(self, reference: str, *, to: str, expect: int | None = None, reason: str = "") -> Move:
        """Points the alias ``to`` at a version. ``expect``: the version it must be at now (0: not set)."""
        from packtrain.flows.promote import promote

        return promote(self._parts.registry, Reference.parse(reference), to, expect=expect, reason=reason)

    def rollback(
        self,
        name: str,
        *,
        alias: str = "production",
        to: int | None = None,
        expect: int | None = None,
        reason: str = "",
    ) -> Move:
        """Points an alias back at the version promoted before the current one, or at ``to``."""
        from packtrain.flows.promote import roll_back

        return roll_back(self._parts.registry, name, alias, to=to, expect=expect, reason=reason)

    def archive(self, reference: str, *, reason: str = "", storage_class: str | None = None) -> ModelVersion:
        """Retires a version. Refused while an alias points at it. Its files may be moved to a colder storage class."""
        from packtrain.flows.colder import move_colder
        from packtrain.flows.promote import archive

        parts = self._parts
        if storage_class is not None and parts.store.multipart is None:
            raise UsageError(f"{parts.store.url} has no storage classes", hint="They are for s3:// alone.")
        version = archive(parts.registry, Reference.parse(reference), reason=reason)
        if storage_class is not None:
            move_colder(parts.store, version, storage_class, self._reporter)
        return version

    def policy(
        self,
        name: str,
        *,
        protect: Sequence[str] = (),
        unprotect: Sequence[str] = (),
        gate: Sequence[str] = (),
        ungate: Sequence[str] = (),
    ) -> Policy:
        """What moving the aliases of a model demands, after the change that is asked for."""
        from packtrain.flows.policy import Change, policy

        return policy(self._parts.registry, name, Change(protect, unprotect, gate, ungate))

    def register(self, name: str) -> State:
        """Makes an MLflow server show a ledger that it does not show: all its versions and aliases."""
        from packtrain.flows.mirroring import register

        return register(self._parts.registry, name)

    def hear(
        self, secret: bytes, *, host: str = "127.0.0.1", port: int = 8090, ready: Callable[[int], None] = lambda _: None
    ) -> None:
        """Hears MLflow's webhooks until this process is told to stop. Each is checked; then the model that it is about
        is looked at, and those on this machine who wait for news of it are woken."""
        from packtrain.flows.waking import wake
        from packtrain.model.webhook import Gate
        from packtrain.serving.webhooks import receive

        def look(name: str) -> None:
            log = self._parts.registry.read(name)
            self._reporter.note(f"news of {name}: {_aliases(log.state)}")
            wake(self.settings.cache_dir, name)

        receive(Gate(secret), look, host=host, port=port, ready=ready, note=self._reporter.note)

    def verify(self, name: str | None = None, *, every_byte: bool = False) -> list[Verified]:
        """Walks chains and manifests, and every byte if asked. Raises IntegrityError at what does not hold."""
        from packtrain.flows.verify import verify

        parts = self._parts
        return verify(
            parts.store, parts.registry, name, every_byte=every_byte, reporter=self._reporter, clock=parts.clock
        )

    def gc(self, *, grace: str | timedelta = "7d", dry_run: bool = False) -> Collected:
        """Frees what nothing names any more, in the store and in this node's cache, and says why."""
        from packtrain.flows.collect import collect

        parts = self._parts
        return collect(
            parts.store,
            parts.registry,
            parts.cache,
            grace=duration(grace) if isinstance(grace, str) else grace,
            dry_run=dry_run,
            reporter=self._reporter,
            clock=parts.clock,
        )

    def pull(
        self,
        reference: str,
        *,
        to: str | os.PathLike[str] | None = None,
        keep: bool = False,
        verify: bool = False,
    ) -> Snapshot:
        """A complete, read-only directory of a version: in the cache, at ``to``, or the store's own.

        The setting ``pull`` chooses between cache and store. The cache keeps it for half an hour, or for good with
        ``keep``. What is copied is always verified; what is used in place only with ``verify``.
        """
        parts = self._parts
        wanted = Reference.parse(reference)
        if to is None and self.settings.pull == "in-place":
            if keep:
                raise UsageError(
                    f"{wanted} is used in place, so there is nothing in the cache to keep",
                    hint="Give --no-in-place to have a copy, or leave out --pin.",
                )
            from packtrain.flows.in_place import pull_in_place

            return pull_in_place(parts.registry, self._in_place(verify), wanted, reporter=self._reporter)
        from packtrain.flows.pull import pull

        return pull(self._node(), wanted, to=_path(to), keep=keep)

    def pull_unverified(self, reference: str, to: str | os.PathLike[str]) -> Path:
        """A new folder with what a version points at that somebody registered in MLflow without Packtrain. Nothing
        vouches for these bytes."""
        from packtrain.flows.adopt import no_mlflow
        from packtrain.flows.foreign import pull_unverified, source_of

        wanted, target = Reference.parse(reference), Path(to).absolute()
        if self._parts.mlflow is None:
            raise no_mlflow(wanted)
        pull_unverified(source_of(self._parts.mlflow, wanted, open_store), wanted, target, self._reporter)
        return target

    def foresee(self, reference: str, *, to: str | os.PathLike[str] | None = None) -> Outlook:
        """What a pull into the cache, or ``to`` a folder, would link and copy from other snapshots, and fetch. Changes
        nothing."""
        from packtrain.flows.fetch import foresee

        if to is None and self.settings.pull == "in-place":
            raise UsageError(
                f"{reference} is used in place: nothing is copied or fetched",
                hint="Give --no-in-place to hear what a copy would take.",
            )
        return foresee(self._node(), Reference.parse(reference), to=_path(to))

    def cached(self) -> Listing:
        """What is in the cache of this node, who holds it, and how much there may be."""
        from packtrain.flows.caching import contents

        return contents(self._parts.cache, self._parts.registry)

    def uncache(self, which: str) -> Removed:
        """Frees the space of a snapshot or an unfinished download: a reference, or a digest. Refused while it is in
        use or leased."""
        from packtrain.flows.caching import remove

        return remove(self._parts.cache, self._parts.registry, which, reporter=self._reporter)

    def verify_cached(self, which: str | None = None) -> list[Checked]:
        """Reads every byte of one snapshot or of all. Raises IntegrityError; what is damaged is out of the way."""
        from packtrain.flows.caching import verify

        return verify(self._parts.cache, self._parts.registry, which, reporter=self._reporter)

    def pin(self, which: str) -> str:
        """Keeps a snapshot that is in the cache until `unpin`. Returns what it is called."""
        from packtrain.flows.caching import pin

        return pin(self._parts.cache, self._parts.registry, which, reporter=self._reporter)

    def unpin(self, which: str) -> tuple[str, bool]:
        """Ends a pin and a lease. Returns what it is called, and whether there was any."""
        from packtrain.flows.caching import unpin

        return unpin(self._parts.cache, self._parts.registry, which, reporter=self._reporter)

    def serve(self, reference: str, arguments: Sequence[str] = (), *, verify: bool = False) -> int:
        """Runs ``vllm serve`` with ``arguments`` until it ends, and returns the exit code.

        A reference with an alias is followed: engines serve, behind a proxy, what the alias names; its log goes to
        structlog. Any other names one version, which is pulled and served by one engine.
        """
        from packtrain.flows.serve import serve

        wanted = Reference.parse(reference)
        if wanted.alias is not None:
            return self._follow(wanted, arguments, verify)
        return serve(
            self._parts.registry,
            self._supply(verify, self._reporter),
            wanted,
            arguments,
            vllm=self.settings.vllm,
            reporter=self._reporter,
            clock=self._parts.clock,
        )

    def run(self, reference: str, arguments: Sequence[str] = (), *, verify: bool = False) -> NoReturn:
        """Pulls a version and becomes ``vllm serve`` on it: this process is replaced."""
        from packtrain.flows.serve import run

        run(
            self._parts.registry,
            self._supply(verify, self._reporter),
            Reference.parse(reference),
            arguments,
            vllm=self.settings.vllm,
            reporter=self._reporter,
        )

    def status(self, url: str | None = None, *, key: str = "") -> list[Mapping[str, Any]]:
        """What a supervisor that follows an alias says of itself; without a URL, every one of this node."""
        from packtrain.flows.what import statuses
        from packtrain.serving.asking import Endpoint, status

        if url is None:
            return statuses(self.settings.cache_dir / "serving" / "runs")
        endpoint = Endpoint.parse(url, key)
        return [{**status(endpoint), "url": endpoint.url}]

    def what(self, url: str, *, key: str = "") -> What:
        """Which version an endpoint serves, held against the registry."""
        from packtrain.flows.what import what
        from packtrain.serving.asking import Endpoint

        return what(self._parts.store, self._parts.registry, Endpoint.parse(url, key))

    def hold(self, reference: str, *, alias: str = "production", reason: str = "") -> Hold:
        """Has this node serve a version, whatever the alias that it follows names, until `release`. Needs neither the
        registry nor the store; the ledger is told when it can be reached, by whoever follows the alias."""
        from packtrain.flows.holding import hold
        from packtrain.serving.journal import Journal

        parsed, parts = Reference.parse(reference), self._parts
        journal = Journal(self._journal(parsed.name, alias))
        by = self.settings.actor
        return hold(parts.registry, journal, parsed, by=by, reason=reason, reporter=self._reporter, clock=parts.clock)

    def release(self, name: str, *, alias: str = "production", reason: str = "") -> Hold | None:
        """Has this node follow the alias again. None if it was not held."""
        from packtrain.flows.holding import release
        from packtrain.serving.journal import Journal

        journal = Journal(self._journal(name, alias))
        return release(journal, by=self.settings.actor, reason=reason, clock=self._parts.clock)

    def gate(
        self,
        reference: str,
        arguments: Sequence[str] = (),
        *,
        prompts: str | os.PathLike[str] | None = None,
        anew: bool = False,
    ) -> Gated:
        """Starts an engine on a version, with ``arguments`` as `serve` takes them, and holds its answers against the
        version's golden outputs, or makes them these if it has none. The result is kept and in the ledger."""
        from packtrain.flows.gate import Request, gate

        parts = self._parts
        return gate(
            parts.store,
            parts.registry,
            self._supply(False, self._reporter),
            Request(Reference.parse(reference), tuple(arguments), _path(prompts), anew),
            vllm=self.settings.vllm,
            reporter=self._reporter,
            clock=parts.clock,
        )

    def attest(self, url: str, *, key: str = "") -> Attested:
        """Whether an endpoint answers as the golden outputs of the version that it names."""
        from packtrain.flows.attest import attest
        from packtrain.serving.asking import Endpoint

        return attest(self._parts.store, self._parts.registry, Endpoint.parse(url, key))

    def _follow(self, reference: Reference, arguments: Sequence[str], verify: bool) -> int:
        from packtrain.flows.follow import Manner, Place, follow
        from packtrain.flows.judging import Judge
        from packtrain.model.rollout import Limits

        settings, parts = self.settings, self._parts
        limits = Limits(settings.watch_window, settings.error_limit, settings.latency_limit)
        return follow(
            parts.registry,
            lambda reporter: self._supply(verify, reporter),
            reference,
            arguments,
            vllm=settings.vllm,
            manner=Manner(
                strategy=settings.strategy,
                devices=settings.devices,
                poll=settings.poll,
                drain=settings.drain,
                keep=settings.keep_versions,
                limits=limits,
            ),
            place=Place(
                settings.cache_dir,
                settings.cache_dir / "serving" / "runs",
                self._journal(reference.name, str(reference.alias)),
                parts.cache.boot,
            ),
            clock=parts.clock,
            judge=Judge(parts.store, parts.registry, settings.cache_dir / "serving" / "golden"),
        )

    def _journal(self, name: str, alias: str) -> Path:
        """What this node remembers of an alias that it follows."""
        here = Digest.of(self._parts.store.url.encode()).short
        return self.settings.cache_dir / "serving" / here / f"{name}@{alias}.json"

    def _supply(self, verify: bool, reporter: Reporter) -> Supply:
        """Where engines find versions: in the cache, or where they are."""
        from packtrain.flows.serve import FromCache

        if self.settings.pull == "in-place":
            return self._in_place(verify, reporter)
        return FromCache(self._node(reporter))

    def _node(self, reporter: Reporter | None = None) -> Node:
        from packtrain.flows.pull import Node
        from packtrain.model.pacing import Limits

        parts = self._parts
        limits = Limits(memory=self.settings.pull_memory, bandwidth=self.settings.pull_bandwidth)
        return Node(parts.store, parts.registry, parts.cache, reporter or self._reporter, parts.clock, limits)

    def _in_place(self, verify: bool, reporter: Reporter | None = None) -> InPlace:
        from packtrain.flows.in_place import InPlace

        holder = Holder(socket.gethostname(), os.getpid(), self.settings.actor)
        parts = self._parts
        return InPlace(
            parts.store,
            parts.registry,
            verify=verify,
            holder=holder,
            reporter=reporter or self._reporter,
            clock=parts.clock,
        )


def _aliases(state: State) -> str:
    return ", ".join(f"@{alias} at {number}" for alias, number in state.aliases.items()) or "no aliases"


def _path(value: str | os.PathLike[str] | None) -> Path | None:
    return Path(value) if value is not None else None
