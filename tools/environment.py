"""Makes .venv, the project's own environment: the pinned requirements, and the project itself in place.

Needs Python 3.11 or newer with the venv module, and nothing else.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
OLDEST = (3, 11)


def main() -> int:
    if sys.version_info < OLDEST:
        found = ".".join(map(str, sys.version_info[:3]))
        print(f"Packtrain needs Python 3.11 or newer; {sys.executable} is {found}.", file=sys.stderr)
        print("  -> make PYTHON=python3.12 ...   names another one", file=sys.stderr)
        return 1
    print(f"setting up {VENV.name} (about a minute) ...", flush=True)
    (VENV / ".ready").unlink(missing_ok=True)
    try:
        venv.create(VENV, with_pip=True, symlinks=True, clear=_is_broken())
    except (subprocess.CalledProcessError, ImportError) as error:
        print(f"could not make {VENV}: {error}", file=sys.stderr)
        print("  -> on Debian and Ubuntu: apt install python3-venv", file=sys.stderr)
        return 1
    # twice quiet: errors alone, no warnings of places in PIP_FIND_LINKS that are not there
    pip = [str(VENV / "bin" / "python"), "-m", "pip", "install", "--quiet", "--quiet", "--disable-pip-version-check"]
    steps = [
        [*pip, "--require-hashes", "--requirement", str(ROOT / "requirements" / "dev.txt")],
        [*pip, "--no-deps", "--no-build-isolation", "--editable", str(ROOT)],
    ]
    for step in steps:
        if code := subprocess.run(step, check=False).returncode:
            print(f"failed: {' '.join(step)}", file=sys.stderr)
            print("  -> can this machine reach its Python package index?", file=sys.stderr)
            return code
    (VENV / ".ready").touch()
    return 0


def _is_broken() -> bool:
    """Whether an environment is there whose Python has gone or moved (a checkout that was copied)."""
    python = VENV / "bin" / "python"
    if not VENV.exists():
        return False
    return shutil.which(python) is None or subprocess.run([python, "-c", ""], check=False).returncode != 0


if __name__ == "__main__":
    sys.exit(main())
