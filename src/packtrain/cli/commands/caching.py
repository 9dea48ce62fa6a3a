"""This node's cache: `cache ls`, `rm`, `verify`, `pin` and `unpin`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from packtrain.cli import completing
from packtrain.cli.helptext import SERVE, Group
from packtrain.cli.session import CACHE, Session, takes
from packtrain.cli.text import NONE, table, time
from packtrain.model.amount import size

if TYPE_CHECKING:
    from packtrain.flows.caching import Cached, Checked, Listing, Removed

COMMANDS = "Commands"

which = click.argument(
    "which",
    metavar="SNAPSHOT",
    shell_complete=completing.references,
    help="A reference, or a digest as `packtrain cache ls` shows it.",
)
any_snapshot = click.argument(
    "which",
    metavar="[SNAPSHOT]",
    required=False,
    shell_complete=completing.references,
    help="A reference or a digest; else all.",
)


@click.group(cls=Group, panel=SERVE, epilog="packtrain cache ls")
@takes(*CACHE)
def cache(_session: Session) -> None:
    """See and free what this node keeps.

    A pull evicts what was not used for longest. What an engine uses, what was pulled in the last half hour, and what
    is pinned stays.
    """


@cache.command(
    "ls",
    panel=COMMANDS,
    epilog="packtrain cache ls",
)
@takes(*CACHE)
def ls(session: Session) -> None:
    """List snapshots, their sizes and who holds them.

    The most recently used first. A size is what going would free: files that several snapshots share are left out.
    """
    listing = session.client.cached()
    session.print(listing, text=_listed, document=_listing)
    session.note(_total(listing))


@cache.command(
    "rm",
    panel=COMMANDS,
    epilog="packtrain cache rm llama-finetuned/1",
)
@which
@takes(*CACHE)
def rm(session: Session, which: str) -> None:
    """Remove a snapshot or an unfinished download.

    Also one that is pinned. Refused while an engine uses it or it is leased, with who it is (exit code 3).
    """
    session.print(session.client.uncache(which), text=_removed_text, document=_removed)


@cache.command(
    "verify",
    panel=COMMANDS,
    epilog="packtrain cache verify llama-finetuned/1",
)
@any_snapshot
@takes(*CACHE)
def verify(session: Session, which: str | None) -> None:
    """Read every byte and take away what is damaged.

    Of one snapshot, or of all. Damaged ones are named (exit code 6); a pull fetches them again.
    """
    checked = session.client.verify_cached(which)
    session.print(checked, text=_checked_text, document=_checked)
    if not checked:
        session.note("the cache holds no snapshots, so there is nothing to verify")


@cache.command(
    "pin",
    panel=COMMANDS,
    epilog="packtrain cache pin llama-finetuned@production",
)
@which
@takes(*CACHE)
def pin(session: Session, which: str) -> None:
    """Keep a snapshot until it is unpinned.

    The pin is on the version that the reference names now; it does not follow an alias.
    """
    name = session.client.pin(which)
    session.print(name, text=lambda name: f"{name} is pinned", document=lambda name: {"name": name, "pinned": True})


@cache.command(
    "unpin",
    panel=COMMANDS,
    epilog="packtrain cache unpin llama-finetuned/1",
)
@which
@takes(*CACHE)
def unpin(session: Session, which: str) -> None:
    """End a pin, or the half hour that a pull gives.

    It stays where it is until room is needed.
    """
    name, was_held = session.client.unpin(which)
    session.print(
        name,
        text=lambda name: f"{name} is no longer pinned" if was_held else f"{name} was not pinned",
        document=lambda name: {"name": name, "pinned": False},
    )


def _listed(listing: Listing) -> str:
    head = ("DIGEST", "VERSIONS", "SIZE", "LAST USED (UTC)", "STATE")
    return table(head, [_row(each) for each in listing.cached]) if listing.cached else ""


def _row(cached: Cached) -> tuple[str, ...]:
    occupant = cached.occupant
    users = f" by {', '.join(cached.users)}" if cached.users else ""
    return (
        f"sha256:{occupant.digest.short}",
        ", ".join(cached.versions) or NONE,
        size(cached.own),
        time(occupant.used.isoformat()),
        ", ".join(filter(None, (occupant.trust, f"{occupant.holds}{users}"))),
    )


def _total(listing: Listing) -> str:
    room = listing.room
    return (
        f"{size(listing.size)} of {size(room.quota)} used in {listing.path}; "
        f"the disk has {size(max(0, room.free))} free, {size(room.floor)} stay free"
    )


def _listing(listing: Listing) -> dict[str, Any]:
    room = listing.room
    return {
        "path": listing.path,
        "size": listing.size,
        "quota": room.quota,
        "disk_free": room.free,
        "cache_free": room.floor,
        "snapshots": [_cached(each) for each in listing.cached],
    }


def _cached(cached: Cached) -> dict[str, Any]:
    occupant = cached.occupant
    return {
        "digest": str(occupant.digest),
        "versions": list(cached.versions),
        "size": occupant.size,
        "own_size": cached.own,
        "used": occupant.used.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "trust": occupant.trust,
        "in_use": occupant.holds.in_use,
        "users": list(cached.users),
        "leased_seconds": round(occupant.holds.lease),
        "pinned": occupant.holds.pinned,
    }


def _removed_text(removed: Removed) -> str:
    return f"{', '.join(removed.versions)} is removed: {size(removed.freed)} freed"


def _removed(removed: Removed) -> dict[str, Any]:
    return {"versions": list(removed.versions), "freed": removed.freed}


def _checked_text(checked: Sequence[Checked]) -> str:
    return "\n".join(f"{each.name}: all {size(each.size)} read and right" for each in checked)


def _checked(checked: Sequence[Checked]) -> list[dict[str, Any]]:
    return [{"name": each.name, "digest": str(each.digest), "size": each.size} for each in checked]
