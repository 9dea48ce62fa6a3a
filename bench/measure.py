"""Whole processes, measured from outside, and contenders that take turns."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile

SERVER, CLIENT = 0, 1  # the cores of a two-core machine: a tool cannot take time from the server that it measures


@dataclass(frozen=True)
class Cost:
    wall: float  # seconds
    cpu: float  # seconds, user and system, its children's included
    peak: float  # MB resident, of the largest of its processes
    received: int = 0  # bytes that the server sent it, heads included, where they are counted
    server: float = 0.0  # how much of that time the server's cores were busy: 1 is all of it. 0 without a server


@dataclass
class Contender:
    """One way of doing a job: ``command`` for the n-th run, in which ``remove`` is what it leaves behind.

    ``before`` is called before each run; ``received`` gives the bytes that the server has sent since it was asked last.
    """

    name: str
    command: Callable[[int], Sequence[str]]
    verified: bool = False
    remove: Sequence[Path] = ()
    before: Callable[[], object] = lambda: None
    received: Callable[[], int] = lambda: 0
    environment: dict[str, str] = field(default_factory=dict)
    costs: list[Cost] = field(default_factory=list)


def race(contenders: Sequence[Contender], runs: int, environment: dict[str, str], *, memory: int = 0) -> None:
    """Interleaved: every contender once in each run, and each time another one first, so that the machine's moods, and
    what a contender leaves to the next, meet all of them alike.

    ``memory``: bytes that a contender fills, its files' in the page cache included. Twice as many are touched just
    before it starts, or all that are free: a virtual machine may give free memory back to its host, and getting it
    again takes longer than all that the contender does with it (0.9 to 2.1 CPU seconds a GB were measured, where
    writing took 0.2). With only as many, chance decided which memory a contender got.
    """
    for run in range(runs):
        first = run % len(contenders)
        for contender in (*contenders[first:], *contenders[:first]):
            contender.costs.append(_one(contender, run, environment, memory))
            cost = contender.costs[-1]
            print(f"    {run + 1}/{runs} {contender.name}: {cost.wall:.2f} s, {cost.cpu:.2f} CPU s", flush=True)


def _one(contender: Contender, run: int, environment: dict[str, str], memory: int) -> Cost:
    _remove(contender.remove)
    os.sync()  # what others left to write must not be written in our time
    contender.before()
    contender.received()
    _touch(min(2 * memory, _free() - _SPARE))
    try:
        return measure(contender.command(run), environment | contender.environment, received=contender.received)
    finally:
        _remove(contender.remove)


# Which free blocks Linux's page_reporting gives back to the host of a virtual machine: those of 2^order pages and more.
# No block is larger than 2^10, so 11 is none of them.
_PAGE_REPORTING = Path("/sys/module/page_reporting/parameters/page_reporting_order")
_NOTHING = "11"
_SPARE = 1 << 30  # bytes of free memory that nobody touches


@contextmanager
def memory_kept() -> Iterator[None]:
    """Inside, a virtual machine's free memory stays with it, if its kernel can be told so and we are root."""
    if not os.access(_PAGE_REPORTING, os.W_OK):
        yield
        return
    before = _PAGE_REPORTING.read_text()
    _PAGE_REPORTING.write_text(_NOTHING)
    try:
        yield
    finally:
        _PAGE_REPORTING.write_text(before)


def _touch(size: int) -> None:
    """Leaves that much free memory which the host has given, in such pieces as the page cache takes next."""
    piece = bytes(1 << 20)
    with TemporaryFile(buffering=0) as file:
        for _ in range(0, size, len(piece)):
            file.write(piece)


def _free() -> int:
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    return next(int(line[1]) * 1024 for line in lines if line[0] == "MemFree:")


def _remove(paths: Sequence[Path]) -> None:
    for path in paths:
        shutil.rmtree(path, ignore_errors=True)


# Run by a small process of its own: a child's peak memory counts that of the process which it was forked from.
_MEASURE = """
import json, os, resource, subprocess, sys, time
os.sched_setaffinity(0, json.loads(sys.argv[1]))
started = time.perf_counter()
process = subprocess.run(sys.argv[2:], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
wall = time.perf_counter() - started
if process.returncode:
    sys.exit(process.stderr.decode(errors="replace")[-3000:])
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1000]))
"""


def measure(command: Sequence[str], environment: dict[str, str], *, received: Callable[[], int] = lambda: 0) -> Cost:
    measuring = [sys.executable, "-I", "-c", _MEASURE, json.dumps(cores(_side)), *command]
    busy_before, all_before = _server_ticks()
    done = subprocess.run(measuring, env=environment, capture_output=True, text=True, check=False)
    busy, all_ = _server_ticks()
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    wall, cpu, peak = json.loads(done.stdout)
    server = (busy - busy_before) / max(1, all_ - all_before) if _side == CLIENT else 0.0
    return Cost(wall, cpu, peak, received(), server)


def _server_ticks() -> tuple[int, int]:
    """Of the server's cores since they started: those in which they could do nothing else, and all of them. What the
    host took from a virtual machine (steal) counts as busy. See proc_stat(5)."""
    ours = {f"cpu{number}" for number in cores(SERVER)}
    lines = map(str.split, Path("/proc/stat").read_text().splitlines())
    ticks = [list(map(int, numbers[:8])) for name, *numbers in lines if name in ours]
    everything = sum(map(sum, ticks))
    return everything - sum(idle + waiting for _, _, _, idle, waiting, *_ in ticks), everything


# Cores


_ALL_CORES = sorted(os.sched_getaffinity(0))  # before anybody is pinned
_side: int | None = CLIENT  # where contenders run


def cores(side: int | None) -> list[int]:
    """Those of the server's or of the client's side: one of two, half of more. All, where there are no sides."""
    half = max(1, len(_ALL_CORES) // 2)
    return {SERVER: _ALL_CORES[:half], CLIENT: _ALL_CORES[half:] or _ALL_CORES, None: _ALL_CORES}[side]


def pin_to_server_side() -> None:
    """This process and the servers that it starts from now on."""
    os.sched_setaffinity(0, cores(SERVER))


@contextmanager
def on_every_core() -> Iterator[None]:
    """Inside, contenders have all cores: there is no server that they could take time from."""
    global _side
    before, _side = _side, None
    try:
        yield
    finally:
        _side = before


def forget_pages(directory: Path) -> None:
    """Takes the files of a directory out of the page cache, for a cold read. Needs no root, and leaves others'."""
    for path in directory.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)
