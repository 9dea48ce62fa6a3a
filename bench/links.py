"""A network link of its own: a namespace for the client, and a rate at which bytes come to it. Needs root."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

_OURS, _THEIRS = "10.213.77.1", "10.213.77.2"
_QUEUE = 0.02  # seconds that bytes may wait at the link's entry


@dataclass(frozen=True)
class Link:
    """``rate`` in bits a second, of what comes to the client, frames and all."""

    namespace: str
    interface: str  # our end
    host: str  # the address of our end

    def shape(self, gigabits: float) -> None:
        rate = int(gigabits * 1e9)
        burst = max(256 << 10, rate // 8 // 500)  # 2 ms, and more than one of the kernel's largest segments
        queue = burst + int(rate / 8 * _QUEUE)
        limits = ["rate", f"{rate}bit", "burst", str(burst), "limit", str(queue)]
        _run("tc", "qdisc", "replace", "dev", self.interface, "root", "tbf", *limits)

    def behind(self, command: Sequence[str]) -> list[str]:
        """The command, run on the client's side."""
        return ["ip", "netns", "exec", self.namespace, *command]


@contextmanager
def link() -> Iterator[Link]:
    """Until the end of this."""
    if os.geteuid() != 0:
        raise SystemExit("a link of its own needs root: run as root, or leave out links")
    name = f"ptb{os.getpid()}"
    ours, theirs = f"{name}a"[-15:], f"{name}b"[-15:]
    _run("ip", "netns", "add", name)
    try:
        _run("ip", "link", "add", ours, "type", "veth", "peer", "name", theirs, "netns", name)
        _run("ip", "address", "add", f"{_OURS}/24", "dev", ours)
        _run("ip", "link", "set", ours, "up")
        inside = ["ip", "-n", name]
        _run(*inside, "address", "add", f"{_THEIRS}/24", "dev", theirs)
        _run(*inside, "link", "set", theirs, "up")
        _run(*inside, "link", "set", "lo", "up")
        yield Link(name, ours, _OURS)
    finally:
        _run("ip", "netns", "delete", name)  # and both ends with it


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
