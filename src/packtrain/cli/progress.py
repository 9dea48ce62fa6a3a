"""How long work goes: a bar on a terminal, a line before and after without one, JSON lines with --json."""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from packtrain.cli.render import bytes_as_text

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from packtrain.ports import Reporter

EVERY = 0.5  # seconds between two JSON lines


def reporter(*, as_json: bool) -> Reporter:
    """The one that fits stderr. Standard output is the result's alone."""
    if as_json:
        return JsonLines()
    return Bar() if sys.stderr.isatty() else Lines()


class Lines:
    """Notes, and one line when a task of some size is over."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._what = ""
        self._total = 0
        self._done = 0
        self._started = 0.0

    def begin(self, what: str, total: int) -> None:
        with self._lock:
            self._what, self._total, self._done = what, total, 0
            self._started = time.monotonic()

    def advance(self, count: int) -> None:
        with self._lock:
            self._done += count

    def end(self) -> None:
        with self._lock:
            if self._what and self._total:
                seconds = time.monotonic() - self._started
                done = "" if self._done >= self._total else f" of {bytes_as_text(self._total)}"
                self._write(f"{self._what}: {bytes_as_text(self._done)}{done} in {seconds:.1f} s")
            self._what = ""

    def note(self, text: str) -> None:
        with self._lock:
            self._write(text)

    def _write(self, text: str) -> None:
        print(f"packtrain: {text}", file=sys.stderr, flush=True)


class Bar:
    """A bar with size, rate and time left, drawn by rich; notes appear above it."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def begin(self, what: str, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.progress import TransferSpeedColumn as Speed

        self.end()
        if not total:
            return
        columns = (TextColumn("{task.description:>10}"), BarColumn(), DownloadColumn(), Speed(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=Console(stderr=True))
        self._task = self._progress.add_task(what, total=total)
        self._progress.start()

    def advance(self, count: int) -> None:
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, advance=count)

    def end(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def note(self, text: str) -> None:
        if self._progress is not None:
            self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=sys.stderr, flush=True)


class JsonLines:
    """``{"event": "begin"|"progress"|"end"|"note", ...}``, one a line, on stderr."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._what = ""
        self._total = 0
        self._done = 0
        self._said = 0.0

    def begin(self, what: str, total: int) -> None:
        with self._lock:
            self._what, self._total, self._done, self._said = what, total, 0, time.monotonic()
            self._write("begin", what=what, total=total)

    def advance(self, count: int) -> None:
        with self._lock:
            self._done += count
            if time.monotonic() - self._said >= EVERY:
                self._said = time.monotonic()
                self._write("progress", what=self._what, done=self._done, total=self._total)

    def end(self) -> None:
        with self._lock:
            if self._what:
                self._write("end", what=self._what, done=self._done, total=self._total)
            self._what = ""

    def note(self, text: str) -> None:
        with self._lock:
            self._write("note", text=text)

    def _write(self, event: str, **fields: Any) -> None:
        print(json.dumps({"event": event, **fields}), file=sys.stderr, flush=True)
