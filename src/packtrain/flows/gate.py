"""A version is put through its gate: an engine serves it, for nobody, and is asked.

The first time, what it answers becomes the version's golden outputs; afterwards it must answer the same again. A merged
model must also answer as its adapter on its base does, where both are at hand. The result is a record, and an event in
the ledger that promotions can be made to depend on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from packtrain._version import __version__
from packtrain.errors import EngineError, Refused, UsageError
from packtrain.flows.catalog import read_golden, read_lineage
from packtrain.flows.following import Unservable, fetch
from packtrain.flows.serve import Supply
from packtrain.flows.storing import settle
from packtrain.flows.unmerged import unmerged
from packtrain.model.digest import Digest
from packtrain.model.golden import Check, Comparison, Golden, Prompt, compare, encode_result, in_short
from packtrain.model.ledger import GATE, GATE_FAILED, GOLDEN
from packtrain.model.lineage import Lineage, record_key
from packtrain.model.reference import Reference
from packtrain.model.version import ModelVersion
from packtrain.ports import Clock, Registry, Reporter, Store
from packtrain.serving import Arguments, Launch, find_vllm
from packtrain.serving.gate import Answering
from packtrain.serving.gate import gate as ask
from packtrain.serving.golden import Unanswered, record, replay
from packtrain.serving.trial import trial
from packtrain.training import datasets, prompts

BUILT_IN = "built in"


@dataclass(frozen=True, slots=True)
class Request:
    """``prompts``: a file of them; ``anew``: record them again, instead of asking the recorded ones."""

    reference: Reference
    arguments: Sequence[str] = ()
    prompts: Path | None = None
    anew: bool = False


@dataclass(frozen=True, slots=True)
class Gated:
    """``golden``: the golden outputs that now belong to the version, ``record`` their name, ``recorded`` whether they
    are of this run. ``compared``: with what was recorded before; ``unmerged``: with the adapter on its base."""

    version: ModelVersion
    golden: Golden | None
    record: Digest | None
    recorded: bool
    compared: Comparison | None
    unmerged: Comparison | None
    checks: tuple[Check, ...]

    @property
    def failures(self) -> list[str]:
        return [check.said for check in self.checks if not check.passed]


def gate(
    store: Store, registry: Registry, supply: Supply, request: Request, *, vllm: str, reporter: Reporter, clock: Clock
) -> Gated:
    """Starts an engine on the version, asks it, and writes down what came of it. Must be called in the main thread.
    Raises EngineError if vLLM is missing or does not start, Refused for a version that cannot be served."""
    executable, said = find_vllm(vllm), Arguments.read(request.arguments)
    state = registry.read(request.reference.name).state
    version = state.resolve(request.reference)
    known = None if request.anew else read_golden(store, state, version)
    if known is not None and request.prompts is not None:
        raise UsageError(
            f"{version} has golden outputs already, of prompts from: {known.source}",
            hint="Give --anew to record them again, or leave out --prompts to ask the recorded ones.",
        )
    lineage = read_lineage(store, version)
    wanted, source = ((), "") if known else _prompts(request.prompts, lineage)
    try:
        held = fetch(registry, supply, version, said, reporter)
    except Unservable as error:
        raise Refused(str(error), hint="Publish it again, from a directory that packtrain check accepts.") from error
    try:
        pins = held.supply.pins
        reporter.note(f"starting vLLM on {version}")
        golden, compared = known, None
        with trial(held.launch, executable, pins, clock) as engine:
            made_with = _made_with(engine, said)
            verdict = ask(engine, known)
            compared = verdict.golden
            answers = verdict.passed or compared is not None
            checks = [Check("answers", answers, "it answers" if answers else verdict.reason)]
            if compared is not None:
                checks.append(_check("as recorded", compared))
            elif verdict.passed:
                reporter.note(f"recording what it answers to {len(wanted)} prompts ({source})")
                golden, check = _record(engine, version, made_with, source, wanted)
                checks.append(check)
        apart = None
        if golden is not None and all(check.passed for check in checks):
            launch = unmerged(registry, held.supply, version, lineage, said, reporter)
            if launch is not None:
                reporter.note("starting vLLM on the adapter and its base, to compare")
                apart, more = _compare(launch, executable, held.supply.pins, golden, reporter, clock)
                checks += more
    finally:
        held.release()
    passed = all(check.passed for check in checks)
    named = state.records[version.digest][GOLDEN] if known else None
    if known is None and golden is not None and passed:  # what failed is no measure for others
        named = attach(store, registry, version, GOLDEN, golden.encode())
    result = encode_result(version.digest, named, made_with, checks)
    attach(store, registry, version, GATE if passed else GATE_FAILED, result)
    recorded = known is None and named is not None
    return Gated(version, golden if named else None, named, recorded, compared, apart, tuple(checks))


def attach(store: Store, registry: Registry, version: ModelVersion, kind: str, data: bytes) -> Digest:
    """Keeps a record of a version, and says so in the ledger. Returns its name."""
    data = registry.read(version.name).state.uncondemned_record(data)
    name = Digest.of(data)
    settle(store, record_key(version.name, name), data)
    registry.change(version.name, lambda state: state.attach(version.digest, kind, name))
    return name


def _record(
    engine: Answering, version: ModelVersion, made_with: Mapping[str, str], source: str, wanted: Sequence[Prompt]
) -> tuple[Golden | None, Check]:
    try:
        answers = record(engine.ask, engine.model, wanted)
    except (Unanswered, OSError) as error:
        return None, Check("recorded", False, f"its answers could not be recorded: {error}")
    tokens = sum(len(answer.tokens) for _, answer in answers)
    said = f"{len(answers)} prompts ({source}) and the {tokens} tokens of their answers"
    return Golden(version.digest, made_with, source, answers), Check("recorded", True, said)


def _compare(
    launch: Launch, executable: str, pins: Sequence[int], golden: Golden, reporter: Reporter, clock: Clock
) -> tuple[Comparison | None, list[Check]]:
    """The adapter on its base against the merged model's answers. Nothing, if vLLM cannot serve them so."""
    try:
        with trial(launch, executable, pins, clock) as engine:
            compared = compare(golden, replay(engine.ask, engine.model, golden), rounded=True)
    except (EngineError, Unanswered, OSError) as error:
        reporter.note(
            f"warning: the merge was not compared with its adapter: {error} {getattr(error, 'hint', '')}".rstrip()
        )
        return None, []
    return compared, [_check("as the adapter on its base", compared)]


def _check(what: str, compared: Comparison) -> Check:
    wrong = in_short(compared.differences)
    return Check(what, compared.passed, f"not {what}: {wrong}" if wrong else str(compared))


def _made_with(engine: Answering, said: Arguments) -> Mapping[str, str]:
    _, answer = engine.ask("/version")
    version = answer.get("version") if isinstance(answer, dict) else None
    return {
        "packtrain": __version__,
        "vllm": str(version or "unknown"),
        "arguments": " ".join(said.without("--api-key")),
    }


def _prompts(given: Path | None, lineage: Lineage | None) -> tuple[Sequence[Prompt], str]:
    """What is to be asked, and where it is from: the file that was given, the training's evaluation examples if they
    are still what they were, or what is built in."""
    if given is not None:
        return prompts.read_prompts(given), given.name
    for dataset in lineage.eval_datasets if lineage else ():
        folder = Path(str(lineage.training_config.get("dataset_dir", "data"))) if lineage else Path()
        for name, sha256 in dataset.files.items():
            if datasets.is_still(folder / name, sha256) and (found := prompts.examples(folder / name, dataset.info)):
                return found, f"{dataset.name}, of the training's evaluation"
    return prompts.DEFAULT, BUILT_IN
