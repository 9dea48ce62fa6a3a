"""What serves: `status` and `what`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from packtrain.cli import documents, text
from packtrain.cli.helptext import SERVE, command
from packtrain.cli.session import Session, takes
from packtrain.errors import IntegrityError

if TYPE_CHECKING:
    from packtrain.flows.what import What
    from packtrain.model.run import TrainingRun

api_key = click.option(
    "--api-key", metavar="KEY", envvar="VLLM_API_KEY", default="", help="The endpoint's API key; else VLLM_API_KEY."
)


@command(
    panel=SERVE,
    epilog="packtrain status http://node-7:8000",
)
@click.argument(
    "url", metavar="[URL]", required=False, help="Where it listens; without it, everything that serves on this node."
)
@api_key
@takes()
def status(session: Session, url: str | None, api_key: str) -> None:
    """Show what follows an alias, and how it fares.

    Which version is named and which serves, the engines, what is bad here and why, since when the registry is away.
    """
    found = session.client.status(url, key=api_key)
    session.print(found, text=_statuses, document=list)
    if not found:
        session.note("nothing follows an alias on this node; start it: packtrain serve NAME@alias -- --port 8000")


@command(
    panel=SERVE,
    epilog="packtrain what http://node-7:8000",
)
@click.argument("url", metavar="URL", help="An endpoint of packtrain serve or run.")
@api_key
@takes()
def what(session: Session, url: str, api_key: str) -> int:
    """Say which version an endpoint serves, and check it.

    Its digest, the promotion behind it, and the training that made it, each held against the registry. Ends with exit
    code 6 if something does not hold.
    """
    found = session.client.what(url, key=api_key)
    run = session.client.run_of(str(found.version)) if found.version else None
    session.print(found, text=partial(_what, run), document=partial(_what_document, run))
    wrong = [check.what for check in found.checks if not check.holds]
    if not wrong:
        return 0
    return session.wrong(
        IntegrityError(
            f"{found.url} says that it serves {found.claim.name}/{found.claim.number}, but it does not hold that: "
            f"{'; '.join(wrong)}",
            hint=f"See who moved what: packtrain history {found.claim.name}",
        )
    )


def _statuses(found: Sequence[Mapping[str, Any]]) -> str:
    return "\n\n".join(map(_status, found))


def _status(s: Mapping[str, Any]) -> str:
    if "problem" in s:
        return text.card([(s["reference"], s["problem"]), ("process", str(s["pid"]))])
    serving, named = s["serving"], s["named"]
    registry, last = s["registry"], s["last_switch"]
    rows = [
        (s["reference"], f"version {serving['version']} serves" if serving else "nothing serves"),
        *([("digest", serving["digest"])] if serving else []),
        *([("named", f"version {named['version']}")] if named and named != serving else []),
        *([("held", _held(s["hold"]))] if s["hold"] else []),
        *([("gate", _gate(s["gate"]))] if s["gate"] else []),
        ("url", s["url"]),
        ("strategy", f"{s['strategy']['name']}: {s['strategy']['because']}"),
        *(("engine", f"version {e['version']}, {e['stage']} (process group {e['pid']})") for e in s["engines"]),
        *([("fetching", _fetching(s["fetching"]))] if s["fetching"] else []),
        *(("bad here", f"version {bad['version']}: {bad['because']}") for bad in s["bad"]),
        *(("failing", f"{each['digest'][:19]}, {each['times']} times: {each['because']}") for each in s["failing"]),
        *([("last switch", _switch(last))] if last else []),
        ("without service", f"{s['without_service_seconds']:.1f} s in all"),
        ("requests", f"{sum(s['requests']['in_flight'].values())} in flight, {s['requests']['waiting']} waiting"),
    ]
    if not registry["reachable"]:
        rows.append(("registry", f"away since {text.time(registry['unreachable_since'])} UTC: {registry['because']}"))
    if s["stopping"]:
        rows.append(("stopping", "yes"))
    return text.card(rows)


def _held(hold: Mapping[str, Any]) -> str:
    reason = f": {hold['reason']}" if hold["reason"] else ""
    return f"at version {hold['version']} by {hold['by']} since {text.time(hold['since'])} UTC{reason}"


def _gate(gate: Mapping[str, Any]) -> str:
    golden = gate["golden"]
    said = (
        f"{golden['prompts']} golden prompts, distance {golden['distance']:.4f} nats"
        if golden
        else "it answers; it has no golden outputs"
    )
    return f"passed in {gate['seconds']:.1f} s: {said}"


def _fetching(fetching: Mapping[str, Any]) -> str:
    done, total = fetching["done"], fetching["total"]
    return f"version {fetching['version']}" + (f", {done / total:.0%}" if total else "")


def _switch(last: Mapping[str, Any]) -> str:
    before = f"from {last['from']} " if last["from"] else ""
    return (
        f"{before}to {last['to']} at {text.time(last['at'])} UTC, {last['seconds']:.1f} s after it was named, "
        f"{last['without_service']:.1f} s without service"
    )


def _what(run: TrainingRun | None, found: What) -> str:
    claim, lineage, promotion = found.claim, found.lineage, found.promotion
    rows = [
        (found.url, f"{claim.name}/{claim.number}, by {claim.by}"),
        ("digest", claim.digest),
    ]
    if promotion is not None:
        d = promotion.details
        reason = f": {d['reason']}" if d.get("reason") else ""
        rows.append(
            (
                "promotion",
                f"@{d['alias']} from {d['from'] or 'not set'} by {promotion.actor} at {text.time(promotion.time)} UTC "
                f"(event {promotion.sequence}){reason}",
            )
        )
    if found.version is not None:
        rows += [*text.lineage_rows(lineage), *text.run_rows(run)]
    rows += [("holds" if check.holds else "DOES NOT HOLD", check.what) for check in found.checks]
    return text.card(rows)


def _what_document(run: TrainingRun | None, found: What) -> dict[str, Any]:
    return {
        "url": found.url,
        "name": found.claim.name,
        "version": found.claim.number,
        "digest": found.claim.digest,
        "by": found.claim.by,
        "registered": documents.version(found.version) if found.version else None,
        "promotion": documents.history([found.promotion])[0] if found.promotion else None,
        "lineage": documents.lineage(found.lineage),
        "run": documents.run(run),
        "checks": [{"what": check.what, "holds": check.holds} for check in found.checks],
    }
