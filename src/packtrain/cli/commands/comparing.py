"""What changed between two versions: `compare`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from packtrain.cli import documents, options
from packtrain.cli.helptext import LOOK, command
from packtrain.cli.session import Session, takes
from packtrain.cli.text import NONE, UNKNOWN, card, number, of_the_machine, pairs, table
from packtrain.model.amount import size

if TYPE_CHECKING:
    from packtrain.model.comparison import Change, Comparison
    from packtrain.model.delta import Delta, FileChange
    from packtrain.model.lineage import Dataset
    from packtrain.model.run import TrainingRun


@command(panel=LOOK, epilog="packtrain compare llama-finetuned/2 llama-finetuned/3")
@options.before
@options.after
@takes()
def compare(session: Session, before: str, after: str) -> None:
    """Show what changed between two versions.

    Training parameters, metrics, datasets, configuration, tokenizer and weights; packtrain diff shows these layer by
    layer. No weights are downloaded.
    """
    comparison = session.client.compare(before, after)
    runs = [session.client.run_of(reference) for reference in (before, after)]
    session.print(
        comparison,
        text=lambda comparison: "\n\n".join([text(comparison), *_runs(comparison, runs)]),
        document=lambda comparison: {**document(comparison), "runs": [documents.run(run) for run in runs]},
    )


def _runs(comparison: Comparison, runs: Sequence[TrainingRun | None]) -> list[str]:
    """The training runs in MLflow, where there are any."""
    names = (str(comparison.before), str(comparison.after))
    rows = [(name, run.url) for name, run in zip(names, runs, strict=True) if run is not None]
    return [card([("RUNS", "in MLflow"), *rows])] if rows else []


def text(comparison: Comparison) -> str:
    """A block for each subject, with what differs in it."""
    blocks = [f"{comparison.before} -> {comparison.after}"]
    if comparison.same_payload:
        blocks.append("Both hold the same exported bytes.")
    blocks += [
        _parameters(comparison),
        _metrics(comparison),
        _datasets(comparison),
        _changes("CONFIGURATION", comparison, comparison.config, "not set"),
        _tokenizer(comparison),
        _tensors(comparison.delta),
    ]
    return "\n\n".join(blocks)


def _parameters(comparison: Comparison) -> str:
    from packtrain.model.comparison import FACTS

    def cell(change: Change, value: Any, known: bool) -> str:
        if value is None:
            return UNKNOWN if change.name in FACTS or not known else "not set"
        return _value(value)

    was_known, now_known = comparison.settings_known
    rows = [
        (each.name, cell(each, each.before, was_known), cell(each, each.after, now_known))
        for each in comparison.parameters
    ]
    lines = [_table("PARAMETER", comparison, rows) if rows else "PARAMETERS: nothing known differs"]
    if comparison.unknown:
        lines.append(f"unknown of both: {', '.join(comparison.unknown)}")
    return "\n".join(lines)


def _metrics(comparison: Comparison) -> str:
    rows = [
        (each.name, *(number(value) if value is not None else UNKNOWN for value in (each.before, each.after)))
        for each in comparison.metrics
        if not of_the_machine(each.name)
    ]
    return _table("METRIC", comparison, rows) if rows else "METRICS: nothing known differs"


def _datasets(comparison: Comparison) -> str:
    rows = [
        (each.name, each.use, each.state, _contents(each.before), _contents(each.after)) for each in comparison.datasets
    ]
    head = ("DATASET", "USE", "STATE", str(comparison.before), str(comparison.after))
    return table(head, rows) if rows else "DATASETS: unknown"


def _contents(dataset: Dataset | None) -> str:
    if dataset is None:
        return NONE
    return pairs({name: digest[:12] for name, digest in sorted(dataset.files.items())}) or "digest unknown"


def _changes(title: str, comparison: Comparison, changes: Sequence[Change], absent: str) -> str:
    rows = [
        (each.name, *(absent if value is None else _value(value) for value in (each.before, each.after)))
        for each in changes
    ]
    return _table(title, comparison, rows) if rows else f"{title}: the same"


def _tokenizer(comparison: Comparison) -> str:
    tokenizer = comparison.tokenizer
    before, after = tokenizer.vocabulary.before, tokenizer.vocabulary.after
    sizes = [UNKNOWN if count is None else f"{count} tokens" for count in (before, after)]
    was, now = tokenizer.chat_template.before, tokenizer.chat_template.after
    template = "the same" if was == now else f"{was[:12] if was else 'none'} -> {now[:12] if now else 'none'}"
    rows = [
        ("TOKENIZER", "the same" if tokenizer.same else "differs"),
        ("vocabulary", sizes[0] if before == after else " -> ".join(sizes)),
        ("chat template", "none" if was is now is None else template),
        *((file.path, _file(file)) for file in tokenizer.files),
    ]
    return card(rows)


def _file(file: FileChange) -> str:
    sizes = [size(count) for count in (file.before, file.after) if count is not None]
    return f"{file.state} ({' -> '.join(sizes)})"


def _tensors(delta: Delta) -> str:
    """Which kinds differ."""
    from packtrain.model.tensors import SAME, kind_of, tally

    if not delta.tensors:
        return "TENSORS: none"
    rows = []
    for state, tensors in delta.total.tensors.items():
        if tensors:
            those = tally((change for change in delta.tensors if change.state == state), kind_of)
            kinds = "" if state == SAME else f": {', '.join(those)}"
            rows.append((state, f"{tensors} ({size(delta.total.bytes[state])}){kinds}"))
    return card([("TENSORS", "differ" if len(rows) > 1 or rows[0][0] != SAME else "the same"), *rows])


def _table(title: str, comparison: Comparison, rows: Sequence[Sequence[str]]) -> str:
    return table((title, str(comparison.before), str(comparison.after)), rows)


def _value(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_value, value)) or "none"
    return {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)


def document(comparison: Comparison) -> dict[str, Any]:
    from packtrain.model.tensors import STATES, kind_of, tally

    tokenizer, total = comparison.tokenizer, comparison.delta.total
    kinds = tally(comparison.delta.tensors, kind_of)
    return {
        "before": documents.version(comparison.before),
        "after": documents.version(comparison.after),
        "same_payload": comparison.same_payload,
        "parameters": [_change(each) for each in comparison.parameters],
        "metrics": [_change(each) for each in comparison.metrics],
        "unknown": list(comparison.unknown),
        "datasets": [
            {
                "name": each.name,
                "use": each.use,
                "state": each.state,
                "before": _dataset(each.before),
                "after": _dataset(each.after),
            }
            for each in comparison.datasets
        ],
        "config": [_change(each) for each in comparison.config],
        "tokenizer": {
            "same": tokenizer.same,
            "files": [_file_document(each) for each in tokenizer.files],
            "vocabulary": {"before": tokenizer.vocabulary.before, "after": tokenizer.vocabulary.after},
            "chat_template": {"before": tokenizer.chat_template.before, "after": tokenizer.chat_template.after},
        },
        "files": [_file_document(each) for each in comparison.files],
        "tensors": {
            state: {
                "tensors": total.tensors[state],
                "bytes": total.bytes[state],
                "kinds": [kind for kind, each in kinds.items() if each.tensors[state]],
            }
            for state in STATES
        },
    }


def _change(change: Change) -> dict[str, Any]:
    return {"name": change.name, "before": change.before, "after": change.after}


def _dataset(dataset: Dataset | None) -> dict[str, Any] | None:
    return {"files": dataset.files, "info": dataset.info} if dataset else None


def _file_document(file: FileChange) -> dict[str, Any]:
    return {"path": file.path, "state": file.state, "before": file.before, "after": file.after}
