"""A bounded pool whose first failure, or Ctrl-C, stops the rest promptly."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from threading import Event
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Stopped(BaseException):
    """Raised inside a worker to leave its work because another one failed. Never leaves this module."""


class Halt:
    """Asked by workers between pieces of work, so that none goes on for long after a failure elsewhere."""

    def __init__(self) -> None:
        self._event = Event()

    def set(self) -> None:
        self._event.set()

    def check(self) -> None:
        if self._event.is_set():
            raise Stopped


def run_all(work: Callable[[Item, Halt], Result], items: Iterable[Item], *, threads: int, name: str) -> list[Result]:
    """``work(item, halt)`` for every item, on at most ``threads`` threads. Results in the order of the items.

    Raises the first failure, after every worker has stopped.
    """
    halt = Halt()
    pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
    futures: list[Future[Result]] = []
    try:
        futures = [pool.submit(work, item, halt) for item in items]
        done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        failed = [future for future in done if future.exception() is not None]
        if failed:
            halt.set()
    except BaseException:
        halt.set()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    for future in failed:
        if (error := future.exception()) is not None and not isinstance(error, Stopped):
            raise error
    return [future.result() for future in futures]
