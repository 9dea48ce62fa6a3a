"""Real servers for tests, the demo and the bench, each on free ports in a directory of its caller."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import obstore
from obstore.exceptions import GenericError
from obstore.store import S3Store

from packtrain.errors import NotFound, Unavailable
from packtrain.testing.ports import free_ports

GRPC_OFFSET = 10_000  # weed serves gRPC on each of its ports plus this
START_TIMEOUT = 180.0  # seconds; MLflow with a fresh database takes 16 on an idle machine
REGION = "us-east-1"


@dataclass
class Process:
    """A server that can be killed and started again. Its output is appended to ``log``."""

    command: list[str]
    log: Path
    environment: Mapping[str, str]
    ready: Callable[[], bool]
    user: int | None = None
    _running: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def start(self) -> None:
        """Returns when it is ready. Raises Unavailable if it does not get there."""
        with self.log.open("ab") as log:
            self._running = subprocess.Popen(
                self.command, cwd=self.log.parent, env=dict(self.environment), user=self.user, group=self.user,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                extra_groups=None if self.user is None else [],
            )  # fmt: skip
        deadline = time.monotonic() + START_TIMEOUT
        while self._running.poll() is None and time.monotonic() < deadline:
            if self.ready():
                return
            time.sleep(0.1)
        self.kill()
        tail = self.log.read_text(errors="replace")[-3000:]
        raise Unavailable(f"{Path(self.command[0]).name} did not start:\n{tail}", hint=f"Its log is {self.log}.")

    @property
    def alive(self) -> bool:
        return self._running is not None and self._running.poll() is None

    def kill(self) -> None:
        """Ends it and all that it started, at once."""
        if self._running is not None:
            stop(self._running)
            self._running = None


@dataclass(frozen=True, slots=True)
class S3Server:
    """A running S3 server with one empty bucket. The reader may read and list, and nothing else.

    ``secure_endpoint`` is the same over TLS, if it was given a certificate.
    """

    endpoint: str
    access_key: str
    secret_key: str
    bucket: str
    reader_access_key: str = ""
    reader_secret_key: str = ""
    secure_endpoint: str = ""
    process: Process | None = None

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}"

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs in its environment to use the server, and what keeps it from other accounts."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": REGION,
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    @property
    def reader_environment(self) -> dict[str, str]:
        keys = {"AWS_ACCESS_KEY_ID": self.reader_access_key, "AWS_SECRET_ACCESS_KEY": self.reader_secret_key}
        return {**self.environment, **keys}


@contextmanager
def seaweedfs(directory: Path, *, certificate: tuple[Path, Path] | None = None) -> Iterator[S3Server]:
    """SeaweedFS with its data and its log in ``directory``; with ``certificate`` (and its key, PEM files) over TLS,
    too. Raises Unavailable if it does not come up."""
    weed = program("weed")
    directory.mkdir(parents=True, exist_ok=True)
    config = directory / "s3.json"
    writer, reader = ("packtrain", _secret_of(config, 0)), ("reader", _secret_of(config, 1))
    master, volume, filer, s3, secure = free_ports(5, beside=GRPC_OFFSET)
    identities = [
        {"name": access, "credentials": [{"accessKey": access, "secretKey": secret}], "actions": actions}
        for (access, secret), actions in (
            (writer, ["Admin", "Read", "Write", "List", "Tagging"]),
            (reader, ["Read", "List"]),
        )
    ]
    config.touch(mode=0o600)
    config.write_text(json.dumps({"identities": identities}))
    data = directory / "data"
    data.mkdir(exist_ok=True)
    command = [
        weed, "server", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
        f"-master.port={master}", "-master.peers=none", f"-volume.port={volume}", "-filer", f"-filer.port={filer}",
        "-s3", f"-s3.port={s3}", "-s3.port.iceberg=0", "-s3.port.lance=0", f"-s3.config={config}",
        "-volume.max=50", "-master.volumeSizeLimitMB=2048", "-master.telemetry=false",
    ]  # fmt: skip
    if certificate is not None:
        command += [f"-s3.port.https={secure}", f"-s3.cert.file={certificate[0]}", f"-s3.key.file={certificate[1]}"]
    secure_endpoint = f"https://127.0.0.1:{secure}" if certificate else ""
    process = Process(command, directory / "weed.log", os.environ, lambda: _takes_objects(server))
    server = S3Server(f"http://127.0.0.1:{s3}", *writer, "packtrain", *reader, secure_endpoint, process)
    try:
        process.start()
        yield server
    finally:
        process.kill()


def _secret_of(config: Path, identity: int) -> str:
    """A new one, or that of an earlier start: the server remembers whom it has seen."""
    if not config.exists():
        return secrets.token_hex(16)
    return str(json.loads(config.read_text())["identities"][identity]["credentials"][0]["secretKey"])


def _takes_objects(server: S3Server) -> bool:
    """Whether it does by now. Creates the bucket as soon as that is possible."""
    store = S3Store(
        server.bucket,
        endpoint=server.endpoint,
        access_key_id=server.access_key,
        secret_access_key=server.secret_key,
        region=REGION,
        client_options={"allow_http": True, "timeout": timedelta(seconds=5)},
        retry_config={"max_retries": 0},
    )
    # obstore has no call for it, but CreateBucket is a signed PUT of the bucket's own path.
    request = urllib.request.Request(  # noqa: S310 - our own server, on loopback
        obstore.sign(store, "PUT", "", timedelta(minutes=5)), method="PUT"
    )
    with suppress(OSError, GenericError):  # not listening yet, or no volume server to write to yet
        with suppress(urllib.error.HTTPError), urllib.request.urlopen(request, timeout=5):  # noqa: S310
            pass  # 409 when an earlier round made it
        obstore.put(store, ".ready", b"ready")
        obstore.delete(store, ".ready")
        return True
    return False


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ends the server's own process group, at once: nobody wants what it holds, and it may take long to say goodbye."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def program(name: str) -> str:
    """The program beside this interpreter (a virtual environment need not be activated), or on PATH."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        raise NotFound(f"{name} is not installed", hint="It comes with the development dependencies: make setup.")
    return found
