"""A process of one node: an engine, or somebody who pulls and lets go.

    python -m tests.cache.race STORE HOME QUOTA KIND SEED ROUNDS

An engine pins a version at random and checks, as long as it lives, that nothing of it goes away; a puller pulls one,
checks the whole of it, and ends its lease. Prints one JSON line: how often it was served, and how often there was no
room. Ends with 1 at the first thing that is not as it should be.
"""

from __future__ import annotations

import json
import os
import random
import sys
from pathlib import Path

from packtrain.errors import LocalDiskError
from packtrain.model.manifest import FILE_NAME
from packtrain.storage.directory import DirectoryStore
from packtrain.wiring import SystemClock
from tests.cache.conftest import SIZE, Node, files
from tests.flows.conftest import contents


def require_whole(path: Path, number: int) -> None:
    found = contents(path)
    assert found.pop(FILE_NAME, None), f"{path} is gone"
    assert found == files(number, SIZE), f"{path} is not whole"


def main(store: str, home: str, quota: str, kind: str, seed: str, rounds: str) -> None:
    choose = random.Random(seed)
    node = Node(DirectoryStore(Path(store)), Path(home), quota=quota, clock=SystemClock())  # type: ignore[arg-type]
    served = full = 0
    for _ in range(int(rounds)):
        number = choose.randint(1, 4)
        try:
            if kind == "engine":
                pin = node.hold(f"llama/{number}")
                path = node.cache.path(node.registry.remembered("llama").state.version(number).digest)
                for _ in range(choose.randint(1, 5)):
                    require_whole(path, number)
                    os.sched_yield()
                pin.release()
            else:
                require_whole(node.pull(f"llama/{number}").path, number)
                node.unpin(f"llama/{number}")
            served += 1
        except LocalDiskError as error:
            if "does not fit" not in error.message:
                raise
            full += 1
    print(json.dumps([served, full]))


if __name__ == "__main__":
    main(*sys.argv[1:])
