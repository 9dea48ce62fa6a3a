"""The same pull over links of several rates and delays, with no flag changed."""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

from bench import models, tools
from bench.bench import Bench
from bench.links import Link, link
from bench.measure import CLIENT, Contender, cores, race
from bench.results import Figure, Outcome, Table
from bench.tools import Tools
from packtrain.testing.proxy import Relay, relay

TITLE = "Links"
NOTE = (
    "The client is in a network namespace of its own, behind a token bucket (tc tbf) of the rate; a proxy in front of "
    "SeaweedFS holds back the first byte of each answer, and each new connection, by the delay. The link's goodput is "
    "that of one TCP stream without HTTP over the same link. Walls are of whole processes: the start of the program, "
    'reading the ledger and the manifest, and one delay for each of these are in it; "while it fetches" is from the '
    "first hundredth of the model to its last byte."
)
FAST = {1.0: 2, 3.0: 2}  # gigabits a second; how much of the model is pulled
SLOW = {0.2: 1}  # by itself: it takes longer than all others together
DELAYS = (0.0, 0.02, 0.1)


def run(bench: Bench) -> Outcome:
    return _run(bench, Outcome(TITLE, NOTE), FAST)


def run_slow(bench: Bench) -> Outcome:
    return _run(bench, Outcome("A slow link", "As above."), SLOW)


def _run(bench: Bench, outcome: Outcome, rates: dict[float, int]) -> Outcome:
    with bench.s3() as server, link() as wire:
        environment = Tools(server, "").environment(bench.work / "home")
        published = {}
        for part in set(rates.values()):
            model = bench.model(bench.megabytes * part)
            digest = bench.publish(model, f"{server.url}/{part}", environment).removeprefix("sha256:")
            published[part] = (f"{part}", f"{part}/models/m/{digest}", models.size(model))
        for gigabits, part in rates.items():
            wire.shape(gigabits)
            best = statistics.median(_goodput(wire, gigabits) for _ in range(3))
            prefix, key, size = published[part]
            for delay in DELAYS:
                title = f"{gigabits:g} Gbit/s, {delay * 1000:.0f} ms"
                print(f"  {title} (goodput {best * 8 / 1e9:.3f} Gbit/s)", flush=True)
                with relay(server.endpoint, latency=delay, host=wire.host) as proxy, _Watch(proxy) as watch:
                    theirs = Tools(replace(server, endpoint=proxy.endpoint), key)
                    contenders = _contenders(bench, wire, theirs, prefix, watch)
                    race(contenders, bench.runs, theirs.environment(bench.work / "home"), memory=size)
                    fetching = statistics.median(watch.rates(size))
                outcome.tables.append(Table.of(f"pull, {title}", size, contenders))
                walls = [statistics.median(cost.wall for cost in each.costs) for each in contenders]
                ours, theirs_ = (100 * size / wall / best for wall in walls)
                outcome.figures += [
                    Figure(f"{title}: of the link's goodput", ours, "%", 97, at_least=True),
                    Figure(f"{title}: while it fetches", 100 * fetching / best, "%"),
                    Figure(f"{title}: s5cmd", theirs_, "%"),
                ]
    return outcome


def _contenders(bench: Bench, wire: Link, theirs: Tools, prefix: str, watch: _Watch) -> list[Contender]:
    out, cache = bench.work / "out", bench.work / "cache"
    pull = tools.packtrain("pull", "m", store=f"{theirs.server.url}/{prefix}", cache=cache)
    return [
        Contender("packtrain", lambda _: wire.behind(pull), verified=True, remove=[cache], before=watch.begin),
        Contender("s5cmd", lambda _: wire.behind(theirs.s5cmd(out)), remove=[out], before=watch.ignore),
    ]


class _Watch:
    """Notes, run by run, how many bytes of bodies have passed a proxy, and when."""

    def __init__(self, proxy: Relay) -> None:
        self._proxy = proxy
        self._noted: list[list[tuple[float, int]]] = []
        self._ignored: list[tuple[float, int]] = []
        self._now = self._ignored
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def begin(self) -> None:
        self._now = []
        self._noted.append(self._now)

    def ignore(self) -> None:
        self._now = self._ignored

    def rates(self, size: int) -> Iterator[float]:
        """Bytes a second of each run that was begun, from the first hundredth of ``size`` to the end."""
        for noted in self._noted:
            first, last = noted[0][1], noted[-1][1]
            inner = [each for each in noted if first + size / 100 <= each[1] < last]
            (begin, before), (end, after) = inner[0], inner[-1]
            yield (after - before) / (end - begin)

    def _look(self) -> None:
        while not self._over.wait(0.02):
            self._now.append((time.monotonic(), self._proxy.traffic.down))


def _goodput(wire: Link, gigabits: float) -> float:
    """Bytes a second that one stream brings over the link."""
    total = int(gigabits * 1e9 / 8 * 3)  # for 3 s
    with socket.create_server((wire.host, 0)) as listener:
        port = listener.getsockname()[1]
        command = wire.behind([sys.executable, str(tools.PROGRAMS / "drain.py"), wire.host, str(port)])
        client = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, preexec_fn=lambda: os.sched_setaffinity(0, cores(CLIENT))
        )
        connection, _ = listener.accept()
        with connection:
            zeros = bytes(1 << 20)
            while total > 0:
                connection.sendall(zeros)
                total -= len(zeros)
        said, _ = client.communicate()
    return float(said)
