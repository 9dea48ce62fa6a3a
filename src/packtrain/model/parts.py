"""How an object is made of parts: runs of chunks, each sent or copied from where the store holds the same bytes.

A store takes no small parts but the last, so what is sent between two copies takes chunks of the second along until it
is large enough. Parts begin and end where chunks do: their checksums are known from those of chunks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from packtrain.model.manifest import FileEntry
from packtrain.model.sourcing import Place, Run

SENT = 16 << 20  # bytes of a part that is sent: what is sent again after an interruption, for each thread
COPIED = 128 << 20  # bytes of a part that is copied


@dataclass(frozen=True, slots=True)
class Part:
    """``number`` counts from 1. The bytes of ``run`` lie at ``place`` too, one after the other; None: they are sent."""

    number: int
    run: Run
    place: Place | None


def plan_parts(
    file: FileEntry,
    places: Mapping[int, Place],
    *,
    smallest: int,
    most: int,
    sent: int = SENT,
    copied: int = COPIED,
) -> list[Part]:
    """The parts of a file, in order: as many bytes copied as the limits let be.

    ``places``: where the chunks lie in other objects, by their indexes in the file. No part but the last is smaller
    than ``smallest`` bytes; there are at most ``most``. Parts are about ``sent`` or ``copied`` bytes, or as much larger
    as that takes. The same plan for the same arguments.
    """
    while True:
        stretches = _fitted(_stretches(file, places), smallest)
        runs = [
            (run, None if stretch.place is None else replace(stretch.place, start=stretch.place.start + offset))
            for stretch in stretches
            for run, offset in _split(stretch.run, smallest, sent if stretch.place is None else copied)
        ]
        if len(runs) <= most:
            return [Part(number, run, place) for number, (run, place) in enumerate(runs, start=1)]
        smallest, sent, copied = 2 * smallest, 2 * sent, 2 * copied


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Neighbouring chunks that lie one after the other at ``place``, or nowhere. ``length`` in bytes."""

    run: Run
    place: Place | None
    length: int

    def with_next(self, other: _Stretch) -> _Stretch:
        """Both, sent."""
        return _Stretch(replace(self.run, end=other.run.end), None, self.length + other.length)


def _stretches(file: FileEntry, places: Mapping[int, Place]) -> list[_Stretch]:
    found: list[_Stretch] = []
    start = 0
    for index, length in enumerate(file.chunks.lengths):
        place = places.get(index)
        last = found[-1] if found else None
        following = last and last.place and replace(last.place, start=last.place.start + last.length)
        if last is not None and (place == following if place else last.place is None):
            found[-1] = _Stretch(replace(last.run, end=index + 1), last.place, last.length + length)
        else:
            found.append(_Stretch(Run(file, start, index, index, index + 1), place, length))
        start += length
    return found


def _fitted(stretches: Sequence[_Stretch], smallest: int) -> list[_Stretch]:
    """The same chunks in stretches of which none but the last is too small."""
    pending = list(reversed(stretches))
    done: list[_Stretch] = []
    while pending:
        stretch = pending.pop()
        if pending and stretch.length < smallest:
            stretch = replace(stretch, place=None)
        if stretch.place is None and done and done[-1].place is None:
            stretch = done.pop().with_next(stretch)
        if stretch.place is not None or not pending or stretch.length >= smallest:
            done.append(stretch)
            continue
        taken, rest = _take(pending.pop(), smallest - stretch.length)
        if rest is not None:
            pending.append(rest)
        pending.append(taken)  # it is sent, and comes to what was too small
        done.append(stretch)
    return done


def _take(stretch: _Stretch, count: int) -> tuple[_Stretch, _Stretch | None]:
    """The first chunks of a stretch that make up ``count`` bytes at least, to be sent; and the rest, if any."""
    taken, length = 0, 0
    while length < count and stretch.run.begin + taken < stretch.run.end:
        length += stretch.run.file.chunks.lengths[stretch.run.begin + taken]
        taken += 1
    if stretch.run.begin + taken == stretch.run.end:
        return replace(stretch, place=None), None
    place = stretch.place and replace(stretch.place, start=stretch.place.start + length)
    first = _Stretch(replace(stretch.run, end=stretch.run.begin + taken), None, length)
    return first, _Stretch(stretch.run.after(taken), place, stretch.length - length)


def _split(run: Run, smallest: int, about: int) -> list[tuple[Run, int]]:
    """A run in pieces of ``about`` bytes, none smaller than ``smallest`` unless the whole run is; and how many bytes
    after its start each begins."""
    ends: list[int] = []
    length = 0
    for index in range(run.begin, run.end):
        length += run.file.chunks.lengths[index]
        if length >= max(about, smallest):
            ends.append(index + 1)
            length = 0
    if 0 < length < smallest and ends:
        ends.pop()
    if not ends or ends[-1] != run.end:
        ends.append(run.end)
    pieces: list[tuple[Run, int]] = []
    rest = run
    for end in ends:
        pieces.append((replace(rest, end=end), rest.start - run.start))
        if end < run.end:
            rest = rest.after(end - rest.begin)
    return pieces
