"""The last step before stdout and stderr.

Names, reasons and actors come from whoever could write to the store. Text that reaches a terminal is made printable
first, so that none of it can move the cursor or pass itself off as ours.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TextIO

from packtrain.errors import disk_error


def printable(text: str) -> str:
    """The text on one line, with everything that a terminal would act upon written as an escape."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def say(line: str) -> None:
    """One line on stderr. That nobody reads it any more must not stop the work that it tells of."""
    try:
        print(line, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        _abandon(sys.stderr)


def answer(text: str) -> None:
    """The result, on stdout. File names keep their bytes. Raises LocalDiskError, BrokenPipeError."""
    if sys.stdout is None:  # closed by whoever started us
        return
    encoding = sys.stdout.encoding
    data = text.encode(encoding, "surrogateescape" if encoding == "utf-8" else "backslashreplace")
    try:
        sys.stdout.flush()
        sys.stdout.buffer.write(data + b"\n")
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        abandon_stdout()
        raise disk_error(error, "the result cannot be written to standard output") from error


def abandon_stdout() -> None:
    """So that what is still in its buffer is not complained about once more when the process ends."""
    _abandon(sys.stdout)


def _abandon(stream: TextIO) -> None:
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
