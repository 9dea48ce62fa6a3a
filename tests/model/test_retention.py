"""What goes when room is needed: never what is held, least recently used first, and no more than helps."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packtrain.model.digest import Digest
from packtrain.model.retention import Holds, Inode, Occupant, Room, own_sizes, plan, unique_size

START = datetime(2026, 1, 1, tzinfo=UTC)
PLENTY = 10**9


def occupant(number: int, *, used: int = 0, holds: Holds | None = None, **inodes: int) -> Occupant:
    """``inodes`` are sizes by name: the same name is the same file."""
    files: dict[Inode, int] = {(1, hash(name)): size for name, size in inodes.items()}
    return Occupant(Digest.of(b"%d" % number), files, 0, START + timedelta(seconds=used), holds or Holds(), "verified")


def room(quota: int = PLENTY, *, floor: int = 0, free: int = PLENTY) -> Room:
    return Room(quota, floor, free)


def test_what_fits_needs_nothing_to_go() -> None:
    assert plan([occupant(1, a=10)], 5, room(15)).evict == ()


def test_the_least_recently_used_go_first_and_no_more_than_needed() -> None:
    new, old, older = occupant(1, used=3, a=10), occupant(2, used=2, b=10), occupant(3, used=1, c=10)
    assert plan([new, old, older], 10, room(30)).evict == (older,)
    assert plan([new, old, older], 20, room(30)).evict == (older, old)


def test_what_would_not_help_stays() -> None:
    tiny, big = occupant(1, used=1, a=1), occupant(2, used=2, b=20)
    assert plan([tiny, big], 20, room(21)).evict == (big,)
    linked = occupant(3, used=0, c=20)
    holder = occupant(4, used=9, holds=Holds(pinned=True), c=20)
    assert plan([linked, holder, big], 10, room(40)).evict == (big,)


@pytest.mark.parametrize("holds", [Holds(in_use=True), Holds(lease=0.1), Holds(pinned=True)])
def test_what_is_held_stays_and_it_is_said_how_much_is_lacking(holds: Holds) -> None:
    refused = plan([occupant(1, holds=holds, a=10), occupant(2, b=10)], 20, room(25))
    assert not refused.fits and refused.evict == () and refused.over_quota == 5


def test_the_disk_has_a_floor() -> None:
    old = occupant(1, a=10)
    assert plan([old], 10, room(floor=5, free=15)).evict == ()
    assert plan([old], 10, room(floor=5, free=14)).evict == (old,)
    assert plan([old], 10, room(floor=5, free=5)).evict == (old,)
    assert plan([old], 10, room(floor=5, free=4)).over_disk == 1


def test_shared_files_count_once() -> None:
    occupants = [occupant(1, a=10, s=5), occupant(2, b=20, s=5), occupant(3, c=1)]
    assert unique_size(occupants) == 36
    assert own_sizes(occupants) == [10, 20, 1]


def test_in_words() -> None:
    assert str(Holds()) == ""
    assert str(Holds(in_use=True, lease=110.0, pinned=True)) == "in use, pinned, leased for 2 min"
    assert str(Holds(lease=3 * 24 * 3600.0)) == "leased for 72 h"


names = st.sampled_from("abcdefgh")
occupants = st.lists(
    st.tuples(
        st.dictionaries(names, st.just(0), min_size=1, max_size=3), st.integers(0, 3), st.booleans(), st.booleans()
    ),
    max_size=6,
).map(
    lambda entries: [
        occupant(n, used=used, holds=Holds(in_use=use, pinned=pin), **{name: 1 << "abcdefgh".index(name) for name in f})
        for n, (f, used, use, pin) in enumerate(entries)
    ]
)
amounts = st.integers(0, 300)


@given(occupants, amounts, amounts, amounts, amounts)
def test_laws(there: list[Occupant], needed: int, quota: int, floor: int, free: int) -> None:
    limits = Room(quota, floor, free)

    def fits(going: list[Occupant]) -> bool:
        left = unique_size(o for o in there if o not in going)
        return left + needed <= quota and free + unique_size(there) - left - needed >= floor

    found = plan(there, needed, limits)
    evictable = [o for o in there if not o.holds]
    assert found.fits == fits(evictable)
    if not found.fits:
        assert found.evict == ()
        return
    going = list(found.evict)
    assert fits(going)
    assert all(o in evictable for o in going)
    assert going == sorted(going, key=lambda o: (o.used, o.digest))
    for spared in going:
        assert not fits([o for o in going if o is not spared]), "it went without need"
