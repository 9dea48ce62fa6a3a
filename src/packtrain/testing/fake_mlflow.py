"""An MLflow server of a few lines, for tests that a real one would make slow: real HTTP, nothing kept.

It passes the same conformance suite as a real one. It can be told to fail: `Fake.faults` is asked about each request.
"""

from __future__ import annotations

import itertools
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

LOST = "lost"  # the request is carried out, and the connection breaks before the answer
DOWN = "down"  # the connection breaks before anything is done
BUSY = "busy"  # 503

_DOES_NOT_EXIST = (404, "RESOURCE_DOES_NOT_EXIST")


class _RefusedError(Exception):
    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


@dataclass
class Model:
    created: int
    aliases: dict[str, int] = field(default_factory=dict)
    versions: dict[int, dict[str, Any]] = field(default_factory=dict)
    count: int = 0


@dataclass
class Fake:
    """What the server holds, to look at and to meddle with as somebody at MLflow's user interface would."""

    url: str = ""
    models: dict[str, Model] = field(default_factory=dict)
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    experiments: dict[str, str] = field(default_factory=lambda: {"Default": "0"})
    artifacts: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    faults: Callable[[str, int], str | None] = lambda _call, _count: None
    lock: threading.RLock = field(default_factory=threading.RLock)
    _time: Iterator[int] = field(default_factory=lambda: itertools.count(1_767_225_600_000))

    def answer(self, method: str, call: str, ask: dict[str, Any]) -> Any:
        name = ask.get("name", "")
        match method, call:
            case "POST", "registered-models/create":
                if name in self.models:
                    raise _RefusedError(
                        400, "RESOURCE_ALREADY_EXISTS", f"Registered Model (name={name}) already exists."
                    )
                self.models[name] = Model(next(self._time))
                return {"registered_model": self._model(name)}
            case "GET", "registered-models/get":
                return {"registered_model": self._model(name)}
            case "GET", "registered-models/search":
                return {"registered_models": [self._model(each) for each in sorted(self.models)]}
            case "DELETE", "registered-models/delete":
                self._find(name)
                del self.models[name]
            case "POST", "registered-models/alias":
                self._version(name, ask["version"])
                self._find(name).aliases[ask["alias"]] = int(ask["version"])
            case "DELETE", "registered-models/alias":
                self._find(name).aliases.pop(ask["alias"], None)
            case "POST", "model-versions/create":
                return {"model_version": self._create(name, ask)}
            case "GET", "model-versions/get":
                return {"model_version": self._version(name, ask["version"])}
            case "GET", "model-versions/get-download-uri":
                return {"artifact_uri": self._version(name, ask["version"])["source"]}
            case "GET", "model-versions/search":
                wanted = ask["filter"].removeprefix("name='").removesuffix("'")
                found = self.models.get(wanted)
                return {"model_versions": list(found.versions.values()) if found else []}
            case "DELETE", "model-versions/delete":
                self._version(name, ask["version"])
                model, number = self.models[name], int(ask["version"])
                del model.versions[number]
                model.aliases = {alias: at for alias, at in model.aliases.items() if at != number}
            case "POST", "model-versions/set-tag":
                tags = self._version(name, ask["version"])["tags"]
                tags[:] = [tag for tag in tags if tag["key"] != ask["key"]]
                tags.append({"key": ask["key"], "value": ask["value"]})
            case _:
                return self._tracking(method, call, ask)
        return {}

    def _tracking(self, method: str, call: str, ask: dict[str, Any]) -> Any:
        match method, call:
            case "GET", "experiments/get-by-name":
                if ask["experiment_name"] not in self.experiments:
                    raise _RefusedError(
                        *_DOES_NOT_EXIST, f"Could not find experiment with name {ask['experiment_name']}"
                    )
                return {"experiment": {"experiment_id": self.experiments[ask["experiment_name"]]}}
            case "POST", "experiments/create":
                self.experiments[ask["name"]] = str(len(self.experiments))
                return {"experiment_id": self.experiments[ask["name"]]}
            case "POST", "experiments/search":
                return {"experiments": [{"experiment_id": each} for each in self.experiments.values()]}
            case "POST", "runs/create":
                run_id = uuid.uuid4().hex
                self.runs[run_id] = {
                    "info": {
                        "run_id": run_id,
                        "run_name": ask["run_name"],
                        "experiment_id": ask["experiment_id"],
                        "artifact_uri": f"mlflow-artifacts:/{ask['experiment_id']}/{run_id}/artifacts",
                        "status": "RUNNING",
                    },
                    "data": {"params": [], "metrics": [], "tags": ask["tags"]},
                    "inputs": {"dataset_inputs": []},
                    "history": [],
                }
                return {"run": self._run(run_id)}
            case "GET", "runs/get":
                return {"run": self._run(ask["run_id"])}
            case "POST", "runs/search":
                return {"runs": [self._run(run) for run in reversed(self.runs) if _fits(self._run(run), ask["filter"])]}
            case "POST", "runs/log-batch":
                run = self._run(ask["run_id"])
                run["data"]["params"] += ask.get("params", [])
                run["history"] += ask.get("metrics", [])
                latest = {each["key"]: each for each in (*run["data"]["metrics"], *ask.get("metrics", []))}
                run["data"]["metrics"] = list(latest.values())
            case "POST", "runs/log-inputs":
                self._run(ask["run_id"])["inputs"]["dataset_inputs"] += ask["datasets"]
            case "POST", "runs/update":
                self._run(ask["run_id"])["info"]["status"] = ask["status"]
            case "GET", "metrics/get-history":
                history = self._run(ask["run_id"])["history"]
                return {"metrics": [each for each in history if each["key"] == ask["metric_key"]]}
            case "GET", "artifacts/list":
                root = self._run(ask["run_id"])["info"]["artifact_uri"].removeprefix("mlflow-artifacts:/")
                return {
                    "files": [
                        {"path": path.removeprefix(f"{root}/")} for path in self.artifacts if path.startswith(root)
                    ]
                }
            case _:
                raise _RefusedError(404, "ENDPOINT_NOT_FOUND", f"no {method} {call}")
        return {}

    def listed(self, folder: str) -> list[dict[str, Any]]:
        """The artifacts and folders directly in a folder, as the server lists what it keeps."""
        below = {
            path[len(folder) + 1 :]: data for path, data in self.artifacts.items() if path.startswith(f"{folder}/")
        }
        folders = {path.partition("/")[0] for path in below if "/" in path}
        return [
            *(
                {"path": path, "is_dir": False, "file_size": len(data)}
                for path, data in below.items()
                if "/" not in path
            ),
            *({"path": path, "is_dir": True} for path in sorted(folders)),
        ]

    def _find(self, name: str) -> Model:
        if name not in self.models:
            raise _RefusedError(*_DOES_NOT_EXIST, f"Registered Model with name={name} not found")
        return self.models[name]

    def _model(self, name: str) -> dict[str, Any]:
        found = self._find(name)
        aliases = [{"alias": alias, "version": str(number)} for alias, number in found.aliases.items()]
        return {"name": name, "creation_timestamp": found.created, "aliases": aliases}

    def _create(self, name: str, ask: dict[str, Any]) -> dict[str, Any]:
        model = self._find(name)
        model.count += 1
        model.versions[model.count] = {
            "name": name,
            "version": str(model.count),
            "source": ask["source"],
            "run_id": ask.get("run_id", ""),
            "creation_timestamp": int(time.time() * 1000),
            "tags": list(ask.get("tags", [])),
            "status": "READY",
        }
        return model.versions[model.count]

    def _version(self, name: str, number: str) -> dict[str, Any]:
        found = self._find(name).versions.get(int(number))
        if found is None:
            raise _RefusedError(*_DOES_NOT_EXIST, f"Model Version (name={name}, version={number}) not found")
        return found

    def _run(self, run_id: str) -> dict[str, Any]:
        if run_id not in self.runs:
            raise _RefusedError(*_DOES_NOT_EXIST, f"Run with id={run_id} not found")
        return self.runs[run_id]


