"""Chromium without a window: what a page says, and how it looks."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from packtrain.errors import NotFound, Unavailable

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
PATIENCE = 30_000  # milliseconds of the page's own time, which does not pass while it waits for the server


def find_browser() -> str | None:
    return next(filter(None, map(shutil.which, PROGRAMS)), None)


def read_page(url: str, home: Path, *, picture: Path | None = None, width: int = 1280, height: int = 800) -> str:
    """The page's HTML when its scripts have done what they do, and a PNG of it as it is then. ``home`` is the browser's
    own folder. On a busy machine a page may be read before it has got everything: whoever waits for something reads it
    again."""
    drawn = [] if picture is None else [f"--screenshot={picture}"]
    return _run(home, "--dump-dom", *drawn, f"--window-size={width},{height}", url)


def _run(home: Path, *arguments: str) -> str:
    browser = find_browser()
    if browser is None:
        raise NotFound("there is no browser", hint="apt-get install chromium")
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
        f"--user-data-dir={home}", f"--virtual-time-budget={PATIENCE}", *arguments,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    if done.returncode:
        raise Unavailable(f"{browser} ended with {done.returncode}: {done.stderr[-1000:]}")
    return done.stdout
