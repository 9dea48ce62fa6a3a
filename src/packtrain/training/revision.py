"""Which commit of its repository a training configuration belongs to."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

_PATIENCE = 10  # seconds; a repository on a slow volume is not worth a longer wait


def git_revision(folder: Path) -> tuple[str | None, bool | None]:
    """The commit that is checked out there, and whether tracked files differ from it. None where git is not here,
    does not know, or does not trust the folder's owner."""
    revision = _git(folder, "rev-parse", "--verify", "HEAD")
    if revision is None or not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", revision):
        return None, None
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no", "--ignore-submodules=dirty")
    return revision, None if changed is None else bool(changed)


def _git(folder: Path, *arguments: str) -> str | None:
    """Its output. Writes nothing, and runs no program that the repository's own configuration names."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    try:
        found = subprocess.run(
            ["git", "--no-optional-locks", "-c", "core.fsmonitor=false", "-C", str(folder), *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PATIENCE,
            check=True,
        )
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return found.stdout.decode("utf-8", "replace").strip()
