"""A whole version from S3 on loopback to an empty cache, plain and over TLS."""

from __future__ import annotations

from pathlib import Path

from bench import models, tools
from bench.bench import Bench
from bench.measure import Contender, race
from bench.results import Figure, Outcome, Row, Table, cpu, fastest, ratio, wall
from bench.servers import hub, trusting
from bench.tools import Tools
from packtrain.testing.servers import S3Server

TITLE = "Cold pull from S3"
NOTE = (
    "Four shards, 4 GB in all, from SeaweedFS on loopback, which has them in its page cache, to an empty directory on "
    "the same disk. "
    'Only Packtrain verifies; "+ BLAKE3" is the tool followed by one program that hashes its files from memory. A run '
    "of all of them takes a minute, in which a shared machine's mood changes more than the fast ones differ. So the "
    "fastest of them is raced again, side by side and more often, and the figures are of that."
)
FINAL = 2  # times as many runs


def run(bench: Bench) -> Outcome:
    model = bench.model(2 * bench.megabytes)
    size = models.size(model)
    outcome = Outcome(TITLE, NOTE)
    with bench.s3() as server:
        environment = Tools(server, "").environment(bench.work / "home")
        digest = bench.publish(model, f"{server.url}/pulls", environment).removeprefix("sha256:")
        for how, endpoint in (("S3", server.endpoint), ("S3 over TLS", server.secure_endpoint)):
            plain = how == "S3"
            served = S3Server(endpoint, server.access_key, server.secret_key, server.bucket)
            theirs = Tools(served, f"pulls/models/m/{digest}")
            environment = theirs.environment(bench.work / "home")
            if not plain:
                environment |= trusting(bench.work / "tls")
            contenders = _contenders(bench, theirs)
            print(f"  {how}")
            race(_contenders(bench, theirs)[:1], 1, environment, memory=size)  # the server's first time; does not count
            if plain:
                with hub(served, theirs.key, "0" * 40) as address:
                    contenders.append(_hub(bench, theirs, address))
                    race(contenders, bench.runs, environment, memory=size)
            else:
                race(contenders, bench.runs, environment, memory=size)
            table = Table.of(f"pull from {how}", size, contenders)
            finalists = _finalists(bench, theirs, table.rows)
            race(finalists, FINAL * bench.runs, environment, memory=size)
            final = Table.of(f"pull from {how}, with the fastest again", size, finalists)
            outcome.tables += [table, final]
            outcome.figures += _figures(final, how)
    return outcome


def _contenders(bench: Bench, theirs: Tools) -> list[Contender]:
    out, cache = bench.work / "out", bench.work / "cache"
    source = [theirs.server.bucket, theirs.key]

    def tool(name: str, command: list[str]) -> Contender:
        return Contender(name, lambda _: command, remove=[out])

    secure = theirs.server.endpoint.startswith("https:")  # CRT speaks nothing but TLS
    crt = [tool("boto3 with CRT", theirs.python("pull_boto3", *source, str(out), "crt"))] if secure else []
    return [
        Contender("packtrain", lambda _: _pull(theirs.server, cache), verified=True, remove=[cache]),
        tool("s5cmd", theirs.s5cmd(out)),
        tool("rclone", theirs.rclone(out)),
        tool("aws s3 cp", theirs.aws(out)),
        tool("boto3", theirs.python("pull_boto3", *source, str(out), "classic")),
        *crt,
        tool("mlflow.artifacts", theirs.python("pull_mlflow", f"s3://{'/'.join(source)}", str(out))),
    ]


def _pull(server: S3Server, cache: Path) -> list[str]:
    return tools.packtrain("pull", "m", store=f"s3://{server.bucket}/pulls", cache=cache)


def _hub(bench: Bench, theirs: Tools, address: str) -> Contender:
    out = bench.work / "out"
    command = theirs.python("pull_hub", "bench/model", str(out))
    return Contender("huggingface_hub", lambda _: command, remove=[out], environment={"HF_ENDPOINT": address})


def _finalists(bench: Bench, theirs: Tools, rows: list[Row]) -> list[Contender]:
    """Packtrain, and the fastest of the tools, plain and followed by the hash of its files."""
    out = bench.work / "out"
    ours, *others = _contenders(bench, theirs)
    commands = {each.name: each.command(0) for each in others}
    best = fastest(row for row in rows if row.name in commands)
    plain = commands[best.name]
    hashed = theirs.python("then_blake3", str(out), *plain)
    return [
        ours,
        Contender(best.name, lambda _: plain, remove=[out]),
        Contender(f"{best.name} + BLAKE3", lambda _: hashed, verified=True, remove=[out]),
    ]


def _figures(final: Table, how: str) -> list[Figure]:
    ours, best, hashed = final.rows
    return [
        Figure(f"pull from {how}: wall, to the fastest, {best.name}, unverified", ratio(ours, best, wall), "x", 1.1),
        Figure(f"pull from {how}: wall, to {hashed.name}", ratio(ours, hashed, wall), "x", 0.9),
        Figure(f"pull from {how}: CPU, to {hashed.name}", ratio(ours, hashed, cpu), "x", 0.9),
    ]
