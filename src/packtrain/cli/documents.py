"""Results for programs: the values of the documents that --json prints (docs/commands.md describes them)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from packtrain.flows.catalog import Entry
    from packtrain.flows.promote import Move
    from packtrain.flows.publish import Published
    from packtrain.flows.pull import Snapshot
    from packtrain.flows.verify import Verified
    from packtrain.model.finding import Finding
    from packtrain.model.ledger import Event
    from packtrain.model.lineage import Lineage
    from packtrain.model.run import TrainingRun
    from packtrain.model.version import ModelVersion


def version(version: ModelVersion) -> dict[str, Any]:
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
        "collected": version.collected,
        "base": {"name": base.name, "version": base.version, "digest": str(base.digest)} if base else None,
    }


def entry(entry: Entry) -> dict[str, Any]:
    return {**version(entry.version), "aliases": list(entry.aliases), "lineage": lineage(entry.lineage)}


def lineage(lineage: Lineage | None) -> dict[str, Any] | None:
    """The record as it is stored (docs/formats.md)."""
    import json

    found: dict[str, Any] | None = json.loads(lineage.encode()) if lineage else None
    return found


def models(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    return [entry(each) for each in entries]


def published(published: Published) -> dict[str, Any]:
    return {
        "name": published.name,
        "version": published.version.number if published.version else None,
        "created": published.created,
        "digest": str(published.digest),
        "kind": published.kind,
        "size": published.size,
        "uploaded": published.uploaded,
        "copied": published.copied,
        "left": list(published.left),
        "warnings": [finding(each) for each in published.findings],
        "alias": move(published.move) if published.move else None,
    }


def finding(finding: Finding) -> dict[str, str]:
    return {key: getattr(finding, key) for key in ("level", "code", "where", "what", "fix")}


def move(move: Move) -> dict[str, Any]:
    return {"name": move.name, "alias": move.alias, "from": move.before, "to": move.after, "moved": move.moved}


def snapshot(snapshot: Snapshot) -> dict[str, Any]:
    return {
        "path": str(snapshot.path),
        "fetched": snapshot.fetched,
        "linked": snapshot.linked,
        "copied": snapshot.copied,
        "in_place": snapshot.in_place,
        "verified": snapshot.verified,
        **version(snapshot.version),
    }


def url(url: str) -> dict[str, str]:
    return {"url": url}


def verified(results: Sequence[Verified]) -> list[dict[str, Any]]:
    return [{key: getattr(each, key) for key in ("name", "events", "versions", "bytes_read")} for each in results]


def history(events: Sequence[Event]) -> list[dict[str, Any]]:
    return [
        {
            "name": event.name,
            "sequence": event.sequence,
            "time": event.time,
            "actor": event.actor,
            "action": event.action,
            "details": dict(event.details),
            "previous": event.previous,
        }
        for event in events
    ]


def run(run: TrainingRun | None) -> dict[str, Any] | None:
    """A training run of MLflow's; its curves as [step, value] pairs."""
    if run is None:
        return None
    return {
        "id": run.id,
        "url": run.url,
        "status": run.status,
        "metrics": dict(run.metrics),
        "curves": {key: [list(point) for point in curve] for key, curve in run.curves.items()},
        "datasets": list(run.datasets),
        "artifacts": list(run.artifacts),
    }
