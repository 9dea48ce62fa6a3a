"""Ranges of objects over HTTP, straight into the caller's buffer.

obstore gives every piece of a body in fresh memory, and the page faults of that cost more than hashing and writing it.
A signed URL read into one reused buffer costs none of them (docs/performance.md), so this is the way of the bytes of
models; everything else goes through obstore.
"""

from __future__ import annotations

import os
import ssl
import time
import weakref
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from pathlib import Path
from select import POLLIN, poll
from threading import Lock
from urllib.parse import SplitResult, unquote, urlsplit

from packtrain.storage.threads import start

_ERROR_BYTES = 16 << 10  # of an error's body: enough for S3's XML
_PIECE = 64 << 10  # bytes of a body's first piece
_FAST, _SLOW = 0.1, 0.5  # seconds
_IDLE = 64  # connections that are kept for the next request


class Rejected(Exception):
    """The server answered, and not with the bytes. ``retry_after`` in seconds, if it says when to come back."""

    def __init__(self, status: int, reason: str, body: str, retry_after: float | None) -> None:
        super().__init__(f"non-2xx status code: {status} {reason}\n{body}")
        self.status = status
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class Link:
    """A URL that may be asked for as it is, or with these headers."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)


class Wire:
    """The connections to one server, kept and used again by any number of threads.

    A request fails when nothing comes for ``stall`` seconds. Proxies are those of HTTP_PROXY, HTTPS_PROXY and
    NO_PROXY, and trust is that of SSL_CERT_FILE or the system, as for obstore, and that of the PEM file
    ``authorities``.
    """

    def __init__(self, *, stall: float, authorities: Path | None = None) -> None:
        self._stall = stall
        self._authorities = authorities
        self._context: ssl.SSLContext | None = None
        self._idle: list[HTTPConnection] = []
        self._opening: list[Future[None]] = []
        self._lock = Lock()
        weakref.finalize(self, _close, self._idle)

    def open(self, link: Link, count: int) -> None:
        """Begins to open so many connections to where a link leads, beside what the caller does next. Requests that
        come meanwhile wait for them, and raise what was in the way."""
        url = urlsplit(link.url)
        for _ in range(count):
            connection = self._connection(url)
            with suppress(RuntimeError):  # there may be no more threads
                opening = start(partial(self._open, connection))
                with self._lock:
                    self._opening.append(opening)
                opening.add_done_callback(self._opened)

    def _open(self, connection: HTTPConnection) -> None:
        connection.connect()
        self._keep(connection)

    def _opened(self, opening: Future[None]) -> None:
        """Or not: then only whoever waits for it is told."""
        with self._lock, suppress(ValueError):  # somebody waits for it
            self._opening.remove(opening)

    def read(self, link: Link, start: int, length: int, buffer: memoryview) -> Iterator[memoryview]:
        """The bytes ``[start, start + length)`` of what a link names, as views of ``buffer``; ``length`` > 0.

        They end at multiples of their size in the object: the page cache takes large aligned pieces at the least cost.
        Ends early where the object does. Raises Rejected, OSError (a connection that broke among them), HTTPException.
        """
        connection, response = self._request(link, f"bytes={start}-{start + length - 1}")
        whole = False
        try:
            if response.status != 206 and not (response.status == 200 and start == 0 and response.length == length):
                raise _rejected(response)
            if not response.getheader("Content-Range", f"bytes {start}-").startswith(f"bytes {start}-"):
                raise HTTPException("the server answers with another range than it was asked for")
            announced, left = response.length, length
            size = min(_PIECE, len(buffer))
            while left:
                asked = time.monotonic()
                count = response.readinto(buffer[: min(left, size - (start + length - left) % size)])
                if not count:
                    break
                left -= count
                size = _next_size(size, time.monotonic() - asked, len(buffer))
                # Before the last piece is given: nobody asks for another. The server may send less, never more, unread.
                whole = response.isclosed() and not response.will_close
                yield buffer[:count]
            if left and announced == length:
                raise ConnectionError("the connection was closed in the middle of the body")
        finally:
            if whole:
                self._keep(connection)
            else:
                response.close()  # it keeps the socket when the server is going to close the connection
                connection.close()

    def write(self, link: Link, pieces: Iterable[bytes | memoryview], length: int) -> Mapping[str, str]:
        """Puts the ``length`` bytes of ``pieces`` where a link says. Returns the headers of the answer, in lower case.

        Raises what taking a piece raises, ValueError if they are not of this length, and as `read` does. After
        ConnectionError they may be given again at once: a connection that was kept may have been closed meanwhile.
        """
        url = urlsplit(link.url)
        connection = self._kept() or self._connection(url)
        whole = False
        try:
            try:
                body = exactly(pieces, length, url.path)
                _ask(connection, url, {**link.headers, "Content-Length": str(length)}, "PUT", body)
            except (BrokenPipeError, ConnectionResetError) as error:  # a server may answer, and hear no more
                response = _answer(connection, error)
            else:
                response = connection.getresponse()
            if response.status != 200:
                raise _rejected(response)
            response.read()
            whole = not response.will_close
            return {name.lower(): value for name, value in response.getheaders()}
        finally:
            if whole:
                self._keep(connection)
            else:
                connection.close()

    def call(self, method: str, link: Link, body: bytes = b"") -> bytes:
        """A request with a small body and its small answer. Raises as `write` does."""
        url = urlsplit(link.url)
        connection = self._kept() or self._connection(url)
        whole = False
        try:
            _ask(connection, url, {**link.headers, "Content-Length": str(len(body))}, method, iter([body]))
            response = connection.getresponse()
            if response.status >= 300:
                raise _rejected(response)
            answer = response.read()
            whole = not response.will_close
            return answer
        finally:
            if whole:
                self._keep(connection)
            else:
                connection.close()

    def _request(self, link: Link, span: str) -> tuple[HTTPConnection, HTTPResponse]:
        url, headers = urlsplit(link.url), {**link.headers, "Range": span}
        while (kept := self._kept()) is not None:
            with suppress(OSError, HTTPException):  # the server may have closed it meanwhile
                _ask(kept, url, headers)
                return kept, kept.getresponse()
            kept.close()
        new = self._connection(url)
        try:
            _ask(new, url, headers)
            return new, new.getresponse()
        except BaseException:
            new.close()
            raise

    def _connection(self, url: SplitResult) -> HTTPConnection:
        proxy = _proxy(url)
        if url.scheme == "https":
            host = proxy or url
            secure = HTTPSConnection(host.hostname or "", host.port, timeout=self._stall, context=self._trust())
            if proxy:
                secure.set_tunnel(url.hostname or "", url.port, _authorization(proxy))
            return secure
        host = proxy or url
        return HTTPConnection(host.hostname or "", host.port, timeout=self._stall)

    def _trust(self) -> ssl.SSLContext:
        with self._lock:
            if self._context is None:
                context = ssl.create_default_context()
                if self._authorities:
                    context.load_verify_locations(self._authorities)
                self._context = context
            return self._context

    def _kept(self) -> HTTPConnection | None:
        """One that the server has not closed since, perhaps after waiting until it is open."""
        while True:
            with self._lock:
                while self._idle:
                    connection = self._idle.pop()
                    if not _is_over(connection):
                        return connection
                    connection.close()
                if not self._opening:
                    return None
                opening = self._opening.pop()
            opening.result()

    def _keep(self, connection: HTTPConnection) -> None:
        with self._lock:
            if len(self._idle) < _IDLE:
                self._idle.append(connection)
                return
        connection.close()


def _next_size(size: int, took: float, most: int) -> int:
    """Of a piece, after one that took so many seconds: large ones cost less, small ones tell more of a slow wire."""
    if took < _FAST:
        return min(2 * size, most)
    return max(size // 2, _PIECE) if took > _SLOW else size


def _is_over(connection: HTTPConnection) -> bool:
    """Whether a connection on which nothing is owed has something to say: that it was closed, as a rule."""
    poller = poll()
    poller.register(connection.sock, POLLIN)
    return bool(poller.poll(0))


def _close(connections: list[HTTPConnection]) -> None:
    for connection in connections:
        connection.close()


def exactly(pieces: Iterable[bytes | memoryview], size: int, what: str) -> Iterator[bytes | memoryview]:
    """The same. Raises ValueError, before the piece that is too much, unless they are ``size`` bytes in all."""
    given = 0
    for piece in pieces:
        given += len(piece)
        if given > size:
            break
        yield piece
    if given != size:
        raise ValueError(f"the body of {what} does not give the {size} bytes that were announced")


def _ask(
    connection: HTTPConnection,
    url: SplitResult,
    headers: Mapping[str, str],
    method: str = "GET",
    body: Iterator[bytes | memoryview] | None = None,
) -> None:
    target = f"{url.path}?{url.query}" if url.query else url.path
    headers = {"Host": url.netloc, "Accept-Encoding": "identity", **headers}
    if url.scheme == "http" and (proxy := _proxy(url)):
        target = f"http://{url.netloc}{target}"
        headers |= _authorization(proxy)
    connection.request(method, target, body, headers)


def _answer(connection: HTTPConnection, error: OSError) -> HTTPResponse:
    """What a server said before it closed the connection. Raises the error if it said nothing."""
    try:
        return connection.getresponse()
    except (OSError, HTTPException):
        raise error from None


def _proxy(url: SplitResult) -> SplitResult | None:
    """What stands between us and the server, by the environment variables that everybody uses."""
    if not any(name.lower() in ("http_proxy", "https_proxy", "all_proxy") for name in os.environ):
        return None
    from urllib.request import getproxies_environment, proxy_bypass

    proxies = getproxies_environment()
    chosen = proxies.get(url.scheme) or proxies.get("all")
    if not chosen or proxy_bypass(url.netloc):
        return None
    return urlsplit(chosen if "://" in chosen else f"http://{chosen}")


def _authorization(proxy: SplitResult) -> dict[str, str]:
    if proxy.username is None:
        return {}
    secret = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return {"Proxy-Authorization": f"Basic {b64encode(secret.encode()).decode()}"}


def _rejected(response: HTTPResponse) -> Rejected:
    body = response.read(_ERROR_BYTES).decode(errors="replace")
    after = response.getheader("Retry-After", "")
    return Rejected(response.status, response.reason, body, float(after) if after.isdecimal() else None)
