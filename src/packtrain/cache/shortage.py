"""What is said when a version does not fit: how much is lacking, what holds the space, and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from packtrain.errors import LocalDiskError
from packtrain.model.amount import size
from packtrain.model.retention import Occupant, Plan, Room


def shortage(
    what: str, needed: int, room: Room, plan: Plan, held: Sequence[tuple[str, Occupant, str]], root: Path
) -> LocalDiskError:
    """``plan`` is one that does not fit. ``held`` is what cannot be evicted: its name, and who holds it in words."""
    if plan.over_quota:
        lacking = f"the quota of {size(room.quota)} is {size(plan.over_quota)} too small"
        instead = "set a larger cache_quota"
    else:
        lacking = (
            f"the disk has {size(max(0, room.free))} free, of which {size(room.floor)} are to stay free, "
            f"and {size(plan.over_disk)} are lacking"
        )
        instead = "free space outside of the cache, set a smaller cache_free, or a cache_dir on a larger disk"
    stays = [f"{name} ({size(each.size)}) stays: {why}. {remedy(name, each)}." for name, each, why in held]
    return LocalDiskError(
        f"{what} does not fit into the cache {root}: it needs {size(needed)} and, after all that may be evicted, "
        f"{lacking}; nothing was downloaded or evicted",
        hint="\n".join([*stays, f"{'Or ' if stays else ''}{instead}.".capitalize()]),
    )


def remedy(name: str, occupant: Occupant) -> str:
    """What lets something go that is held. Of several names it may have, a command takes any."""
    if occupant.holds.in_use:
        return "Stop what uses it"
    return f"packtrain cache {'rm' if occupant.trust == 'unfinished' else 'unpin'} {name.partition(', ')[0]} lets it go"
