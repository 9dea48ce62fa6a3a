"""A model of several shards into a store: one that has nothing of it, one that has the version before, and how much
memory it takes."""

from __future__ import annotations

from pathlib import Path

from bench import models, tools
from bench.bench import Bench
from bench.cases.second_version import changed
from bench.measure import Contender, on_every_core, race
from bench.results import Figure, Outcome, Table, cpu, fastest, ratio, wall
from bench.tools import Tools
from packtrain.testing.proxy import relay
from packtrain.testing.servers import S3Server, program
from packtrain.testing.tinymodels import write_merged

TITLE = "Publish"
NOTE = (
    "Packtrain computes the digests of every byte before the first is sent, and the server confirms what it got; the "
    "others copy. Of the second version, a merge of another training of q_proj and v_proj, the bytes are those of all "
    "requests' bodies, as a relay in front of the server counts them."
)
GROWING = (500, 1000, 2000, 4000)  # MB


def run(bench: Bench) -> Outcome:
    outcome = Outcome(TITLE, NOTE)
    with bench.s3() as server:
        environment = Tools(server, "").environment(bench.work / "home")
        _to_bucket(bench, server, environment, outcome)
        _second_version(bench, server, environment, outcome)
        _memory(bench, server, environment, outcome)
    _to_directory(bench, outcome)
    return outcome


def _publish(bench: Bench, model: Path, store: str) -> list[str]:
    return tools.packtrain("publish", str(model), "--name", "m", store=store, cache=bench.work / "own")


def _to_bucket(bench: Bench, server: S3Server, environment: dict[str, str], outcome: Outcome) -> None:
    print("  S3")
    model, bucket = bench.model(), server.bucket
    s5cmd = [program("s5cmd"), "--log", "error", "--endpoint-url", server.endpoint]
    python = Tools.python
    contenders = [
        Contender("packtrain", lambda n: _publish(bench, model, f"{server.url}/publish-{n}"), verified=True),
        Contender("s5cmd", lambda n: [*s5cmd, "cp", f"{model}/", f"s3://{bucket}/s5-{n}/"]),
        Contender("rclone", lambda n: Tools(server, f"rc-{n}").rclone_up(model)),
        Contender("boto3", lambda n: python("push_boto3", bucket, f"boto-{n}", str(model))),
        Contender("mlflow", lambda n: python("push_mlflow", f"s3://{bucket}/mlflow-{n}", str(model))),
    ]
    race(contenders, bench.runs, environment, memory=models.size(model))
    table = Table.of("publish to S3", models.size(model), contenders)
    best = fastest(table.rows[1:])
    outcome.tables.append(table)
    outcome.figures += [
        Figure(f"publish to S3: wall, to the fastest, {best.name}", ratio(table.rows[0], best, wall), "x", 1.1),
        Figure(f"publish to S3: CPU seconds, to {best.name}", ratio(table.rows[0], best, cpu)),
    ]


def _second_version(bench: Bench, server: S3Server, environment: dict[str, str], outcome: Outcome) -> None:
    print("  a second version")
    first, second = (write_merged(bench.work / f"merged-{seed}", bench.model(), seed=seed) for seed in (2, 3))
    store = f"{server.url}/second"
    bench.publish(first, store, environment)
    with relay(server.endpoint) as wire:
        again = Contender("packtrain", lambda _: _publish(bench, second, store), verified=True)
        race([again], 1, environment | {"AWS_ENDPOINT_URL": wire.endpoint})
        sent = wire.traffic.up
    outcome.tables.append(Table.of("publish to S3, the version before is there", models.size(second), [again]))
    outcome.figures += [
        Figure("second version: uploaded, to the changed tensors' bytes", sent / changed(first, second), "x", 1.05),
        Figure("second version: uploaded, of the whole", 100 * sent / models.size(second), "%"),
    ]


def _memory(bench: Bench, server: S3Server, environment: dict[str, str], outcome: Outcome) -> None:
    print("  memory")
    peaks = []
    for megabytes in GROWING:
        model = bench.model(megabytes)
        store = f"{server.url}/memory-{megabytes}"
        contender = Contender("packtrain", lambda _, model=model, store=store: _publish(bench, model, store))  # type: ignore[misc]
        race([contender], 1, environment)
        peaks.append(contender.costs[0].peak)
        outcome.figures.append(Figure(f"publish of {megabytes} MB: peak memory", peaks[-1], "MB"))
    growth = f"from {GROWING[0]} to {GROWING[-1]} MB: growth of a publish's memory"
    outcome.figures.append(Figure(growth, peaks[-1] - peaks[0], "MB", 10))


def _to_directory(bench: Bench, outcome: Outcome) -> None:
    print("  directory")
    model, stores = bench.model(), bench.work / "stores"
    contenders = [
        Contender(
            "packtrain", lambda n: _publish(bench, model, f"file://{stores / f'p-{n}'}"), verified=True, remove=[stores]
        ),
        Contender("cp -r", lambda n: ["cp", "-r", str(model), str(stores / f"cp-{n}")], remove=[stores]),
    ]
    for contender in contenders:
        contender.before = lambda: stores.mkdir()
    environment = tools.plain_environment(bench.work / "home")
    with on_every_core():
        race(contenders, bench.runs, environment, memory=models.size(model))
    table = Table.of("publish to a directory", models.size(model), contenders)
    outcome.tables.append(table)
    outcome.figures.append(Figure("publish to a directory: wall, to cp -r", ratio(table.rows[0], table.rows[1], wall)))
