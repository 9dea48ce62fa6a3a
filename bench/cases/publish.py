"""A model of several shards into a store that has nothing of it."""

from __future__ import annotations

from bench import models, tools
from bench.bench import Bench
from bench.measure import Contender, race
from bench.results import Figure, Outcome, Table, fastest, ratio, wall
from bench.tools import Tools
from packtrain.testing.servers import program

TITLE = "Publish"
NOTE = "Packtrain computes two digests of every byte before the first is sent; the others copy."


def run(bench: Bench) -> Outcome:
    model = bench.model()
    size, stores = models.size(model), bench.work / "stores"
    outcome = Outcome(TITLE, NOTE)
    with bench.s3() as server:
        environment = Tools(server, "").environment(bench.work / "home")

        def publish(store: str) -> list[str]:
            return tools.packtrain("publish", str(model), "--name", "m", store=store, cache=bench.work / "own")

        s5cmd = [program("s5cmd"), "--log", "error", "--endpoint-url", server.endpoint]
        to_bucket = [
            Contender("packtrain", lambda n: publish(f"{server.url}/publish-{n}"), verified=True),
            Contender("s5cmd", lambda n: [*s5cmd, "cp", f"{model}/", f"s3://{server.bucket}/s5-{n}/"]),
            Contender("rclone", lambda n: Tools(server, f"rc-{n}").rclone_up(model)),
        ]
        print("  S3")
        race(to_bucket, bench.runs, environment)
    to_directory = [
        Contender("packtrain", lambda n: publish(f"file://{stores / f'p-{n}'}"), verified=True, remove=[stores]),
        Contender("cp -r", lambda n: ["cp", "-r", str(model), str(stores / f"cp-{n}")], remove=[stores]),
    ]
    for contender in to_directory:
        contender.before = lambda: stores.mkdir()
    print("  directory")
    race(to_directory, bench.runs, environment)
    for how, contenders in (("S3", to_bucket), ("a directory", to_directory)):
        table = Table.of(f"publish to {how}", size, contenders)
        best = fastest(table.rows[1:])
        outcome.tables.append(table)
        outcome.figures.append(Figure(f"publish to {how}: wall, to {best.name}", ratio(table.rows[0], best, wall)))
    return outcome
