"""How long work goes: a bar on a terminal, one line when it is over without one, JSON lines with --json.

All of it goes to stderr: stdout is the result's alone. Work is told in pieces by many threads; what is shown of it
changes a few times a second.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from packtrain.cli.terminal import printable, say
from packtrain.model.amount import size

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from packtrain.ports import Reporter


def reporter(*, as_json: bool) -> Reporter:
    """The one that fits stderr."""
    if as_json:
        return JsonLines()
    if sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        return Bar()
    return Lines()


class Lines:
    """Notes, and one line when a task is over. The others differ in what they draw, not in how they count."""

    every = float("inf")  # seconds between two drawings

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._what = ""  # empty between tasks
        self._total = 0
        self._done = 0
        self._started = 0.0
        self._drawn = 0.0

    def begin(self, what: str, total: int) -> None:
        with self._lock:
            self.end()
            self._what, self._total, self._done = what, total, 0
            self._started = self._drawn = time.monotonic()
            self._draw_begin()

    def advance(self, count: int) -> None:
        with self._lock:
            self._done += count
            if self._what and time.monotonic() - self._drawn >= self.every:
                self._drawn = time.monotonic()
                self._draw()

    def end(self) -> None:
        with self._lock:
            if self._what:
                self._draw_end()
                self._what = ""

    def note(self, text: str) -> None:
        say(printable(text))

    @property
    def _seconds(self) -> float:
        return time.monotonic() - self._started

    def _draw_begin(self) -> None: ...

    def _draw(self) -> None: ...

    def _draw_end(self) -> None:
        if self._total:
            whole = (
                f"{size(self._total)}" if self._done >= self._total else f"{size(self._done)} of {size(self._total)}"
            )
            rate = f", {size(int(self._done / self._seconds))}/s" if self._seconds >= 1 else ""
            say(f"{self._what}: {whole} in {self._seconds:.1f} s{rate}")


class Bar(Lines):
    """A bar with size, rate and time left. What it was stays on the screen; notes appear above it."""

    every = 0.1

    def __init__(self) -> None:
        super().__init__()
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def note(self, text: str) -> None:
        with self._lock:
            if self._progress is None:
                say(printable(text))
            else:
                self._progress.console.print(printable(text), markup=False, highlight=False, soft_wrap=True)

    def _draw_begin(self) -> None:
        if not self._total:
            return
        from rich import progress
        from rich.console import Console

        self._progress = progress.Progress(
            progress.TextColumn("{task.description:>10}"),
            progress.BarColumn(),
            progress.DownloadColumn(),
            progress.TransferSpeedColumn(),
            progress.TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._task = self._progress.add_task(self._what, total=self._total)
        self._progress.start()

    def _draw(self) -> None:
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=self._done)

    def _draw_end(self) -> None:
        if self._progress is not None:
            self._draw()
            self._progress.stop()
            self._progress = None


class JsonLines(Lines):
    """One object a line: ``{"event": "begin" | "progress" | "end" | "note", ...}`` (docs/commands.md)."""

    every = 0.5

    def note(self, text: str) -> None:
        with self._lock:
            _event("note", text=text)

    def _draw_begin(self) -> None:
        _event("begin", what=self._what, total=self._total)

    def _draw(self) -> None:
        _event("progress", what=self._what, done=self._done, total=self._total, seconds=round(self._seconds, 3))

    def _draw_end(self) -> None:
        _event("end", what=self._what, done=self._done, total=self._total, seconds=round(self._seconds, 3))


def _event(event: str, **fields: Any) -> None:
    say(json.dumps({"event": event, **fields}))
