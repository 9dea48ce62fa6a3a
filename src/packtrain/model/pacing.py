"""How many requests at once, and how long: found out from what the wire gives, so that nobody has to set it."""

from __future__ import annotations

from dataclasses import dataclass

START = 8  # requests at once, to begin with
GAIN = 1.08  # a wider stream must give this much more to be worth it
LOSS = 0.97  # a narrower one must give this much still
HOLD = 8  # windows until the next try
SHORTEST = 4 << 20  # bytes of a request, unless less is missing: one full chunk
LONGEST = 128 << 20
MEMORY = 64 << 20  # bytes in flight, at most
REQUESTS = 32  # for all there is to fetch, about, unless that makes them too long


@dataclass(frozen=True, slots=True)
class Limits:
    """Of a download: ``memory`` in bytes; ``bandwidth`` in bytes a second, None for what the wire gives."""

    memory: int = MEMORY
    bandwidth: int | None = None


@dataclass(frozen=True, slots=True)
class _Trial:
    """A width that must prove itself against the one before it, which gave ``rate``."""

    before: int
    rate: float


class Pace:
    """Widens as long as that makes the stream faster, then holds, and now and then tries a wider or a narrower one.

    At first it doubles with each try, so that a wire of any length is full within some round trips; when a server
    asks for fewer requests it halves at once. The first window at a new width does not count: requests begin in it and
    bring little yet, which would make the next, wider one look better than it is. ``total``: bytes that there are to
    fetch.
    """

    def __init__(self, *, most: int, total: int = 0) -> None:
        self._shortest = max(SHORTEST, min(total // REQUESTS, LONGEST // 2))
        self._most = max(1, most)
        self.width = min(START, self._most)
        self._trial: _Trial | None = _Trial(self.width, 0.0)
        self._fresh = True  # this width has not had its first window
        self._growth = 2.0
        self._rate = 0.0  # of the windows since the last trial, smoothed
        self._hold = 0
        self._narrow_next = False

    def observe(self, rate: float) -> None:
        """What a window at the present width gave, in bytes a second."""
        if self._fresh:
            self._fresh = False
            return
        trial = self._trial
        if trial is None:
            self._rate = 0.7 * self._rate + 0.3 * rate if self._rate else rate
            self._hold -= 1
            if self._hold <= 0:
                self._try_another()
        elif self.width >= trial.before and rate > trial.rate * GAIN and self.width < self._most:
            self._try(max(self.width + 1, int(self.width * self._growth)), rate)
        else:
            if rate < trial.rate * (GAIN if self.width > trial.before else LOSS):
                self._change(trial.before)
            self._settle(HOLD)

    def slow_down(self) -> None:
        """The server asks for fewer requests."""
        self._change(max(1, self.width // 2))
        self._settle(4 * HOLD)

    def request_length(self, missing: int) -> int:
        """Bytes of the next request, when ``missing`` are still to be asked for.

        Long, because each costs a round trip, and a server reads whole blocks at both of its ends (SeaweedFS took 1.4
        times the CPU for 16 MiB each); but so short that all requests of the present width are needed at the end.
        """
        return max(self._shortest, min(missing // (2 * self.width), LONGEST))

    def _try(self, width: int, rate: float) -> None:
        self._trial = _Trial(self.width, rate)
        self._change(max(1, min(self._most, width)))

    def _change(self, width: int) -> None:
        self.width, self._fresh = width, True

    def _try_another(self) -> None:
        width = int(self.width / 1.5) if self._narrow_next else max(self.width + 1, int(self.width * 1.5))
        self._narrow_next = not self._narrow_next
        self._try(width, self._rate)

    def _settle(self, hold: int) -> None:
        self._trial, self._hold, self._growth, self._rate = None, hold, 1.5, 0.0
