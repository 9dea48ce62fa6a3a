"""What is said when a command does not do what it was asked, and the exit code of it."""

from __future__ import annotations

import json
import sys
import tempfile
import traceback
from typing import Any

from packtrain.cli import documents
from packtrain.cli.terminal import answer, printable, say
from packtrain.errors import INTERNAL_ERROR, INTERRUPTED, PacktrainError, PreflightRefused, exit_code


def failed(error: Exception, *, as_json: bool) -> int:
    """Says what happened and what to do next. Returns the exit code."""
    if not isinstance(error, PacktrainError):
        return _bug(error, as_json=as_json)
    findings = error.findings if isinstance(error, PreflightRefused) else ()
    if as_json:
        more = {"findings": [documents.finding(finding) for finding in findings]} if findings else {}
        _document(type(error).__name__, error.message, error.advice, exit_code(error), **more)
        return exit_code(error)
    say(f"error: {_one_line(error.message)}")
    for finding in findings:
        say(f"  {finding.level} {_one_line(str(finding))}")
        say(f"    -> {_one_line(finding.fix)}")
    if not findings:
        for line in error.advice.splitlines():
            say(f"  -> {printable(line)}")
    return exit_code(error)


def interrupted(*, as_json: bool) -> int:
    """Ctrl-C."""
    message, hint = "interrupted", "Run the same command again: it continues where it was."
    if as_json:
        _document("Interrupted", message, hint, INTERRUPTED)
    else:
        say(f"{message}: run the same command again, it continues where it was")
    return INTERRUPTED


def _bug(error: Exception, *, as_json: bool) -> int:
    message = f"internal error: {type(error).__name__}: {_one_line(str(error))}"
    hint = f"This is a bug in Packtrain. Please report it with {_written(error)}."
    if as_json:
        _document("InternalError", message, hint, INTERNAL_ERROR)
    else:
        say(message)
        say(f"  -> {hint}")
    return INTERNAL_ERROR


def _written(error: Exception) -> str:
    """The file that holds the traceback."""
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="packtrain-bug-", suffix=".txt", delete=False, errors="backslashreplace"
        ) as report:
            report.write(f"{sys.argv}\n\n")
            traceback.print_exception(error, file=report)
            return report.name
    except OSError as problem:
        return f"what you did (its details could not be written down: {problem})"


def _document(kind: str, message: str, hint: str, code: int, **more: Any) -> None:
    value = {"type": kind, "message": message, "hint": hint, "exit_code": code, **more}
    answer(json.dumps({"error": value}, indent=2))
    say(json.dumps({"event": "error", "message": message, "hint": hint}))


def _one_line(text: str) -> str:
    return printable(" ".join(text.splitlines()))
