"""An engine behind the proxy, from its start to its end: a thread watches it and tells what happens to it."""

from __future__ import annotations

import math
import os
import select
import signal
import subprocess
from collections.abc import Callable, Collection
from threading import Lock, Thread

from packtrain.ports import Clock
from packtrain.serving.arguments import Endpoint
from packtrain.serving.processes import GRACE, POLL, end_group, exit_of, how_it_ended, is_healthy, spawn
from packtrain.serving.vllm import Launch

CHECK = 5.0  # seconds between two looks at the health of an engine that was healthy
MISSED = 6  # such looks in a row without an answer: the engine is given up
PATIENCE = 10.0  # seconds for each of these; a busy API server may take a while


class Keeper:
    """``healthy()``, ``sick(reason)`` and ``gone(reason)`` are told from its thread: the first when the engine answers
    for the first time, the second when it does not get there within ``start_within`` seconds or stops answering, the
    third once, when no process of it is left. What the engine prints goes to ``output``, or where ours does.

    Make it in the main thread (`processes.spawn`).
    """

    def __init__(
        self,
        launch: Launch,
        executable: str,
        keep_fds: Collection[int],
        *,
        start_within: float,
        clock: Clock,
        healthy: Callable[[], None],
        sick: Callable[[str], None],
        gone: Callable[[str], None],
        output: int | None = None,
    ) -> None:
        endpoint = launch.arguments.endpoint
        assert endpoint is not None
        self.endpoint: Endpoint = endpoint
        self._grace = GRACE + launch.arguments.integer("--shutdown-timeout", 0)
        self._start_within = start_within
        self._clock = clock
        self._healthy, self._sick, self._gone = healthy, sick, gone
        self._stopping = self._killing = False
        self._killed = ""  # why, if we did
        self._ending = Lock()  # of the pipe
        self._wake_reader, self._wake_writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._process: subprocess.Popen[bytes] = spawn(launch, executable, keep_fds, output=output)
        self._thread = Thread(target=self._keep, name=f"engine-{self._process.pid}", daemon=True)
        self._thread.start()

    @property
    def group(self) -> int:
        """The number of the engine's process group, and of its leader."""
        return self._process.pid

    def stop(self) -> None:
        """Has the engine end: SIGTERM, and when its grace is over, SIGKILL. Returns at once."""
        with self._ending:
            self._stopping = True
            if self._wake_writer >= 0:
                os.write(self._wake_writer, b"x")

    def kill(self) -> None:
        """Has the engine end now."""
        self._killing = True
        self.stop()

    def _keep(self) -> None:
        try:
            self._watch()
        finally:
            end_group(self._process, self._clock)
            with self._ending:
                os.close(self._wake_reader)
                os.close(self._wake_writer)
                self._wake_writer = -1
            self._gone(how_it_ended(self._process.returncode, self._killed))

    def _watch(self) -> None:
        """Returns when the leader has ended."""
        begun = self._clock.monotonic()
        ready, missed, deadline = False, 0, math.inf
        with exit_of(self._process.pid) as ended:
            while True:
                pause = POLL if not ready or self._stopping else CHECK
                readable = select.select([ended, self._wake_reader], [], [], pause)[0]
                if ended in readable:
                    return
                now = self._clock.monotonic()
                if self._wake_reader in readable:
                    os.read(self._wake_reader, 64)
                    if deadline == math.inf:
                        os.kill(self._process.pid, signal.SIGTERM)
                        deadline = now + self._grace
                if self._stopping:
                    if self._killing or now >= deadline:
                        late = f"it did not end within {self._grace:.0f} s of SIGTERM"
                        self._killed = "it was not waited for" if self._killing else late
                        os.killpg(self._process.pid, signal.SIGKILL)
                    continue
                if is_healthy(self.endpoint, PATIENCE if ready else POLL):
                    missed = 0
                    if not ready:
                        ready = True
                        self._healthy()
                elif ready:
                    missed += 1
                    if missed == MISSED:
                        self._sick("stopped answering /health")
                elif now >= begun + self._start_within:
                    begun = math.inf
                    self._sick(f"was not ready after {self._start_within:.0f} s")
