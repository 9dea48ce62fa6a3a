"""Results for people. What is not known is shown as ``-`` in a table and as ``unknown`` on a card."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from packtrain.cli.terminal import printable
from packtrain.model.amount import size

if TYPE_CHECKING:
    from packtrain.flows.catalog import Entry
    from packtrain.flows.promote import Move
    from packtrain.flows.publish import Published
    from packtrain.flows.verify import Verified
    from packtrain.model.ledger import Event
    from packtrain.model.lineage import Dataset, Lineage, Parent
    from packtrain.model.mirror import Policy
    from packtrain.model.run import TrainingRun
    from packtrain.model.version import ModelVersion

UNKNOWN = "unknown"
NONE = "-"

_ORIGINS = ("hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name")  # keys of dataset_info.json


def number(value: float | None) -> str:
    return NONE if value is None else f"{value:.4g}"


def time(timestamp: str) -> str:
    """A ledger's timestamp (UTC) to the second."""
    return f"{timestamp[:10]} {timestamp[11:19]}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they need to be and never cut: it is read by people and by grep."""
    shown = [tuple(head), *(tuple(printable(cell) for cell in row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in shown)
    return "\n".join(line.rstrip() for line in lines)


def card(rows: Iterable[tuple[str, str]]) -> str:
    """A label and a text a line."""
    shown = [(printable(label), printable(text)) for label, text in rows]
    width = max(len(label) for label, _ in shown)
    return "\n".join(f"{label.ljust(width)}  {text}" for label, text in shown)


# What is there


def models(entries: Sequence[Entry]) -> str:
    """A row a version; nothing if there is none."""
    head = ("NAME", "VERSION", "ALIASES", "KIND", "SIZE", "LOSS", "ACCURACY", "DATASET", "CREATED (UTC)", "BY")
    return table(head, [_row(entry) for entry in entries]) if entries else ""


def _row(entry: Entry) -> tuple[str, ...]:
    version, lineage = entry.version, entry.lineage
    return (
        version.name,
        str(version.number),
        _retired(version) if version.archived else ",".join(f"@{alias}" for alias in entry.aliases) or NONE,
        version.kind,
        size(version.size),
        number(lineage.loss if lineage else None),
        number(lineage.accuracy if lineage else None),
        (",".join(dataset.name for dataset in lineage.datasets) if lineage else "") or NONE,
        time(version.created),
        version.actor,
    )


def _retired(version: ModelVersion) -> str:
    return "collected" if version.collected else "archived"


def show(entry: Entry, url: str) -> str:
    version, lineage = entry.version, entry.lineage
    return card(
        [
            ("version", f"{version} ({_retired(version)})" if version.archived else str(version)),
            ("aliases", ", ".join(f"@{alias}" for alias in entry.aliases) or "none"),
            ("kind", f"{version.kind}, with custom code" if version.code else version.kind),
            ("size", f"{size(version.size)} ({version.size} bytes)"),
            ("digest", str(version.digest)),
            ("payload", str(version.payload)),
            ("created", f"{time(version.created)} UTC by {version.actor}"),
            ("store", url),
            *([("base", f"{version.base} ({version.base.digest})")] if version.base else []),
            *lineage_rows(lineage),
        ]
    )


def lineage_rows(lineage: Lineage | None) -> list[tuple[str, str]]:
    """How a version was made, for a card. Every fact has its row, known or not."""
    if lineage is None or not lineage.known:
        return [("lineage", UNKNOWN)]
    training = " ".join(filter(None, (lineage.stage, lineage.finetuning_type)))
    epoch = "epoch" if lineage.epochs == 1 else "epochs"
    epochs = f" in {number(lineage.epochs)} {epoch}" if lineage.epochs is not None else ""
    metrics = {key: number(value) for key, value in sorted(lineage.metrics.items()) if not of_the_machine(key)}
    dirty = {True: " and uncommitted changes", False: "", None: " (whether it was changed: unknown)"}
    merged = lineage.adapters or lineage.export_config or lineage.export_tools
    return [
        ("base model", _parent(lineage.base) if lineage.base else UNKNOWN),
        *(("adapter", _parent(adapter)) for adapter in lineage.adapters),
        *_datasets("dataset", lineage.datasets),
        *(_datasets("evaluated on", lineage.eval_datasets) if lineage.eval_datasets else ()),
        ("template", lineage.template or UNKNOWN),
        ("training", training or UNKNOWN),
        *([("lora", pairs(lineage.lora))] if lineage.lora else []),
        ("parameters", pairs(lineage.hyperparameters) or UNKNOWN),
        ("steps", f"{lineage.steps}{epochs}" if lineage.steps is not None else UNKNOWN),
        ("metrics", pairs(metrics) or UNKNOWN),
        *(_curves(lineage) or [("loss curve", UNKNOWN)]),
        ("trained with", _tools(lineage.tools, "llamafactory", "transformers", "torch", "peft")),
        *([("exported with", _tools(lineage.export_tools, "llamafactory", "transformers"))] if merged else []),
        ("git revision", f"{lineage.git_revision}{dirty[lineage.git_dirty]}" if lineage.git_revision else UNKNOWN),
        *(("contradiction", contradiction) for contradiction in lineage.contradictions),
    ]


def of_the_machine(metric: str) -> bool:
    """Whether a metric says how fast the machine was, and nothing of the model."""
    return metric.endswith(("_runtime", "_per_second"))


def _parent(parent: Parent) -> str:
    identity = parent.digest or (f"not published, payload {parent.payload}" if parent.payload else "digest unknown")
    called = f", trained on as {parent.name}" if parent.version and parent.version != parent.name else ""
    return f"{parent} ({identity}{called})"


def _datasets(label: str, datasets: Sequence[Dataset]) -> Iterator[tuple[str, str]]:
    for dataset in datasets:
        origin = next((f"{key} {dataset.info[key]}" for key in _ORIGINS if key in dataset.info), "")
        files = ", ".join(f"{name} sha256:{digest}" for name, digest in sorted(dataset.files.items()))
        yield label, f"{dataset.name} ({files or f'{origin}, digest unknown'.removeprefix(', ')})"
    if not datasets:
        yield label, UNKNOWN


def _curves(lineage: Lineage) -> list[tuple[str, str]]:
    """A line of blocks for each loss, from its first to its last value."""
    from packtrain.pictures.spark import spark

    return [
        (name, f"{number(curve[0][1])} {spark(curve)} {number(curve[-1][1])} (steps {curve[0][0]} to {curve[-1][0]})")
        for name, curve in sorted(lineage.curves.items(), key=lambda pair: (pair[0] != "loss", pair[0]))
        if curve
    ]


def _tools(tools: Mapping[str, str], *expected: str) -> str:
    return pairs({**dict.fromkeys(expected, UNKNOWN), **tools})


def pairs(values: Mapping[str, Any]) -> str:
    """``name value, name value``, lists joined by a plus."""
    return ", ".join(f"{key} {'+'.join(map(str, v)) if isinstance(v, list) else v}" for key, v in values.items())


# What a command did


def published(published: Published) -> str:
    what = f"{published.kind}, {size(published.size)}, {published.digest}"
    if published.version is None:
        return f"{published.name} would get a new version: {what}; {size(published.uploaded)} to upload"
    if not published.created:
        return "\n".join([f"{published.version} holds these bytes already: {what}", *_moved(published.move)])
    traffic = f"{size(published.uploaded)} uploaded"
    if published.copied:
        traffic += f", {size(published.copied)} copied by the store"
    return "\n".join([f"{published.version}: {what}; {traffic}", *_moved(published.move)])


def _moved(moved: Move | None) -> list[str]:
    return [move(moved)] if moved else []


def move(move: Move) -> str:
    if not move.moved:
        return f"{move.name}@{move.alias}: {move.after} already"
    return f"{move.name}@{move.alias}: {move.before or 'not set'} -> {move.after}"


def archived(version: ModelVersion) -> str:
    return f"{version} is archived"


def verified(results: Sequence[Verified]) -> str:
    return "\n".join(
        f"{each.name}: chain of {count(each.events, 'event')} unbroken, {count(each.versions, 'version')} whole"
        + (f", all {size(each.bytes_read)} read and right" if each.bytes_read else "")
        for each in results
    )


def count(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


# What happened


def history(events: Sequence[Event]) -> str:
    head = ("#", "TIME (UTC)", "WHO", "WHAT", "WHY")
    return table(head, [_happened(event) for event in events])


def _happened(event: Event) -> tuple[str, ...]:
    reason = str(event.details.get("reason", ""))
    return (str(event.sequence), time(event.time), event.actor, _in_words(event.action, event.details), reason)


def _aliases(what: str, details: Mapping[str, Any]) -> str:
    return f"{what} {', '.join(f'@{alias}' for alias in details[what]) or 'none'}"


def run_rows(run: TrainingRun | None) -> list[tuple[str, str]]:
    """A training run of MLflow's, for a card; nothing if there is none."""
    if run is None:
        return []
    metrics = {key: number(value) for key, value in sorted(run.metrics.items()) if not of_the_machine(key)}
    curves = [f"{key} in {count(len(curve), 'point')}" for key, curve in run.curves.items()]
    rows = [
        ("run", f"{run.url} ({run.status.lower()})"),
        ("run's metrics", pairs(metrics)),
        ("run's curves", ", ".join(curves)),
        ("run's datasets", ", ".join(run.datasets)),
        ("run's artifacts", ", ".join(run.artifacts)),
    ]
    return [(label, text) for label, text in rows if text]


def policy(policy: Policy) -> str:
    """What moving the aliases of a model demands."""
    told = [("protected", policy.protected), ("gated", policy.gated)]
    return card((what, ", ".join(f"@{alias}" for alias in sorted(aliases)) or "none") for what, aliases in told)


def _in_words(action: str, d: Mapping[str, Any]) -> str:
    match action:
        case "publish.begin":
            return f"began to publish {d['digest'][:12]}"
        case "attached":
            if told := {"gate": "passed its gate", "gate.failed": "failed its gate"}.get(d["kind"]):
                return f"{told}: {d['digest'][:12]}"
            return f"attached {d['kind']} {d['sha256'][:12]} to {d['digest'][:12]}"
        case "version.created":
            return f"created version {d['version']} ({d['kind']}, {size(d['size'])}, {d['digest'][:12]})"
        case "alias.promoted":
            return f"promoted @{d['alias']}: {d['from'] or 'not set'} -> {d['to']}"
        case "alias.rolled_back":
            return f"rolled back @{d['alias']}: {d['from']} -> {d['to']}"
        case "version.archived":
            return f"archived version {d['version']}"
        case "policy":
            return f"set the policy: {_aliases('protected', d)}, {_aliases('gated', d)}"
        case "mirror.bound":
            return "registered in MLflow"
        case "version.intent":
            return f"announced a version ({d['kind']}, {size(d['size'])}, {d['digest'][:12]})"
        case "alias.helped":
            return f"is about to show @{d['alias']} in MLflow: {d['to'] or 'not set'}"
        case "alias.settled":
            return f"MLflow shows @{d['alias']}: {d['to'] or 'not set'}"
        case "alias.adopted":
            return f"found @{d['alias']} moved: {d['from'] or 'not set'} -> {d['to']}"
        case "alias.restored":
            found = d["found"] or "removed"
            return f"found @{d['alias']} moved in MLflow to {found}, restored: {d['to'] or 'not set'}"
        case "node.went_back":
            return f"went back on {d['node']} from version {d['version']} to {d['to']} (@{d['alias']})"
        case "node.held":
            held = f"holds {d['node']} at version {d['version']}" if d["version"] else f"no longer holds {d['node']}"
            return f"{d['by']} {held} (@{d['alias']})"
        case "referenced":
            return f"became the base of {d['name']} {d['digest'][:12]}"
        case "condemned":
            counted = [(d["digests"], "manifest"), (d["records"], "record")]
            named = " and ".join(count(len(each), what) for each, what in counted if each)
            return f"gave up {named} as garbage"
        case _:
            return action
