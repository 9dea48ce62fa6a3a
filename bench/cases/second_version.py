"""What a node that has one version fetches for the next: bytes counted on the wire, at the server."""

from __future__ import annotations

import json
import mmap
import subprocess
from pathlib import Path

from bench import models, tools
from bench.bench import Bench
from bench.measure import Contender, race
from bench.results import Figure, Outcome, Table
from bench.tools import Tools
from packtrain.model.safetensors import header_length, parse_header
from packtrain.testing.merges import write_merges
from packtrain.testing.proxy import Relay, relay

TITLE = "A second version"
NOTE = (
    "A node has one merge of a model and pulls another. Bytes are those that the server sent, manifest, ledger, file "
    "headers and HTTP heads included. Content-defined chunks (gear hash, 64 KiB on average, 16 to 256) are computed "
    "on the same files: what a client that has the first version would lack of the second."
)


def run(bench: Bench) -> Outcome:
    versions = write_merges(bench.work / "merges", **models.shape(bench.megabytes))
    outcome = Outcome(TITLE, NOTE)
    with bench.s3() as server:
        environment = Tools(server, "").environment(bench.work / "home")
        for which, directory in (
            ("q_proj and v_proj", versions.second),
            ("q_proj and v_proj, in other shards", versions.resharded),
            ("all linear layers", versions.everything),
        ):
            print(f"  {which}")
            store = f"{server.url}/{directory.name}"
            for each in (versions.first, directory):
                bench.publish(each, store, environment)
            with relay(server.endpoint) as wire:
                contenders = _contenders(bench, store, wire, environment)
                race(
                    contenders,
                    bench.runs,
                    environment | {"AWS_ENDPOINT_URL": wire.endpoint},
                    memory=models.size(directory),
                )
            table = Table.of(f"the second version: {which}", models.size(directory), contenders)
            outcome.tables.append(table)
            outcome.figures += _figures(which, versions.first, directory, table)
    return outcome


def _contenders(bench: Bench, store: str, wire: Relay, environment: dict[str, str]) -> list[Contender]:
    whole, cache = bench.work / "cache-whole", bench.work / "cache"

    def pull(reference: str, cache: Path) -> list[str]:
        return tools.packtrain("pull", reference, store=store, cache=cache)

    def has_the_first() -> None:
        subprocess.run(
            pull("m/1", cache),
            env=environment | {"AWS_ENDPOINT_URL": wire.endpoint},
            check=True,
            stdout=subprocess.DEVNULL,
        )

    counted = 0

    def received() -> int:
        nonlocal counted
        before, counted = counted, wire.traffic.down + wire.traffic.heads_down
        return counted - before

    return [
        Contender(
            "pull, with the first here",
            lambda _: pull("m/2", cache),
            verified=True,
            remove=[cache],
            before=has_the_first,
            received=received,
        ),
        Contender("pull, whole", lambda _: pull("m/2", whole), verified=True, remove=[whole], received=received),
    ]


def _figures(which: str, first: Path, second: Path, table: Table) -> list[Figure]:
    different = changed(first, second)
    fetched, whole = (max(cost.received for cost in row.costs) for row in table.rows)
    target = 1.005 if which.startswith("q_proj") else None
    cut = json.loads(
        subprocess.run(
            Tools.python("cut_by_content", str(first), str(second)), check=True, capture_output=True, text=True
        ).stdout
    )
    return [
        Figure(f"{which}: fetched, to the changed tensors' bytes", fetched / different, "x", target),
        Figure(f"{which}: fetched, of the whole", 100 * fetched / whole, "%"),
        Figure(f"{which}: content-defined chunks, to the changed tensors' bytes", cut / different, "x"),
    ]


def changed(first: Path, second: Path) -> int:
    """Bytes of the tensors of ``second`` that are not in ``first`` as they are, wherever they lie."""
    before, after = _tensors(first), _tensors(second)
    return sum(len(data) for name, data in after.items() if before.get(name) != data)


def _tensors(directory: Path) -> dict[str, memoryview]:
    found: dict[str, memoryview] = {}
    for path in sorted(directory.glob("*.safetensors")):
        with path.open("rb") as file:
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        header = parse_header(bytes(data[: header_length(bytes(data[:8]), len(data))]), len(data))
        found |= {tensor.name: data[tensor.start : tensor.end] for tensor in header.tensors}
    return found
