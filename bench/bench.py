"""What every case works with: where, how large, how often."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import models, tools
from bench.servers import certificate
from packtrain.testing.servers import S3Server, seaweedfs


@dataclass(frozen=True)
class Bench:
    """``work`` is an empty directory, ``megabytes`` the size of models, ``runs`` how often contenders take turns."""

    work: Path
    megabytes: int
    runs: int

    @contextmanager
    def s3(self) -> Iterator[S3Server]:
        """A server, over TLS too, with a certificate from ``work/tls``."""
        with seaweedfs(self.work / "s3", certificate=certificate(self.work / "tls")) as server:
            yield server

    def model(self, megabytes: int | None = None) -> Path:
        """A base model, written once."""
        megabytes = megabytes or self.megabytes
        directory = self.work / f"model-{megabytes}"
        return directory if directory.exists() else models.base(directory, megabytes)

    def publish(self, model: Path, store: str, environment: dict[str, str]) -> str:
        """Publishes a model as the next version of ``m``. Returns its digest."""
        command = tools.packtrain("publish", str(model), "--name", "m", "--json", store=store, cache=self.work / "own")
        done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
        return str(json.loads(done.stdout)["digest"])
