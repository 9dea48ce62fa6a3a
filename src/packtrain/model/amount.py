"""Amounts of bytes, as people write and read them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from packtrain.errors import UsageError

_FORM = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([A-Za-z]+|%)")
_UNITS: dict[str, int] = {"b": 1} | {
    f"{letter}{kind}": int(base**power)
    for kind, base in (("b", 1000), ("ib", 1024))
    for power, letter in enumerate("kmgtp", start=1)
}


@dataclass(frozen=True, slots=True)
class Amount:
    """Bytes (``500GB``, ``1.5 TiB``) or a share of a disk (``80%``). ``str()`` gives it as it was written."""

    text: str

    def __post_init__(self) -> None:
        self.of(0)

    def of(self, disk: int) -> int:
        """In bytes, on a disk of ``disk`` bytes."""
        form = _FORM.fullmatch(self.text)
        unit = form[2].lower() if form else ""
        if form and unit in ("%", *_UNITS):
            whole, _, decimals = form[1].partition(".")
            count = int(whole + decimals)
            parts: int = 10 ** len(decimals)
            if unit in _UNITS:
                return count * _UNITS[unit] // parts
            if count <= 100 * parts:
                return count * disk // (100 * parts)
        raise UsageError(
            f"{self.text!r} is not an amount of bytes",
            hint="Write a number and its unit, such as 500GB, 1.5TB or 200GiB, or a share of the disk, such as 80%.",
        )

    def __str__(self) -> str:
        return self.text


def size(count: int) -> str:
    """Bytes in decimal units, as disks and networks are sold: 14.2 GB."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if abs(value) < 999.95:
            return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"
