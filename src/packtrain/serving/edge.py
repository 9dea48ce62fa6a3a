"""Where the supervisor is asked: one HTTP server, with the proxy and what it says of itself, in a thread of its own."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Mapping
from threading import Event, Thread
from typing import Any, TypeVar

from aiohttp import web

from packtrain.errors import EngineError
from packtrain.serving.arguments import Endpoint
from packtrain.serving.metrics import Metrics
from packtrain.serving.proxy import Proxy
from packtrain.serving.traffic import Traffic

Result = TypeVar("Result")

LONGEST_HEADER = 64 << 10  # bytes
LEAVING = 2.0  # seconds for what is written at the end


class Edge:
    """While it is entered it listens. ``status`` gives the document of /status, in any thread; ``key`` may ask for it,
    too."""

    def __init__(
        self,
        endpoint: Endpoint,
        proxy: Proxy,
        metrics: Metrics,
        *,
        key: str,
        status: Callable[[], Mapping[str, Any]],
    ) -> None:
        self.endpoint = endpoint
        self._proxy = proxy
        self._metrics = metrics
        self._key = key
        self._status = status
        self._loop = asyncio.new_event_loop()
        self._listening = Event()
        self._over: asyncio.Event | None = None
        self._failure: BaseException | None = None
        self._thread = Thread(target=self._run, name="proxy", daemon=True)

    @property
    def traffic(self) -> Traffic:
        return self._proxy.traffic

    def __enter__(self) -> Edge:
        """Raises EngineError if the port cannot be had."""
        self._thread.start()
        self._listening.wait()
        if self._failure is not None:
            self._thread.join()
            raise self._meaning(self._failure)
        return self

    def __exit__(self, *_: object) -> None:
        if self._over is not None:
            self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()

    def call(self, function: Callable[..., Result], *arguments: Any, **named: Any) -> Result:
        """Calls a function of the traffic where the traffic lives."""

        async def there() -> Result:
            return function(*arguments, **named)

        return asyncio.run_coroutine_threadsafe(there(), self._loop).result()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        except BaseException as error:  # noqa: BLE001 - it is raised where this thread was started
            self._failure = error
        finally:
            self._listening.set()
            self._loop.close()

    async def _serve(self) -> None:
        self._over = asyncio.Event()
        app = web.Application(client_max_size=0)
        app.router.add_get("/healthz", self._healthz)
        for path in ("/health", "/readyz"):
            app.router.add_get(path, self._readyz)
        app.router.add_get("/status", self._answer_status)
        app.router.add_get("/metrics", self._answer_metrics)
        app.router.add_route("*", "/{path:.*}", self._proxy.handle)
        runner = web.AppRunner(
            app, handler_cancellation=True, access_log=None, shutdown_timeout=LEAVING, max_line_size=LONGEST_HEADER
        )
        await runner.setup()
        await self._proxy.open()
        try:
            await web.TCPSite(runner, self.endpoint.host or None, self.endpoint.port, backlog=1024).start()
            self._listening.set()
            await self._over.wait()
        finally:
            await runner.cleanup()
            await self._proxy.close()

    async def _healthz(self, _: web.Request) -> web.Response:
        """This process works; what it serves is /readyz's affair."""
        return web.json_response({"status": "alive"})

    async def _readyz(self, _: web.Request) -> web.Response:
        traffic = self.traffic
        if traffic.open is not None and not traffic.ending:
            return web.json_response({"status": "ready", "version": traffic.open.version})
        return web.json_response({"status": "not ready"}, status=503)

    async def _answer_status(self, request: web.Request) -> web.Response:
        if not self._proxy.admits(request) and request.headers.get("X-Packtrain-Key") != self._key:
            return web.json_response({"error": {"message": "the API key is missing or wrong"}}, status=401)
        requests = {
            "waiting": self.traffic.waiting,
            "in_flight": {str(engine): len(each) for engine, each in self.traffic.exchanges.items()},
        }
        return web.json_response({**self._status(), "requests": requests})

    async def _answer_metrics(self, _: web.Request) -> web.Response:
        """Ours, then those of the engine that serves: their names never meet."""
        self._metrics.waiting.set(self.traffic.waiting)
        body = self._metrics.text() + await self._proxy.engine_metrics()
        return web.Response(body=body, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    def _meaning(self, error: BaseException) -> BaseException:
        if isinstance(error, OSError):
            if error.errno == errno.EADDRINUSE:
                return EngineError(
                    f"port {self.endpoint.port} is in use",
                    hint="Stop what listens there (ss -ltnp shows it), or choose another port: -- --port 8001",
                )
            where = f"{self.endpoint.host or '*'}:{self.endpoint.port}"
            return EngineError(f"cannot listen on {where}: {error.strerror or error}", hint="Choose another --host.")
        return error
