"""vLLM and LLaMA-Factory: whether their commands are there. A machine may need none, one or both."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from packtrain.flows.doctor.check import Check, ok, warning

_ENGINES = (
    # What it is for, its setting, the name under which pip knows it
    ("vllm", "PACKTRAIN_VLLM", "vllm", "serves models"),
    ("llamafactory", "PACKTRAIN_LLAMAFACTORY", "llamafactory", "trains or exports models"),
)


def examine(vllm: str, llamafactory: str) -> Iterator[Check]:
    """``vllm`` and ``llamafactory`` are the commands of the settings."""
    for (about, variable, package, does), command in zip(_ENGINES, (vllm, llamafactory), strict=True):
        found = shutil.which(Path(command).expanduser())
        if found is None:
            yield warning(
                about,
                f"there is no command {command}",
                f"Only a machine that {does} needs it. If this one does, install it into an environment of its own, "
                f"and set {variable} to the command's path.",
            )
        else:
            yield ok(about, f"{found}, {installed_version(Path(found), package) or 'of unknown version'}")


def installed_version(command: Path, package: str) -> str | None:
    """The version of the package that a command belongs to. Read beside it and not asked of it, because that imports
    torch and takes a quarter of a minute."""
    environment = command.resolve().parent.parent
    for folder in ("site-packages", "dist-packages"):
        for path in environment.glob(f"lib/python3*/{folder}/{package}-*.dist-info"):
            if found := re.fullmatch(rf"{package}-(\d[^-]*)\.dist-info", path.name):  # not that of vllm-flash-attn
                return found[1]
    return None
