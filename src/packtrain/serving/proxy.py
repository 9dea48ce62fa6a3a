"""The proxy before the engines: OpenAI's API, streamed as it comes, from one version at a time.

What it promises: a request that was accepted is answered, completely by one engine, or explicitly failed. Until the
first byte of an answer is sent, a request may be asked again of an engine of the same version; an answer that broke off
afterwards ends with an error event, as vLLM itself would send one. A client that leaves takes its request with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import io
import json
import time
import uuid
from collections.abc import AsyncIterator, Collection
from typing import Any

import aiohttp
import structlog
from aiohttp import web
from multidict import CIMultiDict

from packtrain.serving.metrics import Metrics
from packtrain.serving.traffic import Backend, Exchange, Traffic

KEPT_BODY = 16 << 20  # bytes: larger requests are passed on as they come, and cannot be asked again
MOST_WAITING = 4096  # requests without an engine; more are refused
ATTEMPTS = 2  # of one request: one that kills its engine must not kill many
CONNECT = 5.0  # seconds
NOTICED = 60.0  # seconds in which an engine that does not answer is given up

_HOP_BY_HOP = {
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
}
_NOT_SENT_ON = _HOP_BY_HOP | {"host", "content-length", "authorization", "expect"}
_NOT_SENT_BACK = _HOP_BY_HOP | {"content-length", "date", "server"}
_ENDS_WITH_DONE = ("/v1/completions", "/v1/chat/completions")
_DONE = b"[DONE]"
_BROKEN = (aiohttp.ClientError, ConnectionError, asyncio.IncompleteReadError, TimeoutError)

log = structlog.get_logger("packtrain.proxy")


class _NothingSent(Exception):
    """The engine failed before the client got a byte: it may be asked again."""


class Proxy:
    """``keys``: what clients must have one of (none: everybody may ask). ``hold``: how many seconds a request waits for
    an engine."""

    def __init__(self, traffic: Traffic, metrics: Metrics, *, keys: Collection[str], hold: float) -> None:
        self.traffic = traffic
        self._metrics = metrics
        self._keys = [key.encode() for key in keys]
        self._hold = hold
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT),
            auto_decompress=False,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    def admits(self, request: web.Request) -> bool:
        """Whether the request has one of the keys. vLLM leaves some ways to a completion open; this does not."""
        if not self._keys:
            return True
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        sent = given.encode() if scheme.lower() == "bearer" else request.headers.get("x-api-key", "").encode()
        return any(hmac.compare_digest(sent, key) for key in self._keys)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Any request that is for the engine."""
        name = request.headers.get("X-Request-Id") or uuid.uuid4().hex
        if not self.admits(request):
            return _error(401, "the API key is missing or wrong", "invalid_api_key", name)
        if request.headers.get("Upgrade"):
            return _error(501, "connections cannot be upgraded here", "not_supported", name)
        if self.traffic.ending:
            return _error(503, "this server is stopping", "stopping", name)
        if self.traffic.waiting >= MOST_WAITING:
            return _error(503, f"{MOST_WAITING} requests wait already", "overloaded", name)
        self._metrics.accepted.inc()
        began = time.monotonic()
        version = ""
        outcome = "failed"
        try:
            body = await _body(request)
            response, version, outcome = await self._answer(request, name, body, began)
            return response
        except (asyncio.CancelledError, web.RequestPayloadError):
            outcome = "cancelled"  # the client is gone
            raise
        finally:
            self._metrics.requests.labels(version, outcome).inc()
            if version:
                self._metrics.latency.labels(version).observe(time.monotonic() - began)
            if outcome in ("failed", "broken"):
                log.warning("request_" + outcome, request=name, path=request.path, version=version)

    async def _answer(
        self, request: web.Request, name: str, body: bytes | AsyncIterator[bytes] | None, began: float
    ) -> tuple[web.StreamResponse, str, str]:
        """The response, the number of the version that gave it, and the outcome."""
        asked: Backend | None = None
        problem = ""
        for attempt in range(ATTEMPTS):
            backend = await self.traffic.backend(self._hold, asked.digest if asked else None)
            if backend is None:
                break
            if attempt:
                self._metrics.retries.inc()
            asked = backend
            number = str(backend.number)
            with self.traffic.exchange(backend) as exchange, self._metrics.in_flight.labels(number).track_inprogress():
                try:
                    response, outcome = await self._forward(request, name, body, backend, exchange, began)
                    self._count(backend, outcome)
                    return response, number, outcome
                except _NothingSent as error:
                    problem = str(error)
            self._count(backend, "failed")
            if exchange.broken or not isinstance(body, bytes | None):
                break
            await self._until_known(backend)
        if asked is None:
            why = "this server is stopping" if self.traffic.ending else "no engine serves at the moment"
            return _error(503, why, "no_engine", name), "", "failed"
        message = f"{asked.version} could not answer: {problem}"
        return _error(502, message, "engine_failed", name, asked), str(asked.number), "failed"

    async def _until_known(self, backend: Backend) -> None:
        """An engine failed a request: returns when it is known to live, or is no longer in use. Its death is noticed
        in a moment."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(NOTICED):
                while self.traffic.open is backend and not await self._lives(backend):
                    await asyncio.sleep(0.05)

    def _count(self, backend: Backend, outcome: str) -> None:
        tally = self.traffic.tally(backend)
        tally.requests += 1
        tally.failures += outcome in ("failed", "broken")

    async def _forward(
        self,
        request: web.Request,
        name: str,
        body: bytes | AsyncIterator[bytes] | None,
        backend: Backend,
        exchange: Exchange,
        began: float,
    ) -> tuple[web.StreamResponse, str]:
        assert self._session is not None
        sent = CIMultiDict((k, v) for k, v in request.headers.items() if k.lower() not in _NOT_SENT_ON)
        sent["X-Request-Id"] = name
        if backend.key:
            sent["Authorization"] = f"Bearer {backend.key}"
        url = backend.url + request.raw_path
        response: web.StreamResponse | None = None
        try:
            async with self._session.request(
                request.method,
                url,
                headers=sent,
                data=io.BytesIO(body) if isinstance(body, bytes) else body,
                allow_redirects=False,
            ) as upstream:
                if upstream.status >= 500 and not await self._lives(backend):
                    raise _NothingSent(f"it answered {upstream.status} and is not healthy")
                headers = CIMultiDict((k, v) for k, v in upstream.headers.items() if k.lower() not in _NOT_SENT_BACK)
                headers.update(_labels(name, backend))
                if "Content-Length" in upstream.headers or request.method == "HEAD":
                    data = await upstream.read()
                    if request.path == "/v1/models":
                        data = _with_version(data, backend)
                    return web.Response(status=upstream.status, body=data, headers=headers), _outcome(upstream.status)
                first = await upstream.content.readany()
                if _is_error(first) and not await self._lives(backend):
                    raise _NothingSent("its answer began with an error and it is not healthy")
                self._began(backend, began)
                response = web.StreamResponse(status=upstream.status, headers=headers)
                await response.prepare(request)
                outcome = await self._stream(request, response, first, upstream)
                return response, outcome
        except _BROKEN as error:
            if response is None:
                raise _NothingSent(f"the connection to the engine failed ({type(error).__name__})") from error
            return response, await _break(request, response, backend, "the engine broke off")
        except asyncio.CancelledError:
            if not exchange.broken:
                raise
            task = asyncio.current_task()
            assert task is not None
            task.uncancel()
            if response is None:
                raise _NothingSent(exchange.broken) from None
            return response, await _break(request, response, backend, exchange.broken)

    async def _stream(
        self, request: web.Request, response: web.StreamResponse, first: bytes, upstream: aiohttp.ClientResponse
    ) -> str:
        """Passes an answer on as it comes. Raises one of _BROKEN if the engine's side of it ends early; what fails on
        the client's side is a cancellation."""
        failed = _is_error(first)
        tail = first[-64:]
        await _write(response, first)
        async for piece in upstream.content.iter_any():
            failed = failed or _is_error(piece)
            tail = (tail + piece)[-64:]
            await _write(response, piece)
        if _is_events(response) and request.path in _ENDS_WITH_DONE and _DONE not in tail and upstream.status == 200:
            raise aiohttp.ClientPayloadError("the stream ended without [DONE]")
        await _write(response, b"", end=True)
        return "broken" if failed else _outcome(upstream.status)

    def _began(self, backend: Backend, began: float) -> None:
        seconds = time.monotonic() - began
        self._metrics.first_byte.labels(str(backend.number)).observe(seconds)
        self.traffic.tally(backend).latencies.append(seconds)

    async def _lives(self, backend: Backend) -> bool:
        assert self._session is not None
        try:
            timeout = aiohttp.ClientTimeout(total=CONNECT)
            async with self._session.get(f"{backend.url}/health", timeout=timeout) as reply:
                return reply.status == 200
        except _BROKEN:
            return False

    async def engine_metrics(self) -> bytes:
        """The metrics of the engine that serves, or nothing."""
        backend = self.traffic.open
        if backend is None or self._session is None:
            return b""
        with contextlib.suppress(*_BROKEN):
            timeout = aiohttp.ClientTimeout(total=CONNECT)
            async with self._session.get(f"{backend.url}/metrics", timeout=timeout) as reply:
                if reply.status == 200:
                    return await reply.read()
        return b""


