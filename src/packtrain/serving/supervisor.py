"""Staying in front of an engine: it is started, watched until it is ready, passed every signal, and gone when we
are.
"""

from __future__ import annotations

import math
import os
import select
import signal
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from packtrain.ports import Clock, Reporter
from packtrain.serving.arguments import Endpoint
from packtrain.serving.processes import (
    GRACE,
    POLL,
    adopting_orphans,
    end_group,
    exit_of,
    how_it_ended,
    is_healthy,
    spawn,
)
from packtrain.serving.vllm import Launch, command_line, refuse_taken_port

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
FORWARDED = (*STOPS, signal.SIGUSR1, signal.SIGUSR2)


def supervise(launch: Launch, executable: str, keep_fds: Collection[int], *, reporter: Reporter, clock: Clock) -> int:
    """Runs the engine to its end and returns its exit code (128 + n if signal n ended it).

    The engine inherits ``keep_fds`` (the pins) and our standard streams. SIGINT, SIGTERM and the like go to it;
    after the first it may finish what it is doing, until ``--shutdown-timeout`` and 30 s have passed or Ctrl-C
    comes again. Dies with us: SIGTERM reaches it even if we are killed. Must be called from the main thread.
    Raises UsageError and EngineError before anything is started.
    """
    command_line(launch, executable)  # what cannot work is refused first
    grace = GRACE + launch.arguments.integer("--shutdown-timeout", 0)
    endpoint, hidden = launch.arguments.endpoint, launch.arguments.hides_health
    refuse_taken_port(endpoint)

    reporter.note("starting vLLM")
    if hidden:
        reporter.note(f"with {hidden}, whether vLLM is ready cannot be seen from here: its log says it")
    with _received_signals() as signals, adopting_orphans():
        engine = spawn(launch, executable, keep_fds)
        try:
            watched = None if hidden else endpoint
            ready, stopped = _watch(engine.pid, launch.name, watched, grace, signals, reporter, clock)
        finally:
            end_group(engine, clock)
    if not stopped:
        early = " before it was ready; its log says why" if watched and not ready else ""
        reporter.note(f"vLLM {how_it_ended(engine.returncode)}{early}")
    return engine.returncode if engine.returncode >= 0 else 128 - engine.returncode


def _watch(
    leader: int,
    name: str,
    endpoint: Endpoint | None,
    grace: float,
    signals: _Signals,
    reporter: Reporter,
    clock: Clock,
) -> tuple[bool, bool]:
    """Returns when the leader has ended, without reaping it: whether it was seen ready, whether it was told to
    stop."""
    started = clock.monotonic()
    ready = False
    deadline: float | None = None  # for its end, once it was told to stop
    with exit_of(leader) as ended:
        while True:
            waiting = (endpoint is not None and not ready) or deadline is not None
            timeout = POLL if waiting else None
            if ended in select.select([ended, signals.descriptor], [], [], timeout)[0]:
                return ready, deadline is not None

            for signum in signals.take():
                if signum == signal.SIGINT and deadline is not None:
                    deadline = -math.inf
                    continue
                os.kill(leader, signum)
                if signum in STOPS and deadline is None:
                    deadline = clock.monotonic() + grace
                    reporter.note(f"stopping vLLM, for at most {grace:.0f} s; another Ctrl-C kills it at once")

            if deadline is not None and clock.monotonic() >= deadline:
                deadline = math.inf
                reporter.note("killing vLLM")
                os.killpg(leader, signal.SIGKILL)

            if endpoint is not None and not ready and deadline is None and is_healthy(endpoint):
                ready = True
                reporter.note(f"{name} is ready at {endpoint.url} after {clock.monotonic() - started:.0f} s")


class _Signals:
    """Signals that came and were not taken yet. ``descriptor`` is readable while there are any."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def take(self) -> list[int]:
        try:
            return [number for number in os.read(self.descriptor, 4096) if number in FORWARDED]
        except BlockingIOError:
            return []


@contextmanager
def _received_signals() -> Iterator[_Signals]:
    """Collects the signals to forward instead of acting on them. One that is ignored (nohup) stays ignored."""
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    handled = [s for s in FORWARDED if signal.getsignal(s) not in (signal.SIG_IGN, None)]
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    before = {signum: signal.signal(signum, lambda *_: None) for signum in handled}
    try:
        yield _Signals(reader)
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
        signal.set_wakeup_fd(wakeup)
        os.close(reader)
        os.close(writer)
