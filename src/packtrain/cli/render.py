"""Results as people read them, and as programs do (docs/commands.md describes the JSON)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from packtrain.errors import PacktrainError, PreflightRefused, exit_code

if TYPE_CHECKING:
    from packtrain.flows.catalog import Entry
    from packtrain.flows.promote import Move
    from packtrain.flows.publish import Published
    from packtrain.flows.pull import Snapshot
    from packtrain.flows.verify import Verified
    from packtrain.model.ledger import Event
    from packtrain.model.lineage import Lineage
    from packtrain.model.version import ModelVersion

UNKNOWN = "unknown"
NONE = "-"


def as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2)


def bytes_as_text(count: int) -> str:
    """Decimal units, as disks and networks are sold: 14.2 GB."""
    size, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(size) < 1000 or unit == "TB":
            break
        size /= 1000
    return f"{count} B" if unit == "B" else f"{size:.1f} {unit}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they need to be, never cut: it is read by people and by grep."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in [head, *rows]]
    return "\n".join(line.rstrip() for line in lines)


# Errors


def error_as_text(error: PacktrainError) -> str:
    lines = [f"error: {error.message}"]
    if isinstance(error, PreflightRefused):
        for finding in error.findings:
            lines += [f"  {finding.level}: {finding}", f"    -> {finding.fix}"]
    elif error.hint:
        lines.append(f"  -> {error.hint}")
    return "\n".join(lines)


def error_as_json(error: PacktrainError) -> str:
    value: dict[str, Any] = {
        "type": type(error).__name__,
        "message": error.message,
        "hint": error.hint,
        "exit_code": exit_code(error),
    }
    if isinstance(error, PreflightRefused):
        value["findings"] = [_finding(finding) for finding in error.findings]
    return as_json({"error": value})


def _finding(finding: Any) -> dict[str, str]:
    return {key: getattr(finding, key) for key in ("level", "code", "where", "what", "fix")}


# Versions


def version_json(version: ModelVersion) -> dict[str, Any]:
    base = version.base
    return {
        "name": version.name,
        "version": version.number,
        "digest": str(version.digest),
        "payload": str(version.payload),
        "kind": version.kind,
        "size": version.size,
        "created": version.created,
        "actor": version.actor,
        "code": version.code,
        "archived": version.archived,
        "base": {"name": base.name, "version": base.version, "digest": str(base.digest)} if base else None,
    }


def entry_json(entry: Entry) -> dict[str, Any]:
    lineage = json.loads(entry.lineage.encode()) if entry.lineage else None
    return {**version_json(entry.version), "aliases": list(entry.aliases), "lineage": lineage}


def models_text(entries: Sequence[Entry]) -> str:
    if not entries:
        return "no models yet; publish one: packtrain publish DIR --name NAME"
    head = ("NAME", "VERSION", "ALIASES", "KIND", "SIZE", "LOSS", "ACCURACY", "DATASET", "CREATED", "BY")
    return table(head, [_row(entry) for entry in entries])


def _row(entry: Entry) -> tuple[str, ...]:
    version, lineage = entry.version, entry.lineage
    aliases = ",".join(f"@{alias}" for alias in entry.aliases) or NONE
    return (
        version.name,
        str(version.number),
        "archived" if version.archived else aliases,
        version.kind,
        bytes_as_text(version.size),
        _number(lineage.loss if lineage else None),
        _number(lineage.accuracy if lineage else None),
        ",".join(dataset.name for dataset in lineage.datasets) or NONE if lineage else NONE,
        version.created[:16].replace("T", " "),
        version.actor,
    )


def show_text(entry: Entry, url: str) -> str:
    version = entry.version
    base = f"{version.base} ({version.base.digest})" if version.base else ""
    rows = [
        ("version", str(version) + (" (archived)" if version.archived else "")),
        ("aliases", ", ".join(f"@{alias}" for alias in entry.aliases) or "none"),
        ("kind", version.kind + (", with custom code" if version.code else "")),
        ("size", f"{bytes_as_text(version.size)} ({version.size} bytes)"),
        ("digest", str(version.digest)),
        ("payload", str(version.payload)),
        ("created", f"{version.created} by {version.actor}"),
        *([("base", base)] if base else []),
        ("store", url),
        *(_lineage_rows(entry.lineage) if entry.lineage else [("lineage", UNKNOWN)]),
    ]
    width = max(len(label) for label, _ in rows)
    return "\n".join(f"{label.ljust(width)}  {text}" for label, text in rows)


def _lineage_rows(lineage: Lineage) -> list[tuple[str, str]]:
    lora = ", ".join(f"{key} {_plain(value)}" for key, value in lineage.lora.items())
    return [
        ("base model", lineage.base_model or UNKNOWN),
        ("datasets", ", ".join(dataset.name for dataset in lineage.datasets) or UNKNOWN),
        ("template", lineage.template or UNKNOWN),
        ("training", " ".join(filter(None, (lineage.stage, lineage.finetuning_type))) or UNKNOWN),
        *([("lora", lora)] if lora else []),
        ("metrics", ", ".join(f"{key} {_number(value)}" for key, value in sorted(lineage.metrics.items())) or UNKNOWN),
        ("steps", f"{lineage.steps} in {_number(lineage.epochs)} epochs" if lineage.steps else UNKNOWN),
        ("tools", ", ".join(f"{name} {version}" for name, version in sorted(lineage.tools.items())) or UNKNOWN),
        ("git revision", lineage.git_revision or UNKNOWN),
    ]


# What commands did


def published_json(published: Published) -> dict[str, Any]:
    return {
        "name": published.name,
        "version": published.version.number if published.version else None,
        "created": published.created,
        "digest": str(published.digest),
        "kind": published.kind,
        "size": published.size,
        "uploaded": published.uploaded,
        "left": list(published.left),
        "warnings": [_finding(finding) for finding in published.findings],
        "alias": move_json(published.move) if published.move else None,
    }


def published_text(published: Published) -> str:
    size = bytes_as_text(published.size)
    if published.version is None:
        uploaded = bytes_as_text(published.uploaded)
        return f"would publish {published.name}: {published.kind}, {size}, {published.digest}; to upload: {uploaded}"
    if not published.created:
        line = f"{published.version} already holds these bytes ({published.digest}); --force makes a new version"
    else:
        line = f"{published.version}: {published.kind}, {size}, {published.digest}"
    return "\n".join([line, *([move_text(published.move)] if published.move else [])])


def move_json(move: Move) -> dict[str, Any]:
    return {"name": move.name, "alias": move.alias, "from": move.before, "to": move.after, "moved": move.moved}


def move_text(move: Move) -> str:
    if not move.moved:
        return f"{move.name}@{move.alias}: at version {move.after} already"
    return f"{move.name}@{move.alias}: {move.before or 'not set'} -> {move.after}"


def snapshot_json(snapshot: Snapshot) -> dict[str, Any]:
    return {"path": str(snapshot.path), "fetched": snapshot.fetched, **version_json(snapshot.version)}


def verified_json(verified: Verified) -> dict[str, Any]:
    return {key: getattr(verified, key) for key in ("name", "events", "versions", "bytes_read")}


def verified_text(verified: Sequence[Verified]) -> str:
    lines = []
    for each in verified:
        read = f", {bytes_as_text(each.bytes_read)} read and right" if each.bytes_read else ""
        lines.append(f"{each.name}: {each.events} events in an unbroken chain, {each.versions} versions whole{read}")
    return "\n".join(lines) or "no models yet"


# History


def event_json(event: Event) -> dict[str, Any]:
    return {
        "sequence": event.sequence,
        "time": event.time,
        "actor": event.actor,
        "action": event.action,
        "details": dict(event.details),
        "previous": event.previous,
    }


def history_text(events: Sequence[Event]) -> str:
    rows = [(str(event.sequence), event.time[:19] + "Z", event.actor, *_in_words(event)) for event in events]
    return table(("#", "TIME", "WHO", "WHAT", "WHY"), rows)


def _in_words(event: Event) -> tuple[str, str]:
    """What happened, and why."""
    d = event.details
    reason = str(d.get("reason") or "")
    match event.action:
        case "publish.begin":
            return f"began to publish {d['digest'][:12]}", reason
        case "attached":
            return f"attached {d['kind']} {d['sha256'][:12]} to {d['digest'][:12]}", reason
        case "version.created":
            return (
                f"created version {d['version']} ({d['kind']}, {bytes_as_text(d['size'])}, {d['digest'][:12]})",
                reason,
            )
        case "alias.promoted":
            return f"promoted @{d['alias']}: {d['from'] or 'not set'} -> {d['to']}", reason
        case "alias.rolled_back":
            return f"rolled @{d['alias']} back: {d['from']} -> {d['to']}", reason
        case "version.archived":
            return f"archived version {d['version']}", reason
        case "referenced":
            return f"became the base of {d['name']} {d['digest'][:12]}", reason
        case action:
            return action, reason


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:.4g}"


def _plain(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
