"""The cache of this node: what is in it, and what stays there."""

from __future__ import annotations

from dataclasses import dataclass

from packtrain.cache import Cache
from packtrain.errors import IntegrityError, NotFound, UsageError
from packtrain.flows.naming import known_as, namer
from packtrain.flows.pull import check_snapshot, resolve
from packtrain.model.digest import Digest, is_hex256
from packtrain.model.reference import Reference
from packtrain.model.retention import Occupant, Room, own_sizes, unique_size
from packtrain.ports import Registry, Reporter

_SCHEME = "sha256:"
_SHORTEST = 12  # hexadecimal digits of a digest: what `packtrain cache ls` shows


@dataclass(frozen=True, slots=True)
class Cached:
    """A snapshot or an unfinished download. ``own`` bytes are those that its going alone would free; ``users`` are
    the processes that use it, as far as they can be seen."""

    occupant: Occupant
    versions: tuple[str, ...]
    own: int
    users: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Listing:
    """The cache at ``path``: the most recently used first; ``size`` bytes in all, what is shared counted once."""

    path: str
    cached: tuple[Cached, ...]
    size: int
    room: Room


@dataclass(frozen=True, slots=True)
class Removed:
    """What is gone from the cache, and the bytes that this freed."""

    versions: tuple[str, ...]
    freed: int


@dataclass(frozen=True, slots=True)
class Checked:
    """A snapshot of which every byte is right."""

    name: str
    digest: Digest
    size: int


def contents(cache: Cache, registry: Registry) -> Listing:
    """What is in the cache, under the names by which this node knows it."""
    found, versions = cache.contents(), known_as(registry)
    cached = tuple(
        Cached(occupant, tuple(versions.get(occupant.digest, ())), own, tuple(cache.users(occupant)))
        for occupant, own in zip(found.occupants, own_sizes(found.occupants), strict=True)
    )
    return Listing(str(cache.root), cached, unique_size(found.occupants), found.room)


def remove(cache: Cache, registry: Registry, which: str, *, reporter: Reporter) -> Removed:
    """Frees the space of a snapshot or an unfinished download. Raises NotFound, and Refused if somebody holds it."""
    digest, name_of = find(cache, registry, which, reporter), namer(registry)
    return Removed(tuple(known_as(registry).get(digest, [name_of(digest)])), cache.remove(digest, name_of=name_of))


def verify(cache: Cache, registry: Registry, which: str | None, *, reporter: Reporter) -> list[Checked]:
    """Reads every byte of one snapshot or of all. What is damaged is taken out of the way, unless it is in use.

    Raises IntegrityError naming what was damaged, after all of them were read.
    """
    name_of = namer(registry)
    right, damaged, remedies = list[Checked](), list[str](), list[str]()
    for digest in [_find_here(cache, registry, which, reporter)] if which else list(cache.snapshots()):
        name = name_of(digest)
        reporter.note(f"reading every byte of {name}")
        with cache.pin(digest) as pin, cache.fetching(digest, on_wait=lambda: None):
            if not cache.holds(digest):
                continue  # it was evicted meanwhile
            try:
                check_snapshot(cache, digest, reporter)
                right.append(Checked(name, digest, cache.manifest(digest).size))
            except IntegrityError as error:
                damaged.append(f"{name}: {error}")
                gone = cache.discard(digest, pin)
                first = "It is out of the way" if gone else "It is in use: stop the engines that serve it"
                remedies.append(f"{first}; packtrain pull {name.partition(', ')[0]} fetches it again.")
    if damaged:
        raise IntegrityError("; ".join(damaged), hint="\n".join(remedies))
    return right


def pin(cache: Cache, registry: Registry, which: str, *, reporter: Reporter) -> str:
    """Keeps a snapshot for good. Returns what it is called. Raises NotFound if it is not here."""
    digest = _find_here(cache, registry, which, reporter)
    name = namer(registry)(digest)
    with cache.pin(digest):
        if not cache.holds(digest):
            raise _not_here(name)
        cache.keep(digest)
    return name


def unpin(cache: Cache, registry: Registry, which: str, *, reporter: Reporter) -> tuple[str, bool]:
    """Ends a pin for good, and a lease. Returns what it is called, and whether there was any."""
    digest = find(cache, registry, which, reporter)
    return namer(registry)(digest), cache.let_go(digest)


def find(cache: Cache, registry: Registry, which: str, reporter: Reporter) -> Digest:
    """What a reference names, or a digest as `packtrain cache ls` shows it. Raises UsageError, NotFound."""
    if not which.startswith(_SCHEME):
        return resolve(registry, Reference.parse(which), reporter).digest
    digits = which.removeprefix(_SCHEME)
    if is_hex256(digits):
        return Digest(digits)
    if len(digits) < _SHORTEST:
        raise UsageError(f"{which} is too short", hint=f"Give at least {_SHORTEST} digits of the digest.")
    found = [occupant.digest for occupant in cache.contents().occupants if occupant.digest.hex.startswith(digits)]
    if len(found) != 1:
        raise _not_here(which)
    return found[0]


def _find_here(cache: Cache, registry: Registry, which: str, reporter: Reporter) -> Digest:
    digest = find(cache, registry, which, reporter)
    if not cache.holds(digest):
        raise _not_here(namer(registry)(digest))
    return digest


def _not_here(name: str) -> NotFound:
    return NotFound(
        f"{name} is not in the cache",
        hint="packtrain cache ls lists what is; packtrain pull REFERENCE --pin fetches a version and pins it.",
    )
