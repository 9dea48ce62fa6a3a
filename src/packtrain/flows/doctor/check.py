"""One thing that the doctor looked at."""

from __future__ import annotations

from dataclasses import dataclass

from packtrain.errors import PacktrainError, exit_code

OK, WARNING, FAILURE = "ok", "warning", "failure"


@dataclass(frozen=True, slots=True)
class Check:
    """What was looked at (``about``), what was found, and what to do (``fix``, if ``level`` is not OK). ``code`` is the
    exit code of the error that a failure leads to, else 0."""

    about: str
    level: str
    what: str
    fix: str = ""
    code: int = 0


def ok(about: str, what: str) -> Check:
    return Check(about, OK, what)


def warning(about: str, what: str, fix: str) -> Check:
    return Check(about, WARNING, what, fix)


def failure(about: str, error: PacktrainError) -> Check:
    return Check(about, FAILURE, error.message, error.advice, exit_code(error))