async def _body(request: web.Request) -> bytes | AsyncIterator[bytes] | None:
    """The body of a request, or, if it is a large one, what it comes from. None if it has none."""
    if not request.body_exists:
        return None
    kept = bytearray()
    async for piece in request.content.iter_any():
        kept += piece
        if len(kept) > KEPT_BODY:
            return _rest(bytes(kept), request)
    return bytes(kept)


async def _rest(begun: bytes, request: web.Request) -> AsyncIterator[bytes]:
    yield begun
    async for piece in request.content.iter_any():
        yield piece


async def _write(response: web.StreamResponse, data: bytes, *, end: bool = False) -> None:
    """A client that is gone is no failure of the engine's."""
    try:
        await (response.write_eof() if end else response.write(data))
    except ConnectionError as error:
        raise asyncio.CancelledError from error


async def _break(request: web.Request, response: web.StreamResponse, backend: Backend, reason: str) -> str:
    """Ends an answer that had begun so that nobody takes it for a complete one."""
    if _is_events(response):
        event = json.dumps(_document(502, f"{backend.version}: {reason}", "engine_failed"))
        await _write(response, f"\n\ndata: {event}\n\n".encode())
        await _write(response, b"", end=True)
    elif request.transport is not None:
        request.transport.abort()  # without the end that HTTP needs
    return "broken"


