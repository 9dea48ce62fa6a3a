"""Calls into obstore from threads where they do no harm.

obstore's calls block without listening to signals, and it runs the iterator of an upload inside of its own event
loop, where that iterator can use no other store. So the main thread lets others call, and a body stays in its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from contextlib import suppress
from queue import Empty, Queue
from typing import TypeVar

T = TypeVar("T")


class _Abandoned(Exception):
    """Ends an upload whose body has failed."""


def interruptible(call: Callable[[], T]) -> T:
    """What ``call`` returns or raises; but Ctrl-C is heard at once, and leaves it behind."""
    if threading.current_thread() is not threading.main_thread():  # signals go to the main thread only
        return call()
    return start(call).result()


def hand_over(pieces: Iterable[bytes], send: Callable[[Iterator[bytes]], object]) -> None:
    """Calls ``send`` in another thread with ``pieces``, which are taken in this one.

    If taking one raises, ``send`` finds that its iterator raises; that is waited for, and what was raised goes on.
    If ``send`` raises, no more pieces are taken, and that is raised.
    """
    line: Queue[bytes | None] = Queue(maxsize=2)  # None: there are no more
    failed = threading.Event()
    over = threading.Event()

    def handed() -> Iterator[bytes]:
        while (piece := line.get()) is not None:
            yield piece
        if failed.is_set():
            raise _Abandoned

    def run() -> None:
        try:
            send(handed())
        finally:
            over.set()  # from here on the other side puts at most one piece and the end: they fit when it is empty
            with suppress(Empty):
                while True:
                    line.get_nowait()

    sending = start(run)
    try:
        for piece in pieces:
            if over.is_set():
                break
            line.put(piece)
    except BaseException:
        failed.set()
        line.put(None)
        wait([sending])
        raise
    line.put(None)
    sending.result()


def start(call: Callable[[], T]) -> Future[T]:
    """Runs ``call`` in a thread that nobody waits for when the program ends."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # noqa: BLE001 - it is raised where the result is asked for
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future
