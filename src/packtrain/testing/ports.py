"""Ports for servers that others start: free when they were chosen, and nobody else's afterwards."""

from __future__ import annotations

import socket
from contextlib import suppress
from random import randrange

LOWEST, HIGHEST = 11_000, 32_000  # below those that Linux gives to connections and to port 0 (32768...)

_reservations: list[socket.socket] = []


def free_port() -> int:
    return free_ports(1)[0]


def free_ports(count: int, *, beside: int = 0) -> list[int]:
    """Distinct ports that nobody listens on; with ``beside``, each has another one as many above it.

    They stay the caller's as long as this process lives: whoever else asks here, in any process of this machine,
    gets others, and the kernel gives them to nobody.
    """
    ports: list[int] = []
    while len(ports) < count:
        port = randrange(LOWEST, HIGHEST - beside)
        if all(_reserve(number) for number in {port, port + beside}):
            ports.append(port)
    return ports


def _reserve(port: int) -> bool:
    """Takes the abstract name that stands for the port: the kernel frees it when this process ends."""
    reservation = socket.socket(socket.AF_UNIX)
    with suppress(OSError), socket.socket() as probe:
        reservation.bind(f"\0packtrain-port-{port}")
        probe.bind(("", port))
        _reservations.append(reservation)
        return True
    reservation.close()
    return False
