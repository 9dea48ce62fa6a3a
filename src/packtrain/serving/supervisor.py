"""Staying in front of an engine: it is started, watched until it is ready, passed every signal, and gone when we
are.

The engine's processes (vLLM runs an API server, an engine core and workers) are one process group, led by the one
that we start, and their orphans become our children. So when the leader has ended, for whatever reason, the rest
can be killed and waited for: nothing keeps the accelerator's memory, and nothing is left for an init that a
container may not have.
"""

from __future__ import annotations

import ctypes
import http.client
import math
import os
import select
import signal
import subprocess
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress

from packtrain.ports import Clock, Reporter
from packtrain.serving import tether
from packtrain.serving.arguments import Endpoint
from packtrain.serving.vllm import Launch, command_line, environment, refuse_taken_port

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
FORWARDED = (*STOPS, signal.SIGUSR1, signal.SIGUSR2)

GRACE = 30.0  # seconds beyond --shutdown-timeout: vLLM's workers sometimes need that long to notice
POLL = 0.25  # seconds
SETTLE = 5.0  # seconds for what the leader leaves behind
PROBE_TIMEOUT = 2.0  # seconds

PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>


def supervise(launch: Launch, executable: str, keep_fds: Collection[int], *, reporter: Reporter, clock: Clock) -> int:
    """Runs the engine to its end and returns its exit code (128 + n if signal n ended it).

    The engine inherits ``keep_fds`` (the pins) and our standard streams. SIGINT, SIGTERM and the like go to it;
    after the first it may finish what it is doing, until ``--shutdown-timeout`` and 30 s have passed or Ctrl-C
    comes again. Dies with us: SIGTERM reaches it even if we are killed. Must be called from the main thread.
    Raises UsageError and EngineError before anything is started.
    """
    command = command_line(launch, executable)
    grace = GRACE + launch.arguments.integer("--shutdown-timeout", 0)
    endpoint, hidden = launch.arguments.endpoint, launch.arguments.hides_health
    refuse_taken_port(endpoint)

    reporter.note("starting vLLM")
    if hidden:
        reporter.note(f"with {hidden}, whether vLLM is ready cannot be seen from here: its log says it")
    with _received_signals() as signals, _adopting_orphans():
        engine = subprocess.Popen(
            [sys.executable, "-I", "-S", tether.__file__, str(os.getpid()), *command],
            env=environment(launch),
            pass_fds=tuple(keep_fds),
            start_new_session=True,
        )
        try:
            watched = None if hidden else endpoint
            ready, stopped = _watch(engine.pid, launch.name, watched, grace, signals, reporter, clock)
        finally:
            _end_group(engine, clock)
    if not stopped:
        early = " before it was ready; its log says why" if watched and not ready else ""
        reporter.note(f"vLLM {_how_it_ended(engine.returncode)}{early}")
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
    with _exit_of(leader) as ended:
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

            if endpoint is not None and not ready and deadline is None and _is_healthy(endpoint):
                ready = True
                reporter.note(f"{name} is ready at {endpoint.url} after {clock.monotonic() - started:.0f} s")


def _is_healthy(endpoint: Endpoint) -> bool:
    """vLLM listens only when the model is loaded, so its first 200 says that it is ready."""
    connection = http.client.HTTPConnection(endpoint.reachable_host, endpoint.port, timeout=PROBE_TIMEOUT)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _end_group(engine: subprocess.Popen[bytes], clock: Clock) -> None:
    """Ends what the leader left behind, and reaps it all. A moment is given, because Python's resource tracker then
    removes the shared memory that nobody else would."""
    if engine.poll() is None:  # only if watching it failed
        os.killpg(engine.pid, signal.SIGKILL)
        engine.wait()
    deadline = clock.monotonic() + SETTLE
    signum = signal.SIGTERM
    while _has_members(engine.pid):  # and as long as it has, its number is nobody else's
        os.killpg(engine.pid, signum)
        clock.sleep(POLL)
        if clock.monotonic() >= deadline:
            signum = signal.SIGKILL


def _has_members(group: int) -> bool:
    """Whether a process of the group lives. Reaps those that do not."""
    with suppress(ChildProcessError):
        while os.waitpid(-group, os.WNOHANG)[0]:
            pass
        return True
    return False


def _how_it_ended(returncode: int) -> str:
    if returncode >= 0:
        return f"ended with exit code {returncode}"
    cause = ", as the kernel does when memory runs out" if returncode == -signal.SIGKILL else ""
    return f"was ended by {signal.Signals(-returncode).name}{cause}"


@contextmanager
def _exit_of(process: int) -> Iterator[int]:
    """A descriptor that becomes readable when a child ends."""
    descriptor = os.pidfd_open(process)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


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


@contextmanager
def _adopting_orphans() -> Iterator[None]:
    """Makes the orphans of our descendants our own children, so that they can be waited for."""
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
    finally:
        libc.prctl(PR_SET_CHILD_SUBREAPER, 0)
