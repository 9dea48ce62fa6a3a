"""A pull of what is here already, by its digest: as a command, and in a process that has its client."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path

from bench import models, tools
from bench.bench import Bench
from bench.measure import Contender, on_every_core, race
from bench.results import Figure, Outcome, Table

TITLE = "Nothing to do"
NOTE = "A version that is in the cache, given its digest: nobody is asked, and nothing is read but its names and marks."
MEGABYTES = 400  # the size does not matter

_IN_PROCESS = """
import json, sys, time
from packtrain import Client
client = Client(store=sys.argv[1], cache_dir=sys.argv[2])
took = []
for _ in range(20):
    began = time.perf_counter()
    client.pull(sys.argv[3])
    took.append(time.perf_counter() - began)
print(json.dumps(took))
"""


def run(bench: Bench) -> Outcome:
    model, environment = bench.model(MEGABYTES), tools.plain_environment(bench.work / "home")
    store, cache = f"file://{bench.work / 'store'}", bench.work / "cache"
    reference = f"m@{bench.publish(model, store, environment)}"
    pull = tools.packtrain("pull", reference, store=store, cache=cache)
    subprocess.run(pull, env=environment, check=True, capture_output=True)
    contenders = [
        Contender("packtrain pull", lambda _: pull, verified=True),
        Contender("packtrain --version", lambda _: [str(tools.BIN / "packtrain"), "--version"]),
        Contender("python -c pass", lambda _: [sys.executable, "-c", "pass"]),
    ]
    with on_every_core():
        race(contenders, 4 * bench.runs, environment)
    table = Table.of("pull what is cached", models.size(model), contenders)
    command = statistics.median(cost.wall for cost in table.rows[0].costs)
    inside = _in_process(store, cache, reference, environment)
    figures = [
        Figure("cached pull: in process", 1000 * statistics.median(inside[1:]), "ms", 20),
        Figure("cached pull: the first in a process", 1000 * inside[0], "ms"),
        Figure("cached pull: as a command", 1000 * command, "ms", 200),
    ]
    return Outcome(TITLE, NOTE, [table], figures)


def _in_process(store: str, cache: Path, reference: str, environment: dict[str, str]) -> list[float]:
    """Seconds of one pull after the other."""
    command = [sys.executable, "-c", _IN_PROCESS, store, str(cache), reference]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return [float(each) for each in json.loads(done.stdout)]
