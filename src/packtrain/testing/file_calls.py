"""This process's calls into the file system, of which one may fail: "and if it breaks here?", asked of every call."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from packtrain.testing.faults import Killed


@dataclass
class FileCalls:
    """The calls that Python audits (opens, renames, removals, listings, locks), and those of `DATA`. What a file object
    reads and writes is not among them. ``count`` says how many there were."""

    fail_at: int | None
    failure: BaseException | None  # None: a real SIGKILL
    count: int = 0

    def before(self) -> None:
        """Counts a call. What it raises keeps the call from having an effect."""
        call, self.count = self.count, self.count + 1
        dead = isinstance(self.failure, Killed) and self.fail_at is not None and call > self.fail_at
        if call == self.fail_at or dead:
            if self.failure is None:
                os.kill(os.getpid(), signal.SIGKILL)
            else:
                raise self.failure


DATA = ("pread", "preadv", "pwrite", "write", "copy_file_range", "posix_fallocate", "fsync")  # of `os`


@contextmanager
def failing(fail_at: int | None, failure: BaseException | None) -> Iterator[FileCalls]:
    """Counts the calls inside. Call ``fail_at``, counted from 0, raises ``failure``, or is a real SIGKILL.

    After `Killed`, no later call has an effect either: what a ``finally`` would still do, a dead process does not.
    """
    if _audit not in _hooks:
        sys.addaudithook(_audit)  # for ever: there is no way to remove one
        _hooks.append(_audit)
    watched = FileCalls(fail_at, failure)
    _watched.append(watched)
    try:
        with ExitStack() as replaced:
            for name in DATA:
                replaced.enter_context(patch.object(os, name, _counted(watched, getattr(os, name))))
            yield watched
    finally:
        _watched.remove(watched)


def _counted(calls: FileCalls, call: Callable[..., Any]) -> Callable[..., Any]:
    def counted(*arguments: Any) -> Any:
        calls.before()
        return call(*arguments)

    return counted


_hooks: list[object] = []
_watched: list[FileCalls] = []


def _audit(event: str, _: object) -> None:
    if event == "open" or event.startswith(("os.", "fcntl.", "shutil.")):
        for calls in _watched:
            calls.before()


def killed_at(act: Callable[[], object], call: int) -> bool:
    """Runs ``act`` in a forked process that is killed, by a real SIGKILL, at its call ``call``.

    False: there were fewer calls, and it ended by itself. Raises ChildProcessError if it ended by an exception.
    """
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with failing(call, None):
                act()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return True
    if status:
        raise ChildProcessError(f"it ended with {status}")
    return False
