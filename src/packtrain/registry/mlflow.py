"""MLflow's REST API, as much of it as Packtrain uses, over httpx. No mlflow package is needed.

Where the server is and who asks come from MLflow's own variables: MLFLOW_TRACKING_URI (for ``registry = "mlflow"``),
MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN; MLFLOW_TRACKING_SERVER_CERT_PATH or
MLFLOW_TRACKING_INSECURE_TLS.

Facts about the server (3.x): an alias that does not exist is 400 INVALID_PARAMETER_VALUE, a model that does not exist
404; two first settings of one alias at once may give one of them a 400 about a unique constraint; nothing is
conditional; names that were deleted start again at version 1.
"""

from __future__ import annotations

import os
import ssl
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit, urlunsplit

from packtrain.errors import Conflict, NotFound, PacktrainError, Refused, Unavailable, UsageError
from packtrain.model.projection import Shown

if TYPE_CHECKING:
    import httpx

API = "/api/2.0/mlflow"
PAUSES = (0.2, 1.0, 3.0)  # seconds before each further attempt
TIMEOUT = 30.0  # seconds without a byte
BUSY = {429, 502, 503, 504}
PAGE = 200
ACTOR = "X-Packtrain-Actor"  # who asks, for the server's log (packtrain.plugins.guard)
_RACED = ("UniqueViolation", "UNIQUE constraint")  # what PostgreSQL and SQLite say of two first settings of an alias

_AGAIN = "Nothing is lost: run the same command again when MLflow answers."


@dataclass(frozen=True, slots=True)
class Registered:
    """A version as MLflow has it. ``created`` in milliseconds since 1970."""

    number: int
    source: str
    run_id: str | None
    created: int
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Run:
    """A run of MLflow's tracking."""

    id: str
    experiment: str
    artifacts: str  # the URI of its artifacts
    status: str
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]
    datasets: tuple[str, ...] = ()