def _labels(name: str, backend: Backend | None) -> dict[str, str]:
    labels = {"X-Request-Id": name}
    if backend is not None:
        labels |= {"X-Packtrain-Version": backend.version, "X-Packtrain-Digest": backend.digest}
    return labels


def _error(status: int, message: str, code: str, name: str, backend: Backend | None = None) -> web.Response:
    """As vLLM and OpenAI say it."""
    headers = _labels(name, backend)
    if status == 503:
        headers["Retry-After"] = "5"
    return web.json_response(_document(status, message, code), status=status, headers=headers)


def _document(status: int, message: str, code: str) -> dict[str, Any]:
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def _outcome(status: int) -> str:
    return "failed" if status >= 500 else "refused" if status >= 400 else "complete"


def _is_events(response: web.StreamResponse) -> bool:
    return response.headers.get("Content-Type", "").startswith("text/event-stream")


def _is_error(piece: bytes) -> bool:
    """Whether a piece of a stream is the event with which vLLM says that it failed."""
    return piece.startswith((b'data: {"error"', b"data: {'error'"))


def _with_version(data: bytes, backend: Backend) -> bytes:
    """The list of models, with the version that is behind each, and without this machine's paths."""
    try:
        document = json.loads(data)
        for entry in document["data"]:
            entry["root"] = f"{backend.version}@{backend.digest}"
            entry["packtrain"] = {"model": backend.model, "version": backend.number, "digest": backend.digest}
        return json.dumps(document).encode()
    except (ValueError, KeyError, TypeError):
        return data
