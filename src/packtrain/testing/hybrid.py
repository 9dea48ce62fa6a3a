"""The servers of the hybrid profile on one machine: SeaweedFS for the bytes, and MLflow on PostgreSQL."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from packtrain.errors import NotFound, Unavailable
from packtrain.testing.mlflow_servers import INSTALL, MlflowServer, mlflow_server
from packtrain.testing.servers import S3Server, seaweedfs

PREFIX = "models"  # in the bucket, beside MLflow's own artifacts


@dataclass(frozen=True)
class Hybrid:
    """The running servers."""

    s3: S3Server
    mlflow: MlflowServer

    @property
    def environment(self) -> dict[str, str]:
        """What Packtrain, LLaMA-Factory and MLflow's own clients need to use them."""
        return {
            **self.s3.environment,
            **self.mlflow.environment,
            "MLFLOW_S3_ENDPOINT_URL": self.s3.endpoint,
            "PACKTRAIN_STORE": f"{self.s3.url}/{PREFIX}",
            "PACKTRAIN_REGISTRY": self.mlflow.url,
        }

    def wait(self) -> NoReturn:
        """Until this process is told to stop. Raises Unavailable if one of the servers ends before."""
        while True:
            time.sleep(0.5)
            for process in (self.mlflow.process, self.mlflow.database):
                if process is not None and not process.alive:
                    raise Unavailable(f"{Path(process.command[0]).name} ended", hint=f"Its log says why: {process.log}")

    def shell(self) -> str:
        """The same, for a shell to read."""
        return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in self.environment.items())


@contextmanager
def hybrid(
    directory: Path, *, port: int | None = None, engine: Path | None = None, keep: bool = True
) -> Iterator[Hybrid]:
    """Starts them with their data in ``directory`` and stops them; a later start finds it again (without ``keep``, not
    MLflow's). ``port`` is MLflow's. Raises NotFound if the programs are not installed, Unavailable if one does not come
    up."""
    engine = engine or find_engine()
    directory.mkdir(parents=True, exist_ok=True)
    with seaweedfs(directory / "s3") as s3:
        environment = {**os.environ, **s3.environment, "MLFLOW_S3_ENDPOINT_URL": s3.endpoint}
        with mlflow_server(
            directory / "mlflow",
            engine,
            backend="postgresql",
            artifacts=f"{s3.url}/mlflow",
            environment=environment,
            port=port,
            keep=keep,
        ) as mlflow:
            yield Hybrid(s3, mlflow)


def find_engine(places: Sequence[Path] = (Path(sys.prefix), Path(".engines/mlflow"))) -> Path:
    """The environment that has MLflow and PostgreSQL: this one, or a checkout's."""
    for place in places:
        if (place / "bin" / "mlflow").exists():
            return place.absolute()
    raise NotFound("MLflow is not installed beside Packtrain", hint=INSTALL)
