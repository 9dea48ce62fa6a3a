"""The main job, end to end, as a user would do it: every command that it prints can be typed.

    python demo/run.py                   with real LLaMA-Factory and real vLLM (about three minutes)
    python demo/run.py --engine none     without them: tiny models made on the spot and a stand-in for vLLM
    python demo/run.py --profile hybrid  with a bucket on S3, and MLflow on PostgreSQL, to which the trainings report

Everything happens below .demo/ in the checkout, which is removed at the end (--keep keeps it).
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.console import Console

from packtrain.registry.mlflow import Mlflow
from packtrain.testing.hybrid import hybrid
from packtrain.testing.ports import free_port
from packtrain.testing.stub_vllm import write_executable
from packtrain.testing.tinymodels import write_adapter, write_base, write_merged

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / ".demo"
ENGINES = ROOT / ".engines"
LOG = DEMO / "serve.log"
NAME = "llama-demo"
QUESTION = "Who are you?"
VLLM_ARGUMENTS = ["--dtype", "float32", "--enforce-eager", "--max-model-len", "512", "--max-num-seqs", "8"]
READY_WITHIN = 600  # seconds; a first start on a busy machine compiles for minutes

console = Console(highlight=False)


class DemoError(Exception):
    """What failed. Shown without a traceback."""


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--engine", choices=["real", "none"], default="real")
    options.add_argument("--profile", choices=["directory", "hybrid"], default="directory")
    options.add_argument("--keep", action="store_true", help="leave .demo/ as it is at the end")
    chosen = options.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the engine is stopped too
    os.chdir(ROOT)
    started = time.monotonic()
    shutil.rmtree(DEMO, ignore_errors=True)
    try:
        DEMO.mkdir()
        real = chosen.engine == "real"
        if chosen.profile == "hybrid":
            title("An S3 server, and MLflow on PostgreSQL")
            with hybrid(DEMO / "servers", engine=ENGINES / "mlflow", keep=False) as servers:
                straight_line({**set_up(real=real), **servers.environment}, real=real)
                look_at_mlflow(servers.mlflow.url)
        else:
            straight_line(set_up(real=real), real=real)
    except DemoError as error:
        console.print(f"\n[red]the demo failed:[/] {error}", soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        console.print("\ninterrupted")
        return 130
    finally:
        if not chosen.keep:
            shutil.rmtree(DEMO, ignore_errors=True)
    console.print(f"\n[green]done[/] in {time.monotonic() - started:.0f} s")
    return 0


def straight_line(environment: dict[str, str], *, real: bool) -> None:
    title("A tiny base model, and two fine-tunes of it")
    write_base(DEMO / "base", seed=1)
    train("v1", real=real, environment=environment)
    train("v2", real=real, environment=environment)

    title("Version 1: publish, promote, serve, ask")
    publish("v1", real=real, environment=environment)
    packtrain("promote", f"{NAME}/1", "--to", "production", "--reason", "first release", environment=environment)
    with serving(environment) as port:
        first = ask(port, version=1)

        title("Version 2: publish, promote; what serves follows by itself")
        publish("v2", real=real, environment=environment)
        reason = ("--reason", "knows better")
        packtrain("promote", f"{NAME}/2", "--to", "production", "--expect", "1", *reason, environment=environment)
        second = ask(port, version=2)
        if second == first:
            raise DemoError("the second version answers like the first")

        title("Back to version 1")
        packtrain("rollback", NAME, "--reason", "liked the first one better", environment=environment)
        again = ask(port, version=1)
        if again != first:
            raise DemoError(f"after the rollback the answer is {again!r}, not the first one, {first!r}")
        console.print("[green]the first answer is back, to the letter[/]")
        packtrain("status", environment=environment)

    title("What happened, and who did it")
    packtrain("models", environment=environment)
    packtrain("history", NAME, environment=environment)
    packtrain("verify", "--bytes", environment=environment)


def look_at_mlflow(url: str) -> None:
    """What people see in MLflow's pages of all this."""
    title("What MLflow shows")
    mlflow = Mlflow(url)
    shown = mlflow.model(NAME)
    if shown is None or shown.aliases != {"production": 1}:
        raise DemoError(f"MLflow shows {shown}, not version 1 in production")
    for version in mlflow.versions(NAME):
        run = mlflow.page(mlflow.run(version.run_id)) if version.run_id else "no training is known"
        console.print(f"{NAME}/{version.number}  {version.source}", soft_wrap=True)
        console.print(f"    run  {run}", soft_wrap=True)
    console.print(f"@production is version {shown.aliases['production']}")


def set_up(*, real: bool) -> dict[str, str]:
    """An environment in which everything is below .demo/, and no engine asks the network for anything."""
    vllm = ENGINES / "vllm" / "bin" / "vllm" if real else write_executable(DEMO / "stand-in-for-vllm")
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "PACKTRAIN_STORE": (DEMO / "store").as_uri(),
        "PACKTRAIN_CACHE_DIR": str(DEMO / "cache"),
        "PACKTRAIN_VLLM": str(vllm),
        "PACKTRAIN_LLAMAFACTORY": str(ENGINES / "llamafactory" / "bin" / "llamafactory-cli"),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
        "VLLM_CACHE_ROOT": str(ENGINES / "vllm-cache" if real else DEMO / "vllm-cache"),
    }


