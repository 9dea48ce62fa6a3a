"""A worse wire to a real HTTP server: slow, far away, and failing where a plan says.

    with relay(server.endpoint, latency=0.02, rate=125e6) as wire:   # 20 ms, 1 Gbit/s
        wire.plan = lambda request: Fault.RESET if request.number == 7 else None
        ...                                                          # AWS_ENDPOINT_URL = wire.endpoint
        wire.traffic.down                                            # bytes of bodies that clients were sent

Heads pass as they are, the Host header included: S3 signatures cover it, so a client that signs for ``wire.endpoint``
is believed by the server behind it. Bodies are not looked at: one core carries several Gbit/s. Each connection is one
thread, because HTTP/1.1 goes one way at a time.
"""

from __future__ import annotations

import random
import re
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from packtrain.testing.faults import RETRY_AFTER, Fault
from packtrain.testing.ports import free_port

_BUFFER = 256 << 10
_SHAPED_PIECE = 32 << 10  # bytes: those of several connections take turns on a slow wire
_CREDIT = 0.005  # seconds that a shaped wire may catch up, because nobody wakes up in time
_MAX_HEAD = 64 << 10
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER that says: a close throws away what was not sent, and says so
_ANSWERS = {
    Fault.UNAVAILABLE: "500 Internal Server Error\r\n",
    Fault.SLOW_DOWN: f"503 Slow Down\r\nRetry-After: {RETRY_AFTER}\r\n",
    Fault.TOO_MANY: f"429 Too Many Requests\r\nRetry-After: {RETRY_AFTER}\r\n",
}
_CODES = {Fault.UNAVAILABLE: "InternalError", Fault.SLOW_DOWN: "SlowDown", Fault.TOO_MANY: "TooManyRequests"}


@dataclass(slots=True)
class Request:
    """``number`` counts from 0, in the order in which the relay had their heads. ``down``: bytes of the answer's body
    that the client was sent so far."""

    number: int
    method: str
    target: str
    down: int = 0


@dataclass
class Traffic:
    """What passed so far, in bytes: of bodies ``up`` to the server and ``down`` to clients, and of their heads.

    Counted where clients are: what the relay answers by itself is in it, what it keeps from them is not.
    """

    requests: int = 0
    connections: int = 0
    up: int = 0
    down: int = 0
    heads_up: int = 0
    heads_down: int = 0


Plan = Callable[[Request], Fault | None]


