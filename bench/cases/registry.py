"""Fifty nodes that look at an alias: of the ledger in S3, and of an MLflow server that shows it."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import tools
from bench.bench import Bench
from bench.measure import CLIENT, cores
from bench.results import Figure, Outcome
from bench.tools import Tools
from packtrain.registry.mlflow import Mlflow
from packtrain.testing.mlflow_servers import mlflow_server
from packtrain.testing.servers import S3Server

NODES, INTERVAL, MODELS = 50, 10, 20
AT_ONCE, IN_TURNS = 10, 30  # seconds of looking
MEGABYTES = 40  # the size does not matter
LEDGER, SHOWN = "looks at the ledger", "looks at the ledger and MLflow"
TITLE = "Looks at an alias"
NOTE = (
    f"{NODES} nodes in one process, each with its own memory. A look reads the ledger's head in S3; with MLflow it "
    'asks that, too. "At once": as often as all of them together can; the target is what they need to look every '
    f'{INTERVAL} s. "In turns": every {INTERVAL} s, with the jitter of `packtrain serve`. MLflow has two workers and '
    "PostgreSQL; all servers share one core, the nodes have the other."
)
MLFLOW = tools.ROOT / ".engines" / "mlflow"
PASSWORD = "a password of many characters"
CACHED = """[mlflow]
default_permission = READ
database_uri = sqlite:///basic_auth.db
admin_username = admin
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
auth_cache_ttl_seconds = 60
"""


@dataclass(frozen=True)
class Fleet:
    """The nodes of one model, in one store, with the registry that ``environment`` names."""

    bench: Bench
    store: str
    environment: dict[str, str]

    def publish(self) -> None:
        self.bench.publish(self.bench.model(MEGABYTES), self.store, self.environment)
        promote = tools.packtrain("promote", "m/1", "--to", "production", store=self.store, cache=self._cache)
        subprocess.run(promote, env=self.environment, check=True, capture_output=True)

    def at_once(self, title: str, *, what: str = "packtrain", target: float | None = NODES / INTERVAL) -> Figure:
        """Looks a second."""
        elapsed, took = self._look(what, 0, AT_ONCE)
        return _told(Figure(f"{title}: at once", len(took) / elapsed, "a second", target, at_least=True))

    def in_turns(self, title: str) -> list[Figure]:
        """How long looks take."""
        _, took = self._look("packtrain", INTERVAL, IN_TURNS)
        slowest = statistics.quantiles(took, n=100)[98]
        return [
            _told(Figure(f"{title}: one, in turns", 1000 * statistics.median(took), "ms")),
            _told(Figure(f"{title}: 99 of 100, in turns", 1000 * slowest, "ms")),
        ]

    def _look(self, what: str, interval: int, seconds: int) -> tuple[float, list[float]]:
        """Seconds in all, and of each look."""
        arguments = [what, str(NODES), str(interval), str(seconds), str(self._cache)]
        pinned = ["taskset", "-c", ",".join(map(str, cores(CLIENT))), sys.executable]
        environment = {**self.environment, "PACKTRAIN_STORE": self.store}
        command = [*pinned, str(tools.PROGRAMS / "look.py"), *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
        elapsed, took = json.loads(done.stdout)
        return elapsed, took

    @property
    def _cache(self) -> Path:
        return self.bench.work / "nodes" / self.store.rpartition("/")[2]


def run(bench: Bench) -> Outcome:
    if not MLFLOW.exists():
        raise SystemExit("MLflow is not there: python tools/engines.py mlflow")
    outcome = Outcome(TITLE, NOTE)
    with bench.s3() as s3:
        environment = Tools(s3, "").environment(bench.work / "home")

        def fleet(name: str, **more: str) -> Fleet:
            made = Fleet(bench, f"{s3.url}/{name}", environment | more)
            made.publish()
            return made

        nodes = fleet("ledger")
        outcome.figures += [nodes.at_once(LEDGER), *nodes.in_turns(LEDGER)]
        with _mlflow(bench, s3, "plain") as registry:
            nodes = fleet("plain", **registry)
            outcome.figures += [nodes.at_once(SHOWN), *nodes.in_turns(SHOWN)]
            outcome.figures.append(nodes.at_once("requests to MLflow alone", what="alias", target=None))
            for number in range(1, MODELS):
                Mlflow(registry["PACKTRAIN_REGISTRY"], environ={}).create_model(f"other-{number}", "")
            title = f"requests to MLflow alone, {MODELS} models in each"
            outcome.figures.append(nodes.at_once(title, what="search", target=None))
        with _mlflow(bench, s3, "password", "--app-name", "basic-auth") as registry:
            outcome.figures.append(fleet("password", **registry).at_once(f"{SHOWN} with passwords"))
        config = bench.work / "basic-auth.ini"
        config.write_text(CACHED)
        with _mlflow(bench, s3, "cached", "--app-name", "basic-auth", MLFLOW_AUTH_CONFIG_PATH=str(config)) as registry:
            outcome.figures.append(fleet("cached", **registry).at_once(f"{SHOWN} with passwords, cached"))
    return outcome


@contextmanager
def _mlflow(bench: Bench, s3: S3Server, name: str, *options: str, **more: str) -> Iterator[dict[str, str]]:
    """A server; gives the variables that Packtrain needs to use it."""
    secrets = {"MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD, "MLFLOW_FLASK_SERVER_SECRET_KEY": "a key"}
    with mlflow_server(
        bench.work / "mlflow" / name,
        MLFLOW,
        backend="postgresql",
        artifacts=f"{s3.url}/mlflow",
        environment={**os.environ, **s3.environment, "MLFLOW_S3_ENDPOINT_URL": s3.endpoint, **secrets, **more},
        options=("--workers=2", *options),
    ) as server:
        user = {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": PASSWORD} if options else {}
        yield {"PACKTRAIN_REGISTRY": server.url, **user}


def _told(figure: Figure) -> Figure:
    print(f"    {figure.what}: {figure.value:.1f} {figure.unit}", flush=True)
    return figure
