"""``mlflow deployments create -t packtrain --name chat -m models:/llama@production -C port=8000``: vLLM on a version.

Each deployment is a `packtrain serve` of its own on this machine, which outlives the command that created it, and a
file that says which: ``deployments/<name>.json`` in the cache's folder. An update starts it anew on another version.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

from mlflow.deployments import BaseDeploymentClient, PredictionsResponse
from mlflow.exceptions import MlflowException

from packtrain.model.reference import Reference
from packtrain.settings import load

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
STOP_WITHIN = 60.0  # seconds until what is told to stop is killed

target_help_text = """\
Packtrain serves a version with vLLM on this machine.

    mlflow deployments create -t packtrain --name chat -m models:/llama@production -C port=8000
    mlflow deployments update -t packtrain --name chat -m models:/llama/4
    mlflow deployments delete -t packtrain --name chat

-C port=N      where vLLM listens (8000)
-C vllm="..."  more arguments of `vllm serve`
Where models are comes from packtrain.toml and PACKTRAIN_* variables.
"""


def target_help() -> str:
    return target_help_text


def run_local(target: str, name: str, model_uri: str, flavor: str | None = None, config: Any = None) -> None:  # noqa: ARG001
    """All that this target does is local."""
    PacktrainDeploymentClient(target).create_deployment(name, model_uri, config=config)


class PacktrainDeploymentClient(BaseDeploymentClient):  # type: ignore[misc]
    """MLflow's deployments, each a `packtrain serve`."""

    def __init__(self, target_uri: str) -> None:
        super().__init__(target_uri)
        settings = load({}, environ=os.environ, directory=Path.cwd())
        self._folder = settings.cache_dir / "deployments"

    def create_deployment(
        self,
        name: str,
        model_uri: str,
        flavor: Any = None,  # noqa: ARG002
        config: Any = None,
        endpoint: Any = None,  # noqa: ARG002
    ) -> dict[str, Any]:
        if not _NAME.fullmatch(name):
            raise MlflowException(f"{name!r} is not a name for a deployment")
        if (found := self._find(name)) and _lives(found):
            raise MlflowException(f"the deployment {name} runs already: {found['reference']} on port {found['port']}")
        return self._start(name, str(Reference.parse(model_uri)), dict(config or {}))

    def update_deployment(
        self,
        name: str,
        model_uri: str | None = None,
        flavor: Any = None,  # noqa: ARG002
        config: Any = None,
        endpoint: Any = None,  # noqa: ARG002
    ) -> dict[str, Any]:
        found = self._require(name)
        reference = str(Reference.parse(model_uri)) if model_uri else found["reference"]
        self._stop(found)
        return self._start(name, reference, {**found["config"], **(config or {})})

    def delete_deployment(self, name: str, config: Any = None, endpoint: Any = None) -> None:  # noqa: ARG002
        if found := self._find(name):
            self._stop(found)
            self._file(name).unlink(missing_ok=True)

    def list_deployments(self, endpoint: Any = None) -> list[dict[str, Any]]:  # noqa: ARG002
        return [self.get_deployment(path.stem) for path in sorted(self._folder.glob("*.json"))]

    def get_deployment(self, name: str, endpoint: Any = None) -> dict[str, Any]:  # noqa: ARG002
        found = self._require(name)
        state = "stopped" if not _lives(found) else "ready" if _answers(found["port"]) else "starting"
        return {**found, "status": state}

    def predict(self, deployment_name: str | None = None, inputs: Any = None, endpoint: Any = None) -> Any:
        """What vLLM's completions API answers to ``inputs``: a prompt, or that API's body."""
        found = self._require(deployment_name or endpoint or "")
        body = inputs if isinstance(inputs, dict) else {"prompt": _prompt(inputs)}
        model = Reference.parse(found["reference"]).name
        request = urllib.request.Request(
            f"http://127.0.0.1:{found['port']}/v1/completions",
            json.dumps({"model": model, **body}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=600) as answer:  # noqa: S310
            return PredictionsResponse(json.load(answer))

    def _start(self, name: str, reference: str, config: dict[str, Any]) -> dict[str, Any]:
        self._folder.mkdir(parents=True, exist_ok=True)
        port = int(config.get("port", 8000))
        command = [
            sys.executable, "-c", "from packtrain.cli import main; main()", "serve", reference,
            "--", "--host", "127.0.0.1", "--port", str(port), *shlex.split(str(config.get("vllm", ""))),
        ]  # fmt: skip
        log = self._folder / f"{name}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        found = {
            "name": name,
            "flavor": "transformers",  # MLflow's own commands show it
            "reference": reference,
            "port": port,
            "pid": process.pid,
            "started": _started(process.pid),
            "config": config,
            "log": str(log),
        }
        self._file(name).write_text(json.dumps(found))
        return found

    def _stop(self, found: dict[str, Any]) -> None:
        if not _lives(found):
            return
        os.kill(found["pid"], signal.SIGTERM)
        deadline = time.monotonic() + STOP_WITHIN
        while _lives(found):
            with suppress(ChildProcessError):
                os.waitpid(found["pid"], os.WNOHANG)  # ours, if this process started it
            if time.monotonic() > deadline:
                os.kill(found["pid"], signal.SIGKILL)
            time.sleep(0.1)

    def _require(self, name: str) -> dict[str, Any]:
        if (found := self._find(name)) is None:
            raise MlflowException(f"there is no deployment {name}")
        return found

    def _find(self, name: str) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = json.loads(self._file(name).read_text())
        except (OSError, ValueError):
            return None
        return found

    def _file(self, name: str) -> Path:
        return self._folder / f"{Path(name).name}.json"


def _prompt(inputs: Any) -> str:
    """The text in what `mlflow deployments predict` read: a string, or a table of one cell."""
    if hasattr(inputs, "iloc"):
        inputs = inputs.iloc[0, 0]
    return str(inputs)


def _lives(found: dict[str, Any]) -> bool:
    """Whether the process is still the one that was started: numbers are used again."""
    return bool(found["started"]) and _started(found["pid"]) == str(found["started"])


def _started(pid: int) -> str:
    """When a process started, in the kernel's ticks; empty if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def _answers(port: int) -> bool:
    with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
        return True
    return False
