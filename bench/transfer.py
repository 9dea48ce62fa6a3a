"""Publish and pull against the tools one would use instead, side by side in one run.

    python bench/transfer.py [--megabytes 1024] [--runs 5]

Each run does every contender once, in turn, on the same tiny-layered model of random bytes in four shards; a row is
the median of the runs with the spread, as whole-process wall and CPU seconds and peak memory, and the ratio of the
walls to the first row's within the run. The S3 server is SeaweedFS on loopback and shares the machine's cores, so
these are ratios, not forecasts. Packtrain hashes and verifies every byte; the others copy.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from packtrain.testing.servers import S3Server, seaweedfs
from packtrain.testing.tinymodels import write_base

BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Cost:
    wall: float  # seconds
    cpu: float  # seconds, user and system
    peak: float  # MB resident, of the largest process


@dataclass
class Contender:
    """One way of doing a job: a command for the n-th run, and what to remove before it."""

    name: str
    command: Callable[[int], list[str]]
    prepare: Callable[[int], None] = lambda _: None
    costs: list[Cost] = field(default_factory=list)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--megabytes", type=int, default=1024)
    options.add_argument("--runs", type=int, default=5)
    options.add_argument("--directory", type=Path, help="where to work (default: a temporary directory)")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="packtrain-bench-", dir=chosen.directory) as home:
        work = Path(home)
        model = make_model(work / "model", chosen.megabytes)
        size = sum(path.stat().st_size for path in model.iterdir())
        print(f"{size / 1e6:.0f} MB in 4 shards, {chosen.runs} runs, {os.cpu_count()} cores, ", end="")
        print(f"Python {platform.python_version()}, {time.strftime('%Y-%m-%d')}")
        with seaweedfs(work / "s3") as server:
            for title, contenders in jobs(work, model, server):
                race(contenders, chosen.runs, {**os.environ, **server.environment})
                report(title, contenders, size)
    return 0


def make_model(directory: Path, megabytes: int) -> Path:
    """A Llama of about this size in bfloat16, as many layers as it takes."""
    hidden, intermediate, vocab = 1024, 4096, 4096
    layer = 2 * (2 * hidden * hidden + 2 * hidden * hidden // 2 + 3 * hidden * intermediate)
    layers = max(4, (megabytes * 1_000_000 - 4 * vocab * hidden) // layer)
    return write_base(
        directory,
        seed=1,
        vocab=vocab,
        hidden=hidden,
        layers=layers,
        heads=16,
        kv_heads=8,
        intermediate=intermediate,
        shards=4,
    )


def jobs(work: Path, model: Path, server: S3Server) -> list[tuple[str, list[Contender]]]:
    s5cmd = [str(BIN / "s5cmd"), "--endpoint-url", server.endpoint]
    remote = f":s3,provider=Other,env_auth=true,endpoint='{server.endpoint}':{server.bucket}"
    rclone = [str(BIN / "rclone"), "--config", os.devnull, "--transfers", "4", "--multi-thread-streams", "8"]
    out, stores = work / "out", work / "stores"

    def packtrain(*arguments: str, store: str, cache: str = "bench") -> list[str]:
        cache_dir = str(work / "caches" / cache)
        return [str(BIN / "packtrain"), *arguments, "--store", store, "--cache-dir", cache_dir]

    def fresh_out(_: int) -> None:
        shutil.rmtree(out, ignore_errors=True)

    def no_cache(_: int) -> None:
        shutil.rmtree(work / "caches" / "node", ignore_errors=True)

    published, directory = f"{server.url}/pulls", f"file://{stores / 'pulls'}"
    for store in (published, directory):
        subprocess.run(
            packtrain("publish", str(model), "--name", "m", store=store),
            env={**os.environ, **server.environment},
            check=True,
            capture_output=True,
        )
    in_store = next((stores / "pulls" / "models" / "m").iterdir())
    key = f"pulls/models/m/{in_store.name}"
    return [
        (
            "publish to S3",
            [
                Contender("s5cmd", lambda n: [*s5cmd, "cp", f"{model}/", f"s3://{server.bucket}/s5-{n}/"]),
                Contender("rclone", lambda n: [*rclone, "copy", str(model), f"{remote}/rc-{n}"]),
                Contender(
                    "packtrain publish",
                    lambda n: packtrain("publish", str(model), "--name", "m", store=f"{server.url}/publish-{n}"),
                ),
            ],
        ),
        (
            "publish to a directory",
            [
                Contender("cp -r", lambda n: ["cp", "-r", str(model), str(stores / f"cp-{n}")]),
                Contender(
                    "packtrain publish",
                    lambda n: packtrain("publish", str(model), "--name", "m", store=f"file://{stores / f'p-{n}'}"),
                ),
            ],
        ),
        (
            "pull from S3",
            [
                Contender("s5cmd", lambda _: [*s5cmd, "cp", f"s3://{server.bucket}/{key}/*", f"{out}/"], fresh_out),
                Contender("rclone", lambda _: [*rclone, "copy", f"{remote}/{key}", str(out)], fresh_out),
                Contender("packtrain pull", lambda _: packtrain("pull", "m", store=published, cache="node"), no_cache),
            ],
        ),
        (
            "pull from a directory",
            [
                Contender("cp -r", lambda _: ["cp", "-r", str(in_store), str(out)], fresh_out),
                Contender("packtrain pull", lambda _: packtrain("pull", "m", store=directory, cache="node"), no_cache),
            ],
        ),
        (
            "pull what is cached",
            [Contender("packtrain pull", lambda _: packtrain("pull", "m", store=directory, cache="node"))],
        ),
        ("help", [Contender("packtrain --help", lambda _: [str(BIN / "packtrain"), "--help"])]),
    ]


def race(contenders: list[Contender], runs: int, environment: dict[str, str]) -> None:
    """Interleaved: every contender once in each run, so that the machine's moods meet all of them."""
    for run in range(runs):
        for contender in contenders:
            contender.prepare(run)
            os.sync()
            contender.costs.append(measure(contender.command(run), environment))


# Run by a small process of its own: a child's peak memory counts that of the process which it was forked from.
_MEASURE = """
import json, os, resource, subprocess, sys, time
started = time.perf_counter()
process = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
wall = time.perf_counter() - started
if process.returncode:
    sys.exit(process.stderr.decode(errors="replace")[-2000:])
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1000]))
"""


def measure(command: list[str], environment: dict[str, str]) -> Cost:
    measuring = [sys.executable, "-I", "-c", _MEASURE, *command]
    done = subprocess.run(measuring, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{command} failed:\n{done.stderr}")
    return Cost(*json.loads(done.stdout))


def report(title: str, contenders: list[Contender], size: int) -> None:
    print(f"\n### {title}\n")
    print("| | wall s (min-max) | ratio | CPU s per GB | peak MB |")
    print("|---|---|---|---|---|")
    first = contenders[0]
    for contender in contenders:
        walls = [cost.wall for cost in contender.costs]
        ratios = [mine.wall / theirs.wall for mine, theirs in zip(contender.costs, first.costs, strict=True)]
        cpu = statistics.median(cost.cpu for cost in contender.costs) / (size / 1e9)
        peak = statistics.median(cost.peak for cost in contender.costs)
        print(
            f"| {contender.name} | {statistics.median(walls):.2f} ({min(walls):.2f}-{max(walls):.2f}) "
            f"| {statistics.median(ratios):.2f} | {cpu:.2f} | {peak:.0f} |"
        )


if __name__ == "__main__":
    sys.exit(main())