class Relay:
    """Everything may be changed while it runs.

    ``latency``: seconds that the first byte of each answer, and each new connection, takes longer (a round trip; there
    is no slow start). ``rate``: bytes a second that pass each way, all connections together; None for what this
    machine gives. ``plan`` says what happens to a request; ``stall`` is how many seconds a `Fault.STALL` takes at
    most, before the connection is closed.
    """

    def __init__(
        self, upstream: str, *, latency: float, rate: float | None, plan: Plan | None, stall: float, host: str
    ) -> None:
        target = urlsplit(upstream)
        self._upstream = (target.hostname or "", target.port or 80)
        self.latency = latency
        self.rate = rate
        self.plan = plan
        self.stall = stall
        self.traffic = Traffic()
        self.requests: list[Request] = []
        self._up, self._down = _Meter(self), _Meter(self)
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._open: set[socket.socket] = set()
        self._threads: set[threading.Thread] = set()
        self._host = host
        self.port = free_port()  # nobody takes it while this refuses
        self._listener = socket.create_server((host, self.port), backlog=256)
        self._start(self._accept, self._listener)

    @property
    def endpoint(self) -> str:
        return f"http://{self._host}:{self.port}"

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Inside, connections are refused, and those that were open are reset."""
        self._stop_listening()
        self._reset_all()
        try:
            yield
        finally:
            self._listener = socket.create_server((self._host, self.port), backlog=256)
            self._start(self._accept, self._listener)

    def close(self) -> None:
        self._closing.set()
        self._stop_listening()
        self._reset_all()
        for thread in list(self._threads):
            thread.join()

    def pause(self, seconds: float) -> None:
        """Less when the relay is closed."""
        if seconds > 0:
            self._closing.wait(seconds)

    # Connections

    def _start(self, act: Callable[[socket.socket], None], subject: socket.socket) -> None:
        def run() -> None:
            try:
                act(subject)
            finally:
                with self._lock:
                    self._threads.discard(thread)

        thread = threading.Thread(target=run, name="relay", daemon=True)
        with self._lock:
            self._threads.add(thread)
        thread.start()

    def _stop_listening(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes up the thread that accepts
        self._listener.close()

    def _reset_all(self) -> None:
        with self._lock:
            for each in self._open:
                with suppress(OSError):
                    each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                    each.shutdown(socket.SHUT_RDWR)

    @contextmanager
    def _held(self, each: socket.socket) -> Iterator[socket.socket]:
        each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            self._open.add(each)
        try:
            yield each
        finally:
            with self._lock:
                self._open.discard(each)
            each.close()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:  # it was closed
                return
            with self._lock:
                self.traffic.connections += 1
            self._start(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        """One connection of a client, and one to the server for it, until either ends it."""
        with suppress(OSError, _Ended), self._held(client):
            self.pause(self.latency)
            with self._held(socket.create_connection(self._upstream)) as server:
                exchange = _Exchange(self, _Side(client, self._down), _Side(server, self._up))
                while not self._closing.is_set() and exchange.run():
                    pass

    # What an exchange tells

    def begin(self, head: _Head) -> Request:
        method, target, _ = head.first.split(" ", 2)
        with self._lock:
            request = Request(self.traffic.requests, method, target)
            self.traffic.requests += 1
            self.traffic.heads_up += len(head.raw)
            self.requests.append(request)
        return request

    def count(self, request: Request, *, up: int = 0, down: int = 0, head: int = 0) -> None:
        with self._lock:
            request.down += down
            self.traffic.up += up
            self.traffic.down += down
            self.traffic.heads_down += head


@contextmanager
def relay(
    upstream: str,
    *,
    latency: float = 0.0,
    rate: float | None = None,
    plan: Plan | None = None,
    stall: float = 60.0,
    host: str = "127.0.0.1",
) -> Iterator[Relay]:
    """A relay on a free port of ``host``, an address of this machine, to the server at ``upstream``
    (http://host:port), until the end of this. See `Relay` for the rest."""
    wire = Relay(upstream, latency=latency, rate=rate, plan=plan, stall=stall, host=host)
    try:
        yield wire
    finally:
        wire.close()


class _Ended(Exception):
    """The connection is over: somebody closed it, or a fault did."""


class _Meter:
    """Lets bytes pass in one direction no faster than the relay's rate, first come, first served."""

    def __init__(self, wire: Relay) -> None:
        self._wire = wire
        self._lock = threading.Lock()
        self._free_at = 0.0

    @property
    def piece(self) -> int:
        return _SHAPED_PIECE if self._wire.rate else _BUFFER

    def wait(self, count: int) -> None:
        """Until ``count`` more bytes are through."""
        if not self._wire.rate:
            return
        with self._lock:
            now = time.monotonic()
            self._free_at = max(self._free_at, now - _CREDIT) + count / self._wire.rate
            late = self._free_at - now
        self._wire.pause(late)


@dataclass(frozen=True, slots=True)
class _Head:
    """Of a request or an answer. ``raw`` is as it came; header names are lower case in ``fields``."""

    raw: bytes
    first: str
    fields: dict[str, str]

    @classmethod
    def of(cls, raw: bytes) -> _Head:
        first, *lines = raw.decode("latin-1").rstrip("\r\n").split("\r\n")
        pairs = (line.partition(":") for line in lines)
        return cls(raw, first, {name.lower(): value.strip() for name, _, value in pairs})

    @property
    def status(self) -> int:
        return int(self.first.split(" ", 2)[1])

    @property
    def length(self) -> int | None:
        """Of the body; None if it says so itself, in chunks."""
        if "chunked" in self.fields.get("transfer-encoding", "").lower():
            return None
        return int(self.fields.get("content-length", "0"))

    @property
    def closes(self) -> bool:
        return "close" in self.fields.get("connection", "").lower() or self.first.endswith("HTTP/1.0")

    def with_length(self, length: int) -> bytes:
        return re.sub(rb"(?i)(\r\ncontent-length:)[^\r]*", rb"\1 %d" % length, self.raw)


@dataclass
class _Side:
    """One end of a connection. What is read from it stands in one reused buffer; what is sent to it is metered."""

    socket: socket.socket
    meter: _Meter
    _buffer: memoryview = field(default_factory=lambda: memoryview(bytearray(_BUFFER)))
    _begin: int = 0
    _end: int = 0

    def send(self, data: bytes | memoryview) -> None:
        self.meter.wait(len(data))
        self.socket.sendall(data)

    def head(self) -> _Head:
        return _Head.of(self._until(b"\r\n\r\n"))

    def body(self, length: int | None, *, piece: int) -> Iterator[memoryview]:
        """The bytes of a body, in pieces that are valid until the next one is asked for."""
        if length is not None:
            yield from self._pieces(length, piece)
            return
        while size := int(self._until(b"\r\n").split(b";")[0], 16):
            yield from self._pieces(size, piece)
            self._until(b"\r\n")
        while self._until(b"\r\n") != b"\r\n":  # trailers
            pass

    def _pieces(self, length: int, most: int) -> Iterator[memoryview]:
        while length:
            if self._begin == self._end:
                self._begin, self._end = 0, self._receive(self._buffer[: min(length, most)])
            count = min(length, most, self._end - self._begin)
            self._begin += count
            length -= count
            yield self._buffer[self._begin - count : self._begin]

    def _until(self, end: bytes) -> bytes:
        """Everything up to the next ``end`` and with it."""
        while True:
            found = bytes(self._buffer[self._begin : min(self._end, self._begin + _MAX_HEAD)])
            at = found.find(end)
            if at >= 0:
                self._begin += at + len(end)
                return found[: at + len(end)]
            if len(found) == _MAX_HEAD:
                raise _Ended
            self._buffer[: len(found)] = found
            self._begin, self._end = 0, len(found)
            self._end += self._receive(self._buffer[self._end :])

    def _receive(self, into: memoryview) -> int:
        count = self.socket.recv_into(into)
        if not count:
            raise _Ended
        return count


@dataclass
class _Exchange:
    """Requests of one client, one after the other."""

    wire: Relay
    client: _Side
    server: _Side
    request: Request = field(init=False)

    def run(self) -> bool:
        """Passes one request and its answer. Returns whether there may be another."""
        head = self.client.head()
        self.request = self.wire.begin(head)
        fault = self.wire.plan(self.request) if self.wire.plan else None
        if fault in _ANSWERS:
            self._answer(head, fault)
            return False
        self.server.send(head.raw)
        early = self._interim() if "100-continue" in head.fields.get("expect", "").lower() else None
        if early is None:
            with suppress(OSError):  # the server answers before it has heard everything, and hears no more
                self._pass_up(head)
        answer = early or self.server.head()
        while answer.status < 200:
            answer = self.server.head()
        self._pass_down(head, answer, fault)
        return early is None and not (head.closes or answer.closes)

    def _interim(self) -> _Head | None:
        """Passes what the server says before it has seen the body: to go on (None), or its answer."""
        answer = self.server.head()
        if answer.status != 100:
            return answer
        self.wire.pause(self.wire.latency)
        self.client.send(answer.raw)
        self.wire.count(self.request, head=len(answer.raw))
        return None

    def _pass_up(self, head: _Head) -> None:
        for piece in self.client.body(head.length, piece=self.server.meter.piece):
            self.wire.count(self.request, up=len(piece))
            self._frame(self.server, piece, chunked=head.length is None)
        if head.length is None:
            self.server.send(b"0\r\n\r\n")

    def _pass_down(self, head: _Head, answer: _Head, fault: Fault | None) -> None:
        bare = head.first.startswith("HEAD ") or answer.status in (204, 304)
        length = 0 if bare else answer.length
        pieces = self.server.body(length, piece=self.client.meter.piece)
        if fault is Fault.LOST_ANSWER:
            for _ in pieces:
                pass  # the server has done what it was asked for
            raise _Ended
        if fault is Fault.SHUFFLED:
            fault = None
            if "list-type=" in self.request.target:
                pieces = iter([memoryview(_shuffled(b"".join(bytes(piece) for piece in pieces)))])
        self.wire.pause(self.wire.latency)
        if length == 0 and fault in (Fault.CUT_SHORT, Fault.RESET, Fault.STALL):
            self._end(fault)
        raw, half = answer.raw, (length or 0) // 2
        if fault is Fault.SHORT and length:
            raw = answer.with_length(half)
        self.client.send(raw)
        self.wire.count(self.request, head=len(raw))
        self._pass_body(pieces, fault, half, chunked=length is None)

    def _pass_body(self, pieces: Iterator[memoryview], fault: Fault | None, half: int, *, chunked: bool) -> None:
        """What is wrong is so from the byte ``half`` on."""
        done = 0
        for piece in pieces:
            wrong = fault is not None and done <= half < done + len(piece)
            if wrong and fault is Fault.FLIPPED_BIT:
                piece[half - done] ^= 1
            elif wrong:
                piece = piece[: half - done]
            self.wire.count(self.request, down=len(piece))
            self._frame(self.client, piece, chunked=chunked)
            done += len(piece)
            if wrong and fault is Fault.SHORT and chunked:
                break
            if wrong and fault in (Fault.CUT_SHORT, Fault.RESET, Fault.STALL, Fault.SHORT):
                self._end(fault)
        if chunked:
            self.client.send(b"0\r\n\r\n")
        if fault is Fault.SHORT:
            raise _Ended

    @staticmethod
    def _frame(side: _Side, piece: memoryview, *, chunked: bool) -> None:
        if not chunked:
            side.send(piece)
        elif piece:
            side.send(b"%x\r\n%b\r\n" % (len(piece), bytes(piece)))

    def _answer(self, head: _Head, fault: Fault) -> None:
        """In the server's place, which never hears of it."""
        if "expect" not in head.fields:
            for piece in self.client.body(head.length, piece=_BUFFER):
                self.wire.count(self.request, up=len(piece))
        body = f"<Error><Code>{_CODES[fault]}</Code><Message>a fault was planned</Message></Error>".encode()
        if head.first.startswith("HEAD "):
            body = b""
        self.wire.pause(self.wire.latency)
        raw = f"HTTP/1.1 {_ANSWERS[fault]}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
        self.client.send(raw + body)
        self.wire.count(self.request, head=len(raw), down=len(body))

    def _end(self, fault: Fault) -> None:
        """What is to come never comes."""
        client = self.client.socket
        if fault is Fault.STALL:
            until = time.monotonic() + self.wire.stall
            while time.monotonic() < until:
                if select.select([client], [], [], 0.05)[0]:  # the client has given up, or the relay is closed
                    break
        elif fault is Fault.RESET:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        raise _Ended


def _shuffled(body: bytes) -> bytes:
    """A listing whose entries come in another order: not even sorted backwards. It is as long as it was."""
    for entry in (rb"<Contents>.*?</Contents>", rb"<CommonPrefixes>.*?</CommonPrefixes>"):
        entries = re.findall(entry, body, re.DOTALL)
        random.Random(len(entries)).shuffle(entries)
        rest = iter(entries)
        body = re.sub(entry, lambda _, rest=rest: next(rest), body, flags=re.DOTALL)
    return body
