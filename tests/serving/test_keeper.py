"""An engine behind the proxy, and what is said of its end."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.serving.launcher import HastyClock

from packtrain.serving import Arguments, Launch
from packtrain.serving.keeper import Keeper
from packtrain.serving.processes import free_port


def keep(
    folder: Path, script: str, told: list[str], *, start_within: float, haste: float = 1
) -> tuple[Keeper, threading.Event]:
    """An engine that is a shell script, and has ``haste`` times less time than others; what is told of it, and its
    end."""
    vllm = folder / "vllm"
    vllm.write_text(script)
    vllm.chmod(0o755)
    over = threading.Event()

    def gone(reason: str) -> None:
        told.append(reason)
        over.set()

    keeper = Keeper(
        Launch("llama", str(folder), "llama/1", Arguments.read(["--host", "127.0.0.1", "--port", "1"])),
        str(vllm),
        [],
        start_within=start_within,
        clock=HastyClock(haste),
        healthy=lambda: told.append("healthy"),
        sick=told.append,
        gone=gone,
    )
    return keeper, over


DEAF = "#!/bin/sh\ntrap '' TERM\necho up > {up}\nexec sleep 1000\n"


def out_of_memory(keeper: Keeper) -> None:
    os.killpg(keeper.group, signal.SIGKILL)


@pytest.mark.parametrize(
    ("end", "how"),
    [
        (Keeper.stop, "was killed: it did not end within 30 s of SIGTERM"),
        (Keeper.kill, "was killed: it was not waited for"),
        (out_of_memory, "was ended by SIGKILL, as the kernel does when memory runs out"),
    ],
    ids=["after its grace", "at once", "by somebody else"],
)
def test_who_killed_an_engine(tmp_path: Path, end: Callable[[Keeper], None], how: str) -> None:
    up = tmp_path / "up"
    os.mkfifo(up)
    told = list[str]()
    keeper, over = keep(tmp_path, DEAF.format(up=up), told, start_within=1e9, haste=100)
    assert up.read_text() == "up\n"  # from now on it does not hear SIGTERM
    end(keeper)
    assert over.wait(60)
    assert told == [how]


def test_an_engine_that_does_not_get_ready(tmp_path: Path) -> None:
    told = list[str]()
    keeper, over = keep(tmp_path, "#!/bin/sh\nexec sleep 1000\n", told, start_within=1)
    deadline = time.monotonic() + 60
    while not told:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    keeper.stop()
    assert over.wait(60)
    assert told == ["was not ready after 1 s", "was ended by SIGTERM"]


def test_a_port_for_an_engine_is_its_own_before_it_listens() -> None:
    port = free_port()
    with socket.socket() as somebody, pytest.raises(OSError, match="in use"):
        somebody.bind(("127.0.0.1", port))
    with socket.create_server(("127.0.0.1", port)) as engine:
        assert engine.getsockname()[1] == port
