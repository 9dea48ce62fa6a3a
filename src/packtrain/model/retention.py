"""What leaves a cache when room is needed, and what may not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from packtrain.model.digest import Digest

Inode = tuple[int, int]  # device and number: the same for all hard links of one file


@dataclass(frozen=True, slots=True)
class Holds:
    """What keeps something in the cache."""

    in_use: bool = False  # a process holds its lock: an engine, or a pull at work
    lease: float = 0.0  # seconds that are left of the time for which it was promised to stay
    pinned: bool = False  # for good, until somebody unpins it

    def __bool__(self) -> bool:
        return self.in_use or self.lease > 0 or self.pinned

    def __str__(self) -> str:
        words = {
            "in use": self.in_use,
            "pinned": self.pinned,
            f"leased for {_duration(self.lease)}": self.lease > 0,
        }
        return ", ".join(word for word, holds in words.items() if holds)


@dataclass(frozen=True, slots=True)
class Occupant:
    """What takes space in a cache: a snapshot, or an unfinished download.

    ``inodes`` are its files with their sizes in bytes, ``unwritten`` how many of these have no place on the disk yet.
    ``trust``: ``durable`` (known to be on the disk), ``verified`` (under this boot), ``doubtful`` (to be read back
    before it is used), or ``unfinished``.
    """

    digest: Digest
    inodes: Mapping[Inode, int]
    unwritten: int
    used: datetime
    holds: Holds
    trust: Literal["durable", "verified", "doubtful", "unfinished"]

    @property
    def size(self) -> int:
        """Bytes, those that it shares with others included."""
        return sum(self.inodes.values())


@dataclass(frozen=True, slots=True)
class Room:
    """How much there may be, in bytes: ``quota`` for all occupants together; on the disk, ``free`` bytes are free and
    not promised to a download, and ``floor`` must stay free."""

    quota: int
    floor: int
    free: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What to evict, in this order; then the bytes that are still lacking below the quota, and on the disk."""

    evict: tuple[Occupant, ...] = ()
    over_quota: int = 0
    over_disk: int = 0

    @property
    def fits(self) -> bool:
        return self.over_quota <= 0 and self.over_disk <= 0


def plan(occupants: Sequence[Occupant], needed: int, room: Room) -> Plan:
    """What has to go so that ``needed`` more bytes fit: what is not held, least recently used first, and nothing
    whose going would not help. If it cannot fit, nothing goes, and the plan says what is lacking."""
    going: list[Occupant] = []
    candidates = by_last_use(o for o in occupants if not o.holds)
    lacking = _lacking(occupants, (), needed, room)
    for candidate in candidates:
        if lacking.fits:
            break
        going.append(candidate)
        lacking = _lacking(occupants, going, needed, room)
    if not lacking.fits:
        return lacking
    for candidate in going[::-1]:  # the more recently used is spared first
        without = [occupant for occupant in going if occupant is not candidate]
        if _lacking(occupants, without, needed, room).fits:
            going = without
    return Plan(tuple(going))


def by_last_use(occupants: Iterable[Occupant]) -> list[Occupant]:
    """The least recently used first."""
    return sorted(occupants, key=lambda occupant: (occupant.used, occupant.digest))


def unique_size(occupants: Iterable[Occupant]) -> int:
    """The bytes of several occupants, with what they share counted once."""
    return sum({inode: size for occupant in occupants for inode, size in occupant.inodes.items()}.values())


def own_sizes(occupants: Sequence[Occupant]) -> list[int]:
    """Of each occupant, the bytes that no other one shares: what its going alone would free."""
    links = Counter(inode for occupant in occupants for inode in occupant.inodes)
    return [sum(size for inode, size in o.inodes.items() if links[inode] == 1) for o in occupants]


def _duration(seconds: float) -> str:
    minutes = max(1, round(seconds / 60))
    return f"{minutes} min" if minutes <= 120 else f"{minutes // 60} h"


def _lacking(occupants: Sequence[Occupant], going: Sequence[Occupant], needed: int, room: Room) -> Plan:
    gone = {id(occupant) for occupant in going}
    before = unique_size(occupants)
    after = unique_size(occupant for occupant in occupants if id(occupant) not in gone)
    return Plan(
        over_quota=max(0, after + needed - room.quota),
        over_disk=max(0, room.floor + needed - room.free - (before - after)),
    )
