"""Nodes that look at an alias of ``m``: ``python look.py WHAT NODES INTERVAL SECONDS CACHE``.

WHAT: ``packtrain`` looks as a node of `packtrain serve` does, ``alias`` asks MLflow alone for the version, ``search``
asks it for the aliases of all models at once. The store and the registry come from PACKTRAIN_* variables. INTERVAL in
seconds, with the jitter of `packtrain serve`; 0: as fast as they can. Prints how long all of it took and each look, in
seconds, as JSON.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from packtrain.client import Silent
from packtrain.flows.following import JITTER
from packtrain.registry.mlflow import Mlflow
from packtrain.settings import load
from packtrain.wiring import wire

Look = Callable[[], object]


class Strict(Silent):
    """A node goes on when MLflow does not answer, and says so. Such looks are not to be counted."""

    def note(self, text: str) -> None:
        raise RuntimeError(text)


def main() -> None:
    what, nodes, interval, seconds, cache = sys.argv[1:]
    looks = [a_look(what, f"{cache}/{number}") for number in range(int(nodes))]
    with ThreadPoolExecutor(len(looks)) as pool:
        list(pool.map(lambda look: look(), looks))  # the first one connects, and reads the whole ledger
        began = time.monotonic()
        took = list(pool.map(lambda look: node(look, float(interval), began + float(seconds)), looks))
        elapsed = time.monotonic() - began
    print(json.dumps([elapsed, [each for one in took for each in one]]))


def node(look: Look, interval: float, until: float) -> list[float]:
    """Looks until then. Returns how long each took."""
    took = []
    time.sleep(random.uniform(0, interval))
    while (began := time.monotonic()) < until:
        look()
        took.append(time.monotonic() - began)
        time.sleep(interval * random.uniform(1 - JITTER, 1 + JITTER))
    return took


def a_look(what: str, cache: str) -> Look:
    settings = load({"cache_dir": cache}, environ=os.environ, directory=Path("/"))
    if what == "packtrain":
        registry = wire(settings, Strict()).registry
        return lambda: registry.read("m").state.aliases["production"]
    if what == "search":
        mlflow = Mlflow(settings.registry)
        return lambda: dict(mlflow.models())["m"].aliases["production"]
    client = httpx.Client(base_url=settings.registry, timeout=60)
    asked = {"name": "m", "alias": "production"}
    return lambda: client.get("/api/2.0/mlflow/registered-models/alias", params=asked).raise_for_status()


if __name__ == "__main__":
    main()
