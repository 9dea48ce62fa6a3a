"""Every error that a user can meet, and the exit code of each.

    PacktrainError
    ├── UsageError            what was asked makes no sense (a malformed reference, a bad setting)
    ├── Refused               understood, and not done: it would break a law or a policy
    │   └── PreflightRefused  a directory that cannot be served; carries the findings
    ├── NotFound              a model, version, alias, object or file that does not exist
    ├── Conflict              somebody else was first: a lost compare-and-swap, a taken name
    │   ├── AlreadyExists     a key that must be new is there
    │   └── Condemned         garbage collection has given it up for good
    ├── IntegrityError        bytes or history that are not what their digest says
    ├── Unavailable           the store or the registry cannot be reached, or keeps failing
    ├── LocalDiskError        this machine's disk: full, read-only, failing
    └── EngineError           LLaMA-Factory or vLLM is missing or failed

Each says what happened, to what, and (``advice``) what to do next. Exit codes are mapped here and nowhere else.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from packtrain.model.finding import Finding


class PacktrainError(Exception):
    """The root. ``str()`` is one line for people; ``hint`` is what to do next, or empty where the usual helps."""

    usual = "packtrain doctor says whether this machine is set up right."

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    @property
    def advice(self) -> str:
        """What to do next."""
        return self.hint or self.usual


class UsageError(PacktrainError):
    """What was asked makes no sense as written."""

    usual = "Correct it. The command with --help says what it takes, docs/settings.md which settings there are."


class Refused(PacktrainError):
    """Understood, and not done, because it would break a law or a policy."""

    usual = "Remove what stands against it, then run the command again."


class PreflightRefused(Refused):
    """A directory that must not be published or served. ``findings`` are all of them, refusals and warnings, where the
    whole of it was looked at."""

    def __init__(self, message: str, *, findings: Sequence[Finding] = (), hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.findings = tuple(findings)


class NotFound(PacktrainError):
    """A model, version, alias, object or file that does not exist."""

    usual = "Check how it is written: packtrain models lists what is registered; paths begin in the working directory."


class Conflict(PacktrainError):
    """Somebody else was first. Nothing was changed."""

    usual = "See who it was with packtrain history, then decide again."


class AlreadyExists(Conflict):
    """A key that had to be new is there already."""


class Condemned(Conflict):
    """What was to be named was given up by garbage collection: it never comes back under the same digest."""


class IntegrityError(PacktrainError):
    """Bytes or history that are not what their digest says. Nothing unverified was kept."""

    usual = "Do not serve it. packtrain verify --bytes shows how far the damage goes, and what mends it."


class Unavailable(PacktrainError):
    """A store or registry that cannot be reached or keeps failing. Trying again may help; ``busy`` says that it asks
    for fewer requests, and ``retry_after`` in how many seconds, if it said so."""

    usual = "Run the same command again: it continues where it was. If that stays, packtrain doctor says what is wrong."

    def __init__(self, message: str, *, hint: str = "", busy: bool = False, retry_after: float | None = None) -> None:
        super().__init__(message, hint=hint)
        self.busy = busy
        self.retry_after = retry_after


class LocalDiskError(PacktrainError):
    """This machine's disk refused: full, read-only or failing."""

    usual = "Look at that path and the disk below it, or choose another folder; then run the command again."


class EngineError(PacktrainError):
    """LLaMA-Factory or vLLM is missing, did not start, or failed."""

    usual = "Its own output says why. packtrain doctor shows which one is used."


def disk_error(error: OSError, what: str) -> LocalDiskError:
    """What a failed call on this machine's disk means to a user. ``what`` says what could not be done, to what."""
    return LocalDiskError(f"{what}: {error.strerror or error}", hint=disk_hint(error))


def disk_hint(error: OSError) -> str:
    """What to do next."""
    return _DISK_HINTS.get(error.errno or 0, "Look at the disk (dmesg may say more), or choose another folder.")


_NO_PERMISSION = "Permission denied: choose a folder that you can write, or ask for its permissions."
_GONE = "Its disk or share is gone: check that it is mounted and that its server answers, then run the command again."
_IN_THE_WAY = "Something else is in the way there: move it, or choose another folder."
_TOO_MANY = "Too few files may be open at once: raise the limit (ulimit -n 4096) and run the command again."
_LACKING = "This file system lacks something that is needed, such as locks: choose a folder on a local disk."

_DISK_HINTS = {
    errno.ENOSPC: "The disk is full: free some space and run the command again; it continues where it was.",
    errno.EDQUOT: "Your disk quota is used up: free some space and run the command again; it continues.",
    errno.EROFS: "The file system is read-only: choose another folder.",
    errno.EACCES: _NO_PERMISSION,
    errno.EPERM: _NO_PERMISSION,
    errno.EIO: "The disk reports an input/output error: look at the kernel's log (dmesg) before using it again.",
    errno.EMFILE: _TOO_MANY,
    errno.ENFILE: _TOO_MANY,
    errno.ENAMETOOLONG: "The path is too long for its file system: choose a shorter one.",
    errno.EFBIG: "Its file system cannot hold so large a file (FAT ends at 4 GiB): choose a folder on another one.",
    errno.ENOENT: "Part of that path is not there, or went away meanwhile: check how it is written.",
    errno.ENOTDIR: "Part of that path is a file and no folder: check how it is written.",
    errno.EISDIR: _IN_THE_WAY,
    errno.EEXIST: _IN_THE_WAY,
    errno.ENOTEMPTY: _IN_THE_WAY,
    errno.ELOOP: _IN_THE_WAY,
    errno.ESTALE: _GONE,
    errno.ENODEV: _GONE,
    errno.ENXIO: _GONE,
    errno.ENOTCONN: _GONE,
    errno.ETIMEDOUT: _GONE,
    errno.EHOSTDOWN: _GONE,
    errno.ENOLCK: _LACKING,
    errno.ENOSYS: _LACKING,
    errno.EOPNOTSUPP: _LACKING,
}


INTERNAL_ERROR = 1
INTERRUPTED = 130

EXIT_CODES: dict[type[PacktrainError], int] = {
    UsageError: 2,
    Refused: 3,
    NotFound: 4,
    Conflict: 5,
    IntegrityError: 6,
    Unavailable: 7,
    LocalDiskError: 8,
    EngineError: 9,
}


def exit_code(error: BaseException) -> int:
    """The documented exit code of an error (docs/exit-codes.md)."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    for kind in type(error).__mro__:
        if kind in EXIT_CODES:
            return EXIT_CODES[kind]
    return INTERNAL_ERROR
