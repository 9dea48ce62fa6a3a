"""Those on this machine who wait for news of a model are woken by a file that somebody touches.

Polling stays the truth; a call that never comes costs an interval and no more.
"""

from __future__ import annotations

from pathlib import Path

from packtrain.errors import disk_error
from packtrain.model.reference import check_name
from packtrain.ports import Clock

_STEP = 0.1  # seconds between two looks at the file


def _file(cache_dir: Path, name: str) -> Path:
    return cache_dir / "wake" / check_name(name)


def wake(cache_dir: Path, name: str) -> None:
    """Wakes all `Waiting` for the model. Raises LocalDiskError."""
    path = _file(cache_dir, name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")  # a new time, even where it was just written
    except OSError as error:
        raise disk_error(error, f"could not touch {path}") from error


class Waiting:
    """Waits for news of one model. What comes between two waits ends the second at once."""

    def __init__(self, cache_dir: Path, name: str, clock: Clock) -> None:
        self._path = _file(cache_dir, name)
        self._clock = clock
        self._seen = self._touched()

    def wait(self, seconds: float) -> bool:
        """At most so long; whether there was a call."""
        until = self._clock.monotonic() + seconds
        while (touched := self._touched()) == self._seen:
            left = until - self._clock.monotonic()
            if left <= 0:
                return False
            self._clock.sleep(min(_STEP, left))
        self._seen = touched
        return True

    def _touched(self) -> int:
        try:
            return self._path.stat().st_mtime_ns
        except OSError:
            return 0