class Mlflow:
    """One MLflow server. Safe to use from many threads.

    Raises Unavailable (not reached, overloaded, failing), Refused (not allowed, or a value that MLflow does not take),
    NotFound and Conflict, and nothing else.
    """

    def __init__(
        self,
        url: str,
        *,
        actor: str = "",
        environ: Mapping[str, str] = os.environ,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._actor = actor.encode("ascii", "replace").decode()
        self._environ = environ
        self._sleep = sleep
        self._given = url.rstrip("/")
        self.url = without_credentials(self._given)

    # Registered models

    def model(self, name: str) -> Shown | None:
        """What MLflow shows of a registered model; None if it has none of that name."""
        try:
            found = self._get("registered-models/get", name=name)["registered_model"]
        except NotFound:
            return None
        return _shown(found)

    def models(self) -> Iterator[tuple[str, Shown]]:
        """All registered models, with one request for every two hundred."""
        for found in self._pages("registered-models/search", "registered_models"):
            yield found["name"], _shown(found)

    def create_model(self, name: str, description: str) -> None:
        """No error if it is there."""
        try:
            self._post("registered-models/create", {"name": name, "description": description})
        except Conflict:
            return

    def delete_model(self, name: str) -> None:
        self._call("DELETE", "registered-models/delete", body={"name": name})

    # Versions

    def version(self, name: str, number: int) -> Registered:
        found = self._get("model-versions/get", name=name, version=str(number))["model_version"]
        return _registered(found)

    def download_uri(self, name: str, number: int) -> str:
        """Where the files of a version are, whatever it was registered from."""
        return str(self._get("model-versions/get-download-uri", name=name, version=str(number))["artifact_uri"])

    def versions(self, name: str) -> list[Registered]:
        """All versions of a model, oldest first."""
        quoted = name.replace("'", "''")
        found = self._pages("model-versions/search", "model_versions", filter=f"name='{quoted}'")
        return sorted(map(_registered, found), key=lambda each: each.number)

    def create_version(
        self, name: str, source: str, *, run_id: str | None, tags: Mapping[str, str], description: str = ""
    ) -> int:
        """Creates a version and returns its number. Never asked twice: after Unavailable it may be there, and its tags
        tell."""
        body = {
            "name": name,
            "source": source,
            "run_id": run_id or "",
            "description": description,
            "tags": [{"key": key, "value": value} for key, value in tags.items()],
        }
        return int(self._post("model-versions/create", body, once=True)["model_version"]["version"])

    def delete_version(self, name: str, number: int) -> None:
        self._call("DELETE", "model-versions/delete", body={"name": name, "version": str(number)})

    def tag_version(self, name: str, number: int, key: str, value: str) -> None:
        self._post("model-versions/set-tag", {"name": name, "version": str(number), "key": key, "value": value})

    # Aliases

    def set_alias(self, name: str, alias: str, number: int) -> None:
        body = {"name": name, "alias": alias, "version": str(number)}
        for pause in (*PAUSES, None):
            try:
                self._post("registered-models/alias", body)
                return
            except Refused as error:
                if pause is None or not any(sign in str(error) for sign in _RACED):
                    raise
                self._sleep(pause)

    def remove_alias(self, name: str, alias: str) -> None:
        self._call("DELETE", "registered-models/alias", body={"name": name, "alias": alias})

    # Runs

    def experiment(self, name: str) -> str:
        """The id of an experiment, which is created if it is not there."""
        try:
            found = self._get("experiments/get-by-name", experiment_name=name)
            return str(found["experiment"]["experiment_id"])
        except NotFound:
            try:
                return str(self._post("experiments/create", {"name": name})["experiment_id"])
            except Conflict:
                return self.experiment(name)

    def experiments(self) -> list[str]:
        """The ids of all that are not deleted."""
        body: dict[str, Any] = {"max_results": PAGE}
        ids = []
        while True:
            page = self._post("experiments/search", body)
            ids += [str(each["experiment_id"]) for each in page.get("experiments", [])]
            if not (token := page.get("next_page_token")):
                return ids
            body["page_token"] = token

    def runs(self, experiments: list[str], query: str, limit: int = 10) -> list[Run]:
        """The runs that an MLflow filter finds, newest first."""
        body = {
            "experiment_ids": experiments,
            "filter": query,
            "max_results": limit,
            "order_by": ["attributes.start_time DESC"],
        }
        return [_run(found) for found in self._post("runs/search", body).get("runs", [])] if experiments else []

    def run(self, run_id: str) -> Run:
        return _run(self._get("runs/get", run_id=run_id)["run"])

    def create_run(self, experiment: str, name: str, *, start: int, user: str, tags: Mapping[str, str]) -> Run:
        body = {
            "experiment_id": experiment,
            "run_name": name,
            "start_time": start,
            "tags": [{"key": key, "value": value} for key, value in {"mlflow.user": user, **tags}.items()],
        }
        return _run(self._post("runs/create", body, once=True)["run"])

    def log(
        self,
        run_id: str,
        *,
        params: Mapping[str, str],
        metrics: list[tuple[str, float, int, int]],
    ) -> None:
        """Parameters, and metrics as (key, value, milliseconds, step), in batches that MLflow takes."""
        shown = [{"key": key, "value": value} for key, value in params.items()]
        points = [{"key": k, "value": v, "timestamp": t, "step": s} for k, v, t, s in metrics]
        for start in range(0, len(shown), 100):
            self._post("runs/log-batch", {"run_id": run_id, "params": shown[start : start + 100]})
        for start in range(0, len(points), 500):
            self._post("runs/log-batch", {"run_id": run_id, "metrics": points[start : start + 500]})

    def log_inputs(self, run_id: str, datasets: list[dict[str, Any]]) -> None:
        self._post("runs/log-inputs", {"run_id": run_id, "datasets": datasets})

    def finish_run(self, run_id: str, end: int) -> None:
        self._post("runs/update", {"run_id": run_id, "status": "FINISHED", "end_time": end})

    def metric(self, run_id: str, key: str) -> list[tuple[int, float]]:
        """The curve of a metric, as (step, value)."""
        found = self._pages("metrics/get-history", "metrics", run_id=run_id, metric_key=key)
        return [(int(each.get("step", 0)), float(each["value"])) for each in found]

    def artifacts(self, run_id: str, path: str = "") -> list[str]:
        """The paths of a run's artifacts directly under ``path``; folders end in a slash."""
        found = self._pages("artifacts/list", "files", run_id=run_id, **({"path": path} if path else {}))
        return [each["path"] + ("/" if each.get("is_dir") else "") for each in found]

    def page(self, run: Run) -> str:
        """Where people look at a run."""
        return f"{self.url}/#/experiments/{run.experiment}/runs/{run.id}"

    # What the server keeps for others: mlflow-artifacts:/PATH

    def put_artifact(self, path: str, data: bytes) -> None:
        self._send("PUT", f"/api/2.0/mlflow-artifacts/artifacts/{quote(path)}", content=data)

    def list_artifacts(self, path: str) -> Iterator[tuple[str, int]]:
        """Every file under a path of the server's artifacts, as (path, size)."""
        found = self._send("GET", "/api/2.0/mlflow-artifacts/artifacts", params={"path": path}).json()
        for each in found.get("files", []):
            inner = f"{path.rstrip('/')}/{each['path']}"
            if each.get("is_dir"):
                yield from self.list_artifacts(inner)
            else:
                yield inner, int(each["file_size"])

    def read_artifact(self, path: str, start: int, length: int) -> Iterator[bytes]:
        """The bytes ``[start, start + length)`` of an artifact. A server that ignores ranges is read from its start."""
        import httpx

        address = f"/api/2.0/mlflow-artifacts/artifacts/{quote(path)}"
        ranged = {"Range": f"bytes={start}-{start + length - 1}", "Accept-Encoding": "identity"}
        try:
            with self._http.stream("GET", address, headers=ranged) as response:
                if response.is_error:
                    response.read()
                    raise self._error(response)
                skip = start if response.status_code == 200 else 0
                for piece in response.iter_bytes(1 << 20):
                    if skip >= len(piece):
                        skip -= len(piece)
                        continue
                    kept = piece[skip : skip + length]
                    skip, length = 0, length - len(kept)
                    yield kept
                    if not length:
                        return
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    # How

    def server_version(self) -> str:
        """The server's version. Raises Unavailable."""
        return str(self._send("GET", "/version").text.strip())

    def _get(self, call: str, **params: str) -> Any:
        return self._call("GET", call, params=params)

    def _post(self, call: str, body: Mapping[str, Any], *, once: bool = False) -> Any:
        return self._call("POST", call, body=body, once=once)

    def _pages(self, call: str, what: str, **params: str) -> Iterator[Any]:
        token = ""
        while True:
            page = self._get(call, max_results=str(PAGE), **params, **({"page_token": token} if token else {}))
            yield from page.get(what, [])
            if not (token := page.get("next_page_token", "")):
                return

    def _call(
        self,
        method: str,
        call: str,
        *,
        params: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        once: bool = False,
    ) -> Any:
        response = self._send(method, f"{API}/{call}", params=params, json=body, once=once)
        try:
            return response.json()
        except ValueError as error:
            raise Refused(
                f"{self.url} answers, but not as an MLflow server does",
                hint="Is it the address of MLflow itself, with the path under which a proxy offers it?",
            ) from error

    def _send(self, method: str, path: str, *, once: bool = False, **what: Any) -> httpx.Response:
        """The response to a request, which is repeated where that does no harm: ``once`` only if it never left."""
        import httpx

        for pause in (*PAUSES, None):
            try:
                response = self._http.request(method, path, **{k: v for k, v in what.items() if v is not None})
            except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
                if pause is None:
                    raise self._unreachable(error) from error
            except httpx.HTTPError as error:
                if pause is None or once:
                    raise self._unreachable(error) from error
            else:
                if response.status_code not in BUSY or pause is None or (once and response.status_code != 429):
                    if response.is_error:
                        raise self._error(response)
                    return response
            assert pause is not None
            self._sleep(pause)
        raise AssertionError("unreachable")

    @cached_property
    def _http(self) -> httpx.Client:
        import httpx

        get = self._environ.get
        token, user = get("MLFLOW_TRACKING_TOKEN"), get("MLFLOW_TRACKING_USERNAME")
        auth = httpx.BasicAuth(user, get("MLFLOW_TRACKING_PASSWORD") or "") if user and not token else None
        client = httpx.Client(
            base_url=self._given,
            auth=auth,
            headers={
                **({"Authorization": f"Bearer {token}"} if token else {}),
                **({ACTOR: self._actor} if self._actor.isprintable() and self._actor else {}),
            },
            timeout=httpx.Timeout(TIMEOUT, connect=10.0),
            verify=self._tls(),
        )
        weakref.finalize(self, client.close)
        return client

    def _tls(self) -> ssl.SSLContext | bool:
        path = self._environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH")
        insecure = self._environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() == "true"
        if path and insecure:
            raise UsageError(
                "MLFLOW_TRACKING_SERVER_CERT_PATH and MLFLOW_TRACKING_INSECURE_TLS are both set",
                hint="Unset the second: with it no certificate is checked.",
            )
        if insecure or self._given.startswith("http://"):
            return False  # without TLS there is nothing to load certificates for, which takes a while
        if not path:
            return True
        try:
            folder = Path(path).is_dir()
            return ssl.create_default_context(capath=path if folder else None, cafile=None if folder else path)
        except OSError as error:
            raise UsageError(
                f"MLFLOW_TRACKING_SERVER_CERT_PATH: {path} cannot be used: {error}",
                hint="It names a file of certificates (PEM), or a folder of them.",
            ) from error

    def _unreachable(self, error: Exception) -> PacktrainError:
        text = str(error) or type(error).__name__
        hint = _AGAIN
        if "CERTIFICATE_VERIFY_FAILED" in text:
            hint = "Name the certificate of its authority in MLFLOW_TRACKING_SERVER_CERT_PATH."
        return Unavailable(f"MLflow at {self.url} cannot be reached: {text}", hint=hint)

    def _error(self, response: httpx.Response) -> PacktrainError:
        """What an error of the server means."""
        try:
            value = response.json()
            code, said = str(value.get("error_code", "")), str(value.get("message", ""))
        except (ValueError, AttributeError):
            code, said = "", " ".join(response.text.split())
        said = said[:500] or response.reason_phrase
        status, where = response.status_code, f"MLflow at {self.url}"
        if status == 404 and code == "RESOURCE_DOES_NOT_EXIST":
            return NotFound(f"{where}: {said}")
        if status == 400 and code == "INVALID_PARAMETER_VALUE" and said.endswith("not found.") and "alias" in said:
            return NotFound(f"{where}: {said}")
        if code == "RESOURCE_ALREADY_EXISTS":
            return Conflict(f"{where}: {said}")
        if status == 401:
            return Refused(
                f"{where} does not know who asks (401)",
                hint="Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN.",
            )
        if status == 403 and "Host header" in said:
            return Refused(
                f"{where} does not answer to this name: {said}",
                hint="Start the server with --allowed-hosts and the name that clients use.",
            )
        if status == 403:
            return Refused(
                f"{where} does not allow this: {said}",
                hint="Ask its administrator for the permission to edit this model.",
            )
        if status == 404:
            return Refused(
                f"{where} has no {response.request.url.path} (404): it is no MLflow server, or an old one",
                hint="Packtrain needs MLflow 3. Check the address.",
            )
        if status in BUSY or status >= 500:
            return Unavailable(f"{where} failed ({status}): {said}", hint=_AGAIN, busy=status in (429, 503))
        return Refused(f"{where} refuses ({status} {code}): {said}", hint="See the server's log for more.")


def server(setting: str, environ: Mapping[str, str] = os.environ) -> str:
    """The URL of the server that a setting names: itself, or for ``mlflow`` MLFLOW_TRACKING_URI. Raises UsageError."""
    if setting == "mlflow":
        setting = environ.get("MLFLOW_REGISTRY_URI") or environ.get("MLFLOW_TRACKING_URI") or ""
        if not setting:
            raise UsageError(
                'registry = "mlflow", but MLFLOW_TRACKING_URI is not set',
                hint="Set it to the server's address, or write that into registry: http://mlflow.example.com:5000",
            )
    parts = urlsplit(setting)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(
            f"the registry {setting!r} is not supported",
            hint='It is "store" (inside the store), or the address of an MLflow server: http://mlflow.example.com:5000',
        )
    return setting.rstrip("/")


def without_credentials(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _shown(found: Any) -> Shown:
    return Shown(
        created=int(found["creation_timestamp"]),
        aliases={each["alias"]: int(each["version"]) for each in found.get("aliases", [])},
    )


def _registered(found: Any) -> Registered:
    return Registered(
        number=int(found["version"]),
        source=found.get("source", ""),
        run_id=found.get("run_id") or None,
        created=int(found.get("creation_timestamp", 0)),
        tags=_pairs(found.get("tags", [])),
    )


def _run(found: Any) -> Run:
    info, data = found["info"], found.get("data", {})
    inputs = found.get("inputs", {}).get("dataset_inputs", [])
    return Run(
        id=info["run_id"],
        experiment=str(info["experiment_id"]),
        artifacts=info.get("artifact_uri", ""),
        status=info.get("status", ""),
        params=_pairs(data.get("params", [])),
        metrics={each["key"]: float(each["value"]) for each in data.get("metrics", [])},
        tags=_pairs(data.get("tags", [])),
        datasets=tuple(each["dataset"]["name"] for each in inputs),
    )


def _pairs(found: list[Any]) -> dict[str, str]:
    return {each["key"]: each.get("value", "") for each in found}
