"""What tests ask of the machine that they run on: who lives, and which ports are free."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from packtrain.testing import ports
from packtrain.testing.ports import HIGHEST, LOWEST, free_port, free_ports
from packtrain.testing.processes import living, members

LEADERLESS = """
import ctypes, os, sys, threading, time
def live_on():
    while open("/proc/self/stat").read().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)
    print("alone", flush=True)
    sys.stdin.read()
    os._exit(0)
threading.Thread(target=live_on).start()
ctypes.CDLL(None).syscall({"x86_64": 60, "aarch64": 93}[os.uname().machine], 0)  # exit: this thread alone
"""


def test_a_process_lives_until_its_last_thread_has_ended() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", LEADERLESS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        assert process.stdin and process.stdout
        assert process.stdout.readline() == b"alone\n"
        assert ") Z " in Path(f"/proc/{process.pid}/stat").read_text()
        assert members(process.pid) == [process.pid]
        process.stdin.close()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # not reaped: all that is left of it is its number
        assert members(process.pid) == []
        assert Path(f"/proc/{process.pid}").exists()


def test_families() -> None:
    assert [p for p in living() if p.pid == os.getpid()] == [(os.getpid(), os.getppid(), os.getpgrp())]


def test_ports_are_nobody_elses() -> None:
    program = "from packtrain.testing.ports import *; print(*free_ports(300)); input()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdin and other.stdout
        theirs = set(map(int, other.stdout.readline().split()))
        ours = free_ports(100)
        other.stdin.close()
    assert len(theirs) == 300 and len(set(ours)) == 100
    assert not theirs & set(ours)
    assert all(LOWEST <= port < HIGHEST for port in ours)


def test_a_port_that_somebody_listens_on_is_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken = listener.getsockname()[1]
        candidates = iter([taken])
        monkeypatch.setattr(ports, "randrange", lambda *span: next(candidates, 0) or random.randrange(*span))
        assert free_port() != taken
        assert not next(candidates, None)


def test_ports_beside_ports() -> None:
    for port in free_ports(20, beside=5000):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", port + 5000))
