"""A process that promotes twenty times, each time expecting what it saw last, and prints what it was told.

    python -m tests.registry.contend STORE_URL MEMORY_FOLDER ACTOR

One JSON line for each attempt: ``["moved", sequence, from, to, reason]`` or ``["conflict", reason]``.
"""

from __future__ import annotations

import json
import sys
import uuid
from pathlib import Path

from packtrain.errors import Conflict
from packtrain.registry.ledger import LedgerRegistry
from packtrain.registry.memory import SeenLedgers
from packtrain.storage import open_store
from packtrain.wiring import SystemClock
from tests.registry.machines import promoting

ATTEMPTS = 20


def main(url: str, memory: str, actor: str) -> None:
    registry = LedgerRegistry(
        open_store(url),
        SeenLedgers(Path(memory)),
        actor=actor,
        clock=SystemClock(),
        nonce=lambda: uuid.uuid4().hex,
    )
    print(json.dumps("ready"), flush=True)
    sys.stdin.readline()
    current = registry.read("m").state.current("production") or 0
    for attempt in range(ATTEMPTS):
        reason = f"{actor}, attempt {attempt}"
        target = current % 5 + 1  # another version than the one that is expected
        try:
            log, event = registry.change("m", promoting(target, expect=current, reason=reason))
        except Conflict:
            print(json.dumps(["conflict", reason]))
            current = registry.read("m").state.current("production") or 0
        else:
            assert event is not None
            print(json.dumps(["moved", event.sequence, event.details["from"], event.details["to"], reason]))
            current = log.state.aliases["production"]


if __name__ == "__main__":
    main(*sys.argv[1:])
