"""Azure's own emulator of its blob storage, for tests, where it is installed (`make azurite`)."""

from __future__ import annotations

import hmac
import shutil
import subprocess
import time
import urllib.request
from base64 import b64decode, b64encode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path

from packtrain.errors import NotFound, Unavailable
from packtrain.testing.ports import free_ports
from packtrain.testing.servers import START_TIMEOUT, stop

ACCOUNT = "devstoreaccount1"  # Azurite's, with a key that everybody knows
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
HOME = Path(__file__).parents[3] / ".azurite"  # in the checkout, where `make azurite` puts it


@dataclass(frozen=True)
class AzureServer:
    """A running blob service with one empty container."""

    endpoint: str
    container: str

    @property
    def url(self) -> str:
        return f"az://{self.container}"

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
            "AZURE_STORAGE_ACCOUNT_KEY": KEY,
            "AZURE_STORAGE_ENDPOINT": self.endpoint,
        }


def command() -> list[str] | None:
    """What starts it: the one of this checkout, or the one on PATH. None where there is none."""
    script = HOME / "node_modules/azurite/dist/src/blob/main.js"
    node = shutil.which("node", path=str(HOME / "env/bin")) or shutil.which("node")
    if script.is_file() and node:
        return [node, str(script)]
    found = shutil.which("azurite-blob")
    return [found] if found else None


@contextmanager
def azurite(directory: Path, container: str = "packtrain") -> Iterator[AzureServer]:
    """Azurite with its log in ``directory``. Raises NotFound, Unavailable if it does not come up."""
    start = command()
    if start is None:
        raise NotFound("Azurite is not installed", hint="make azurite")
    directory.mkdir(parents=True, exist_ok=True)
    [port] = free_ports(1)
    server = AzureServer(f"http://127.0.0.1:{port}/{ACCOUNT}", container)
    log_path = directory / "azurite.log"
    arguments = [
        "--blobHost=127.0.0.1", f"--blobPort={port}", "--inMemoryPersistence",
        "--skipApiVersionCheck", "--silent", "--disableTelemetry",
    ]  # fmt: skip
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [*start, *arguments],
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        _create_container(server, process, log_path)
        yield server
    finally:
        stop(process)


def _create_container(server: AzureServer, process: subprocess.Popen[bytes], log: Path) -> None:
    """obstore has no call for it. Signed by https://learn.microsoft.com/rest/api/storageservices/authorize-with-shared-key."""
    headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2023-11-03"}
    lines = ["PUT", *[""] * 11, *(f"{name}:{value}" for name, value in headers.items())]
    resource = f"/{ACCOUNT}/{ACCOUNT}/{server.container}\nrestype:container"
    signature = hmac.digest(b64decode(KEY), "\n".join([*lines, resource]).encode(), "sha256")
    headers["Authorization"] = f"SharedKey {ACCOUNT}:{b64encode(signature).decode()}"
    url = f"{server.endpoint}/{server.container}?restype=container"
    deadline = time.monotonic() + START_TIMEOUT
    while process.poll() is None and time.monotonic() < deadline:
        request = urllib.request.Request(url, headers=headers, method="PUT")  # noqa: S310 - our own, on loopback
        with suppress(OSError), urllib.request.urlopen(request, timeout=5):  # noqa: S310
            return
        time.sleep(0.05)
    tail = log.read_text(errors="replace")[-2000:]
    raise Unavailable(f"Azurite did not start within {START_TIMEOUT:.0f} s:\n{tail}", hint=f"Its log is {log}.")
