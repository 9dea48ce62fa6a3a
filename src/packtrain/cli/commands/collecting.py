"""Garbage collection: `gc`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click

from packtrain.cli.helptext import CLEAN, command
from packtrain.cli.session import Session, takes
from packtrain.cli.text import NONE, table
from packtrain.model.amount import size

if TYPE_CHECKING:
    from packtrain.flows.garbage import Collected

_DIGEST = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{52}\b")
_MOMENT = re.compile(r"([0-9]{4}-[0-9]{2}-[0-9]{2})T([0-9]{2}:[0-9]{2}):[0-9]{2}\.[0-9]{3}Z")


@command(
    panel=CLEAN,
    epilog="packtrain gc --dry-run",
)
@click.option("--dry-run", is_flag=True, help="Say what would go and why; change nothing.")
@click.option(
    "--grace",
    metavar="DURATION",
    default="7d",
    help="How long an archived version or an interrupted publish stays; else 7d.",
)
@takes("actor")
def gc(session: Session, dry_run: bool, grace: str) -> None:
    """Free what nothing names any more.

    Archived versions and interrupted publishes after their grace period, leftovers of crashes, and in this node's
    cache what was collected. Never what a version that is not archived needs, as the base of an adapter or itself.
    """
    session.print(session.client.gc(grace=grace, dry_run=dry_run), text=_text, document=_document)


def _text(collected: Collected) -> str:
    """A table for each answer: what goes, what stays for now, what is not ours; and the sum."""
    garbage = [(each.where, each.what, size(each.size), each.why) for each in collected.garbage]
    kept = [(each.where, each.what, size(each.size), each.why, each.until or NONE) for each in collected.kept]
    strangers = [(each.where, each.why) for each in collected.strangers]
    tables = (
        (("WOULD GO" if collected.dry_run else "GONE", "WHAT", "SIZE", "WHY"), garbage),
        (("KEPT", "WHAT", "SIZE", "WHY", "UNTIL (UTC)"), kept),
        (("NOT TOUCHED", "WHY"), strangers),
    )
    told = [table(head, [[_shortened(cell) for cell in row] for row in rows]) for head, rows in tables if rows]
    return "\n\n".join([*told, f"{size(collected.size)} {'would be ' if collected.dry_run else ''}freed"])


def _shortened(text: str) -> str:
    """Digests and moments as people look at them; JSON has them whole."""
    return _MOMENT.sub(r"\1 \2", _DIGEST.sub(r"\1…", text))


def _document(collected: Collected) -> dict[str, Any]:
    return {
        "dry_run": collected.dry_run,
        "size": collected.size,
        "garbage": [{k: getattr(each, k) for k in ("what", "where", "size", "why")} for each in collected.garbage],
        "kept": [{k: getattr(each, k) for k in ("what", "where", "size", "why", "until")} for each in collected.kept],
        "not_touched": [{k: getattr(each, k) for k in ("where", "why")} for each in collected.strangers],
    }
