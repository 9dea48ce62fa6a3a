"""What is noted about snapshots: small files, named by digest and kind.

A note is written in place, and only its first line counts: a kill at any moment leaves the old one, the new one, or
an empty one that says nothing. Moments are counted from the boot, by the clock that all processes share: somebody who
sets the time of day changes none of them.
"""

from __future__ import annotations

import os
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from packtrain.model.digest import Digest

_DURABLE = "durable"
_TRUST, _LEASE, _PIN, _USED = "", ".lease", ".pin", ".used"  # what follows the digest in a note's name
_NEVER = datetime.fromtimestamp(0, UTC)


class Marks:
    """The notes in one folder. Its methods raise OSError."""

    def __init__(self, folder: Path, *, boot: str) -> None:
        self._folder = folder
        self._boot = boot

    # Trust: under which boot the snapshot was verified, and when; or that it is on the disk.

    def is_durable(self, digest: Digest) -> bool:
        return self._read(digest, _TRUST) == _DURABLE

    def verified_since(self, digest: Digest) -> float | None:
        """When, under this boot, in seconds; or None."""
        return self._moment(digest, _TRUST)

    def set_verified(self, digest: Digest, moment: float) -> None:
        self._write(digest, _TRUST, f"{self._boot} {moment:.0f}")

    def set_durable(self, digest: Digest) -> None:
        self._write(digest, _TRUST, _DURABLE)

    def distrust(self, digest: Digest) -> None:
        self._path(digest, _TRUST).unlink(missing_ok=True)

    # Leases: until when it was promised to stay. A restart ends them, as it ended whoever was promised.

    def lease_until(self, digest: Digest) -> float | None:
        return self._moment(digest, _LEASE)

    def lease(self, digest: Digest, until: float) -> None:
        self._write(digest, _LEASE, f"{self._boot} {until:.0f}")

    def end_lease(self, digest: Digest) -> None:
        self._path(digest, _LEASE).unlink(missing_ok=True)

    # Pins for good

    def is_pinned(self, digest: Digest) -> bool:
        return self._path(digest, _PIN).exists()

    def pin(self, digest: Digest) -> None:
        self._write(digest, _PIN, "")

    def unpin(self, digest: Digest) -> None:
        self._path(digest, _PIN).unlink(missing_ok=True)

    # Last use

    def used(self, digest: Digest) -> datetime:
        return _modified(self._path(digest, _USED))

    def set_used(self, digest: Digest, now: datetime) -> None:
        """Now, or after every other use that is noted: the order is right even if the clock was set back."""
        latest = max(map(_modified, self._folder.glob(f"*{_USED}")), default=_NEVER)
        self._write(digest, _USED, "")
        seconds = max(now, latest + timedelta(milliseconds=1)).timestamp()
        os.utime(self._path(digest, _USED), (seconds, seconds))

    def forget(self, digest: Digest) -> None:
        """All but a pin for good: that is about the version, whether or not it is here."""
        for kind in (_TRUST, _LEASE, _USED):
            self._path(digest, kind).unlink(missing_ok=True)

    def _path(self, digest: Digest, kind: str) -> Path:
        return self._folder / f"{digest.hex}{kind}"

    def _read(self, digest: Digest, kind: str) -> str:
        try:
            return self._path(digest, kind).read_text(encoding="utf-8", errors="replace").partition("\n")[0]
        except OSError:
            return ""

    def _moment(self, digest: Digest, kind: str) -> float | None:
        boot, _, moment = self._read(digest, kind).rpartition(" ")
        with suppress(ValueError):
            return float(moment) if boot == self._boot else None
        return None

    def _write(self, digest: Digest, kind: str, text: str) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._path(digest, kind), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            data = f"{text}\n".encode() if text else b""
            os.pwrite(descriptor, data, 0)
            os.ftruncate(descriptor, len(data))
        finally:
            os.close(descriptor)


def _modified(path: Path) -> datetime:
    try:
        return datetime.fromtimestamp(path.stat().st_mtime, UTC)
    except OSError:
        return _NEVER