def _fits(run: dict[str, Any], query: str) -> bool:
    """Conditions like tags.`a` = 'x' and metrics.b = 1.5, all of which must hold."""
    for condition in filter(None, query.split(" and ")):
        left, _, right = condition.partition(" = ")
        kind, _, key = left.partition(".")
        have = {each["key"]: str(each["value"]) for each in run["data"][kind]}
        if have.get(key.strip("`")) != right.strip("'"):
            return False
    return True


@contextmanager
def fake_mlflow() -> Iterator[Fake]:
    """The server, on a free port of loopback."""
    fake = Fake()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *_: object) -> None: ...

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            parts = urlsplit(self.path)
            with fake.lock:
                call = parts.path.removeprefix("/api/2.0/mlflow/")
                fake.requests.append(f"{self.command} {call}")
                fault = fake.faults(f"{self.command} {call}", fake.requests.count(f"{self.command} {call}"))
                if fault == DOWN:
                    self.close_connection = True
                    return
                if fault == BUSY:
                    self._send(503, b"{}")
                    return
                status, answer = self._carry_out(call, parts.query, body)
            if fault == LOST:
                self.close_connection = True
                return
            self._send(status, answer)

        do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = handle_any  # noqa: N815

        def _carry_out(self, call: str, query: str, body: bytes) -> tuple[int, bytes]:
            artifact = "/api/2.0/mlflow-artifacts/artifacts/"
            if call == artifact.rstrip("/"):
                return 200, json.dumps({"files": fake.listed(parse_qs(query)["path"][0])}).encode()
            if call.startswith(artifact):
                path = call.removeprefix(artifact)
                if self.command == "PUT":
                    fake.artifacts[path] = body
                    return 200, b"{}"
                return (200, fake.artifacts[path]) if path in fake.artifacts else (404, b"{}")
            if call == "/version":
                return 200, b"3.0.0-fake"
            ask = json.loads(body) if body else {key: value[0] for key, value in parse_qs(query).items()}
            try:
                return 200, json.dumps(fake.answer(self.command, call, ask)).encode()
            except _RefusedError as error:
                return error.status, json.dumps({"error_code": error.code, "message": error.message}).encode()

        def _send(self, status: int, answer: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    fake.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, name="fake-mlflow")
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