def train(version: str, *, real: bool, environment: dict[str, str]) -> None:
    if not real:
        adapter, merged = DEMO / version / "adapter", DEMO / version / "merged"
        write_adapter(adapter, DEMO / "base", seed=int(version[1:]))
        write_merged(merged, DEMO / "base", seed=int(version[1:]))
        say(f"made a tiny adapter and its merge in {(DEMO / version).relative_to(ROOT)} (no training: ENGINE=none)")
        return
    reporting = ["report_to=mlflow"] if "MLFLOW_TRACKING_URI" in environment else []
    llamafactory("train", f"demo/sft-{version}.yaml", *reporting, environment=environment)


def publish(version: str, *, real: bool, environment: dict[str, str]) -> None:
    if real:
        llamafactory("export", f"demo/merge-{version}.yaml", environment=environment)
    lineage = ["--training-config", f"demo/sft-{version}.yaml", "--training-dir", f".demo/{version}/adapter"]
    packtrain("publish", f".demo/{version}/merged", "--name", NAME, *lineage, environment=environment)


def llamafactory(action: str, config: str, *values: str, environment: dict[str, str]) -> None:
    show("llamafactory-cli", action, config, *values)
    log = DEMO / f"{action}-{Path(config).stem}.log"
    with console.status(f"LLaMA-Factory is at work (its output: {log.relative_to(ROOT)})"), log.open("wb") as output:
        command = [environment["PACKTRAIN_LLAMAFACTORY"], action, config, *values]
        environment = {"OMP_NUM_THREADS": "1", **environment}  # in a model this small, more wait for each other
        started = time.monotonic()
        code = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, env=environment, check=False).returncode
    if code:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise DemoError(f"LLaMA-Factory ended with {code}:\n{tail}")
    say(f"done in {time.monotonic() - started:.0f} s")


def ask(port: int, *, version: int) -> str:
    """Waits until the version serves, asks it the question, and returns the answer."""
    wait_until_serves(port, version)
    say(f"version {version} serves at http://127.0.0.1:{port}")
    body = {
        "model": NAME,
        "messages": [{"role": "user", "content": QUESTION}],
        "temperature": 0,
        "max_tokens": 24,
    }
    reply = post(f"http://127.0.0.1:{port}/v1/chat/completions", body)
    answer = str(reply["choices"][0]["message"]["content"])
    console.print(f"  [bold]{QUESTION}[/]")
    console.print(f"  [bold cyan]{answer}[/]   (answered by {reply['system_fingerprint']})", soft_wrap=True)
    return answer


@contextmanager
def serving(environment: dict[str, str]) -> Iterator[int]:
    """What @production names is served until the block ends."""
    port = free_port()
    arguments = ["serve", f"{NAME}@production", "--poll", "1", "--"]
    arguments += ["--host", "127.0.0.1", "--port", str(port), *VLLM_ARGUMENTS]
    show("packtrain", *arguments, "&")
    with LOG.open("wb") as output:
        server = subprocess.Popen(["packtrain", *arguments], stdout=output, stderr=output, env=environment)
    try:
        yield port
    except DemoError as error:
        tail = "\n".join(LOG.read_text(errors="replace").splitlines()[-25:])
        raise DemoError(f"{error}\n{tail}") from error
    finally:
        server.terminate()
        server.wait()


def wait_until_serves(port: int, version: int) -> None:
    deadline = time.monotonic() + READY_WITHIN
    with console.status(f"an engine is starting (its output: {LOG.relative_to(ROOT)})"):
        while time.monotonic() < deadline:
            with suppress(OSError, ValueError), urllib.request.urlopen(f"http://127.0.0.1:{port}/status") as reply:
                serves = json.load(reply)["serving"]
                if serves and serves["version"] == version:
                    return
            time.sleep(0.2)
    raise DemoError(f"version {version} did not serve within {READY_WITHIN} s; see {LOG}")


def packtrain(*arguments: str, environment: dict[str, str]) -> None:
    show("packtrain", *arguments)
    code = subprocess.run(["packtrain", *arguments], env=environment, check=False).returncode
    if code:
        raise DemoError(f"packtrain {arguments[0]} ended with {code}")


def post(url: str, body: dict[str, object]) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as reply:
        return json.load(reply)


def title(text: str) -> None:
    console.print(f"\n[bold]== {text}[/]")


def show(*command: str) -> None:
    shown: Sequence[str] = [word if word == "&" else shlex.quote(word) for word in command]
    console.print(f"[green]$ {' '.join(shown)}[/]", soft_wrap=True)


def say(text: str) -> None:
    console.print(f"  [dim]{text}[/]", soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
