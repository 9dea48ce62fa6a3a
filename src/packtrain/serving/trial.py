"""An engine for a while, to ask it something: no client sees it."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from tempfile import NamedTemporaryFile

from packtrain.errors import EngineError
from packtrain.ports import Clock
from packtrain.serving.gate import Answering
from packtrain.serving.keeper import Keeper
from packtrain.serving.processes import adopting_orphans, free_port
from packtrain.serving.vllm import Launch

START_WITHIN = 1800.0  # seconds


@contextmanager
def trial(launch: Launch, executable: str, keep_fds: Collection[int], clock: Clock) -> Iterator[Answering]:
    """Runs the engine on a port of its own, as long as the block lasts. Must be called in the main thread. Raises
    EngineError if it does not get ready; then what it printed is kept, in a temporary file that the error names."""
    key = secrets.token_urlsafe(24)
    environment = {**launch.environment, "VLLM_API_KEY": key}
    launch = replace(launch, arguments=launch.arguments.behind(free_port()), environment=environment)
    told: SimpleQueue[tuple[str, str]] = SimpleQueue()
    with (
        NamedTemporaryFile("wb", prefix="packtrain-vllm-", suffix=".log", delete=False) as output,
        adopting_orphans(),
    ):
        keeper = Keeper(
            launch,
            executable,
            keep_fds,
            start_within=START_WITHIN,
            clock=clock,
            healthy=lambda: told.put(("healthy", "")),
            sick=lambda why: told.put(("sick", why)),
            gone=lambda how: told.put(("gone", how)),
            output=output.fileno(),
        )
        what, how = "", ""
        try:
            what, how = told.get()
            if what != "healthy":
                raise EngineError(f"vLLM {how} before it was ready", hint=f"Its own output says why: {output.name}")
            Path(output.name).unlink(missing_ok=True)
            yield Answering(keeper.endpoint, launch.name, key)
        finally:
            keeper.stop()
            while what != "gone":
                what, how = told.get()
