"""How much memory the whole process of a pull takes, whatever the size of the model."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from bench import tools
from bench.bench import Bench
from bench.endless import endless
from bench.measure import Contender, race
from bench.results import Figure, Outcome, Table
from packtrain.testing.servers import REGION

TITLE = "Memory"
NOTE = (
    "`packtrain pull` of a version whose server makes the bytes as they are asked for, each chunk another; they are "
    "written to files that are punched behind the writer, so no disk has to hold them. Peaks are the kernel's, of the "
    "whole process."
)
GIGABYTES = (1, 14, 140)
KEYS = {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench", "AWS_REGION": REGION}


def run(bench: Bench) -> Outcome:
    outcome = Outcome(TITLE, NOTE)
    environment = tools.plain_environment(bench.work / "home") | KEYS
    peaks: list[float] = []
    allowed = 0.0
    for gigabytes in GIGABYTES:
        with tempfile.TemporaryDirectory(dir=bench.work) as home, endless(gigabytes, Path(home)) as server:
            out, cache = Path(home) / "out", Path(home) / "cache"
            pull = [sys.executable, str(tools.PROGRAMS / "pull_punched.py"), "pull", "m", "--to", str(out)]
            pull += ["--store", "s3://bench", "--cache-dir", str(cache)]
            contender = _contender(pull)
            race([contender], 1, environment | {"AWS_ENDPOINT_URL": server.endpoint})
            outcome.tables.append(Table.of(f"pull of {gigabytes} GB", server.size, [contender]))
            peaks.append(contender.costs[0].peak)
            allowed = 10 + 2 * server.manifest_bytes / 1e6
            outcome.figures.append(Figure(f"pull of {gigabytes} GB: peak memory", peaks[-1], "MB", 150))
    growth = f"from {GIGABYTES[0]} to {GIGABYTES[-1]} GB: growth of memory (10 MB and twice the manifest)"
    outcome.figures.append(Figure(growth, peaks[-1] - peaks[0], "MB", allowed))
    return outcome


def _contender(command: list[str]) -> Contender:
    return Contender("packtrain", lambda _: command, verified=True)
