"""An engine's processes: a group of their own, led by the one that we start, which dies with us.

vLLM runs an API server, an engine core and workers. When the leader has ended, for whatever reason, the rest of the
group is killed and waited for: nothing keeps the accelerator's memory, and nothing is left for an init that a
container may not have.
"""

from __future__ import annotations

import ctypes
import http.client
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from packtrain.ports import Clock
from packtrain.serving import tether
from packtrain.serving.arguments import Endpoint
from packtrain.serving.vllm import Launch, command_line, environment

GRACE = 30.0  # seconds beyond --shutdown-timeout: vLLM's workers sometimes need that long to notice
POLL = 0.25  # seconds
SETTLE = 5.0  # seconds for what the leader leaves behind
PROBE_TIMEOUT = 2.0  # seconds

PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>


def spawn(
    launch: Launch, executable: str, keep_fds: Collection[int], *, output: int | None = None
) -> subprocess.Popen[bytes]:
    """Starts an engine, which inherits ``keep_fds`` (the pins) and our standard streams, or prints to ``output``.
    SIGTERM reaches it when the calling thread ends, even if we are killed: so call it from the main thread. Raises
    UsageError before that."""
    command = command_line(launch, executable)
    return subprocess.Popen(
        [sys.executable, "-I", "-S", tether.__file__, str(os.getpid()), *command],
        env=environment(launch),
        stdout=output,
        stderr=output,
        pass_fds=tuple(keep_fds),
        start_new_session=True,
    )


def is_healthy(endpoint: Endpoint, timeout: float = PROBE_TIMEOUT) -> bool:
    """vLLM listens only when the model is loaded, so its first 200 says that it is ready."""
    connection = http.client.HTTPConnection(endpoint.reachable_host, endpoint.port, timeout=timeout)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def free_port() -> int:
    """A port of the loopback that nobody has. For a minute the kernel gives it to nobody either, because a connection
    has just ended there; who asks for it by its number, as servers do (SO_REUSEADDR), gets it all the same."""
    with socket.create_server(("127.0.0.1", 0)) as probe, socket.create_connection(probe.getsockname()):
        probe.accept()[0].close()
        return int(probe.getsockname()[1])


def end_group(engine: subprocess.Popen[bytes], clock: Clock) -> None:
    """Ends what the leader left behind, and reaps it all. A moment is given, because Python's resource tracker then
    removes the shared memory that nobody else would."""
    if engine.poll() is None:  # only if watching it failed
        os.killpg(engine.pid, signal.SIGKILL)
        engine.wait()
    deadline = clock.monotonic() + SETTLE
    signum = signal.SIGTERM
    while _reap(engine.pid):  # and as long as it has members, its number is nobody else's
        os.killpg(engine.pid, signum)
        clock.sleep(POLL)
        if clock.monotonic() >= deadline:
            signum = signal.SIGKILL


def _reap(group: int) -> bool:
    """Reaps the dead of a group. Whether others of it live."""
    with suppress(ChildProcessError):
        while os.waitpid(-group, os.WNOHANG)[0]:
            pass
        return True
    return False


def how_it_ended(returncode: int, killed: str = "") -> str:
    """In words. ``killed``: why we killed it, if we did."""
    if returncode >= 0:
        return f"ended with exit code {returncode}"
    if returncode == -signal.SIGKILL:
        return f"was killed: {killed}" if killed else "was ended by SIGKILL, as the kernel does when memory runs out"
    return f"was ended by {signal.Signals(-returncode).name}"


@contextmanager
def exit_of(process: int) -> Iterator[int]:
    """A descriptor that becomes readable when a child ends."""
    descriptor = os.pidfd_open(process)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def adopting_orphans() -> Iterator[None]:
    """Makes the orphans of our descendants our own children, so that they can be waited for."""
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
    finally:
        libc.prctl(PR_SET_CHILD_SUBREAPER, 0)


def begun(process: int) -> int | None:
    """When a process was started, in clock ticks since the boot: with its number, it names one process of this boot."""
    stat = _stat(process)
    return int(stat[19]) if stat else None


def living(group: int) -> dict[int, int]:
    """The processes of a group that live, and when each was started."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        stat = _stat(int(entry.name))
        if stat and int(stat[2]) == group and stat[0] not in "ZX":
            found[int(entry.name)] = int(stat[19])
    return found


def _stat(process: int) -> list[str]:
    """The fields of /proc/PID/stat from the third on (proc(5)): state, parent, group, ..., start time at 19."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
