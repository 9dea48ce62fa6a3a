"""Durations, as people write and read them."""

from __future__ import annotations

import re
from datetime import timedelta

from packtrain.errors import UsageError

_FORM = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([smhdw])")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def duration(text: str) -> timedelta:
    """Reads ``7d``, ``12h``, ``30m``, ``90s`` or ``2w``. Raises UsageError."""
    form = _FORM.fullmatch(text.strip().lower())
    try:
        if form:
            return timedelta(seconds=float(form[1]) * _UNITS[form[2]])
    except OverflowError:
        pass
    raise UsageError(f"{text!r} is not a duration", hint="Write a number and its unit: 7d, 12h, 30m, 90s or 2w.")


def about(length: timedelta) -> str:
    """For people: 30 days, 5 hours, 12 minutes."""
    seconds = length.total_seconds()
    for unit, word in ((86400, "day"), (3600, "hour")):
        if round(seconds / unit) > 1:
            return f"{round(seconds / unit)} {word}s"
    return f"{max(1, round(seconds / 60))} min"
