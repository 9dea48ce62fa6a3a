"""A small HTTP server that hears MLflow's webhooks. It answers at once, and lets others look afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator, Callable

from aiohttp import web

from packtrain.errors import PacktrainError, Refused, Unavailable
from packtrain.model.webhook import Gate

MAX_BODY = 1 << 20  # bytes


def receive(
    gate: Gate,
    look: Callable[[str], None],
    *,
    host: str,
    port: int,
    ready: Callable[[int], None],
    note: Callable[[str], None],
) -> None:
    """Hears webhooks until it is told to stop (SIGINT, SIGTERM). ``look`` is called in a thread of its own with the
    name of each model that there is news of, one after the other; ``ready`` with the port. Raises Unavailable if the
    port is taken."""
    try:
        asyncio.run(_serve(gate, look, host, port, ready, note))
    except OSError as error:
        raise Unavailable(
            f"cannot listen on {host}:{port}: {error.strerror or error}", hint="Choose another --port."
        ) from error


async def _serve(
    gate: Gate,
    look: Callable[[str], None],
    host: str,
    port: int,
    ready: Callable[[int], None],
    note: Callable[[str], None],
) -> None:
    news: asyncio.Queue[str] = asyncio.Queue()
    waiting: set[str] = set()

    async def hear(request: web.Request) -> web.Response:
        try:
            name = gate.admit(request.headers, await request.read(), time.time())
        except PacktrainError as error:
            note(f"refused a delivery from {request.remote}: {error}")
            return web.json_response({"error": str(error)}, status=401 if isinstance(error, Refused) else 400)
        if name is not None and name not in waiting:
            waiting.add(name)
            news.put_nowait(name)
        return web.json_response({"accepted": name is not None}, status=202)

    async def look_at_all() -> None:
        while True:
            name = await news.get()
            waiting.discard(name)  # what comes now needs another look
            try:
                await asyncio.to_thread(look, name)
            except PacktrainError as error:
                note(f"warning: {name}: {error}")

    application = web.Application(client_max_size=MAX_BODY)
    application.add_routes([web.post("/", hear), web.get("/healthz", _healthy)])
    async with _listening(application, host, port) as bound:
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        worker = asyncio.create_task(look_at_all())
        ready(bound)
        await stop.wait()
        worker.cancel()


async def _healthy(_: web.Request) -> web.Response:
    return web.Response(text="ok\n")


@contextlib.asynccontextmanager
async def _listening(application: web.Application, host: str, port: int) -> AsyncIterator[int]:
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        await site.start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()
