"""What preflight has to say about a directory."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that stops a directory from being served (``refuse``) or that its owner should know (``warn``).

    ``code`` is stable and documented (docs/preflight.md); ``where`` is a path inside the directory or empty;
    ``what`` says what is wrong, ``fix`` what to do.
    """

    level: str  # "refuse" or "warn"
    code: str
    where: str
    what: str
    fix: str

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        return f"{self.code}: {place}{self.what}"
