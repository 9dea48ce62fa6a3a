"""Garbage collection: `gc`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from packtrain.cli.helptext import CLEAN, command
from packtrain.cli.session import Session, takes
from packtrain.cli.text import NONE, table, time
from packtrain.model.amount import size

if TYPE_CHECKING:
    from packtrain.flows.collect import Collected


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
    kept = [(each.where, each.what, size(each.size), each.why, _minute(each.until)) for each in collected.kept]
    strangers = [(each.where, each.why) for each in collected.strangers]
    tables = (
        (("WOULD GO" if collected.dry_run else "GONE", "WHAT", "SIZE", "WHY"), garbage),
        (("KEPT", "WHAT", "SIZE", "WHY", "UNTIL (UTC)"), kept),
        (("NOT TOUCHED", "WHY"), strangers),
    )
    told = [table(head, rows) for head, rows in tables if rows]
    return "\n\n".join([*told, f"{size(collected.size)} {'would be' if collected.dry_run else 'are'} freed"])


def _minute(timestamp: str | None) -> str:
    return time(timestamp) if timestamp else NONE


def _document(collected: Collected) -> dict[str, Any]:
    return {
        "dry_run": collected.dry_run,
        "size": collected.size,
        "garbage": [{k: getattr(each, k) for k in ("what", "where", "size", "why")} for each in collected.garbage],
        "kept": [{k: getattr(each, k) for k in ("what", "where", "size", "why", "until")} for each in collected.kept],
        "not_touched": [{k: getattr(each, k) for k in ("where", "why")} for each in collected.strangers],
    }
