"""This program, its settings and its variables."""

from __future__ import annotations

import difflib
import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import fields

from packtrain._version import __version__
from packtrain.flows.doctor.check import Check, ok, warning
from packtrain.settings import DEFAULT, Settings, unknown_variables


def version() -> Check:
    system = os.uname()
    return ok("packtrain", f"{__version__}, Python {platform.python_version()}, {system.sysname} {system.release}")


def variables(environ: Mapping[str, str]) -> Iterator[Check]:
    known = [f"PACKTRAIN_{field.name.upper()}" for field in fields(Settings)]
    for name in unknown_variables(environ):
        meant = difflib.get_close_matches(name, known, n=1)
        yield warning(
            "settings",
            f"{name} is set, but there is no such setting",
            f"Is {meant[0]} meant? Otherwise unset it." if meant else "Unset it, so that nobody takes it for one.",
        )


def settings(origins: Mapping[str, str]) -> Check:
    """Where they come from: a file, variables, flags."""
    by_origin: dict[str, list[str]] = {}
    for name, origin in origins.items():
        by_origin.setdefault(origin, []).append(name)
    rest = by_origin.pop(DEFAULT, [])
    told = [f"{', '.join(names)} from {origin}" for origin, names in by_origin.items()]
    if rest:
        told.append("the others are defaults" if told else "all are defaults")
    return ok("settings", "; ".join(told))
