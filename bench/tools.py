"""The tools that one would use instead, each as fast as its own documentation says to make it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from packtrain import __version__
from packtrain.testing.servers import S3Server, program

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = ROOT / "bench" / "programs"
TOOLS = ROOT / ".bench" / "tools" / "bin"  # an environment of their own: requirements/bench-tools.txt
BIN = Path(sys.executable).parent

AWS_CONFIG = """[default]
s3 =
    max_concurrent_requests = 20
    multipart_chunksize = 16MB
"""


def packtrain(*arguments: str, store: str, cache: Path) -> list[str]:
    return [str(BIN / "packtrain"), *arguments, "--store", store, "--cache-dir", str(cache)]


@dataclass(frozen=True)
class Tools:
    """Commands that copy everything under ``key`` in the bucket of a server to a directory."""

    server: S3Server
    key: str

    def s5cmd(self, out: Path) -> list[str]:
        command = [program("s5cmd"), "--log", "error", "--endpoint-url", self.server.endpoint]
        return [*command, "cp", f"s3://{self.server.bucket}/{self.key}/*", f"{out}/"]

    def rclone(self, out: Path) -> list[str]:
        return [*self._rclone, self._remote, str(out)]

    def rclone_up(self, model: Path) -> list[str]:
        return [*self._rclone, str(model), self._remote]

    @property
    def _rclone(self) -> list[str]:
        return [program("rclone"), "--config", os.devnull, "--transfers", "4", "--multi-thread-streams", "8", "copy"]

    @property
    def _remote(self) -> str:
        return f":s3,provider=Other,env_auth=true,endpoint='{self.server.endpoint}':{self.server.bucket}/{self.key}"

    def aws(self, out: Path) -> list[str]:
        source = f"s3://{self.server.bucket}/{self.key}/"
        return [str(TOOLS / "aws"), "s3", "cp", "--recursive", "--only-show-errors", source, str(out)]

    @staticmethod
    def python(name: str, *arguments: str) -> list[str]:
        """One of our small programs around a library."""
        return [str(TOOLS / "python"), str(PROGRAMS / f"{name}.py"), *arguments]

    def environment(self, home: Path) -> dict[str, str]:
        """What all of them need; ``home`` is a directory for their own files."""
        plain = plain_environment(home)
        (home / "aws-config").write_text(AWS_CONFIG)
        return {
            **plain,
            **self.server.environment,
            "AWS_CONFIG_FILE": str(home / "aws-config"),
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_DEFAULT_REGION": self.server.environment["AWS_REGION"],
            "MLFLOW_S3_ENDPOINT_URL": self.server.endpoint,
            "HF_HOME": str(home / "hf"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "DO_NOT_TRACK": "1",
        }


def plain_environment(home: Path) -> dict[str, str]:
    """Ours, without what would change what is measured."""
    home.mkdir(parents=True, exist_ok=True)
    unwanted = ("PACKTRAIN_", "PYTHON", "AWS_", "HF_", "MLFLOW_")
    ours = {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}
    return {**ours, "HOME": str(home)}


def versions() -> dict[str, str]:
    """Of everything that takes part."""
    names = ["awscli", "boto3", "awscrt", "mlflow-skinny", "huggingface-hub"]
    ask = f"import json, importlib.metadata as m; print(json.dumps({{n: m.version(n) for n in {names!r}}}))"
    theirs = json.loads(_output(str(TOOLS / "python"), "-c", ask))
    return {
        "packtrain": __version__,
        "SeaweedFS": _version("weed", "version"),
        "s5cmd": _version("s5cmd", "version"),
        "rclone": _version("rclone", "version"),
        **theirs,
        "blake3": importlib.metadata.version("blake3"),
    }


def _version(name: str, *arguments: str) -> str:
    found = re.search(r"v?(\d+\.\d+(\.\d+)?)", _output(program(name), *arguments))
    return found[1] if found else "?"


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
