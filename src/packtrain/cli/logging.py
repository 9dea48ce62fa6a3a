"""The log of a server: structlog, on stderr, as lines for people or as JSON lines."""

from __future__ import annotations

import structlog

from packtrain.cli.terminal import printable, say


class _Stderr:
    """That nobody reads it any more must not stop the work."""

    def msg(self, message: str) -> None:
        say(message)

    log = debug = info = warn = warning = error = critical = exception = failure = fatal = msg


def configure(*, as_json: bool) -> None:
    render: structlog.typing.Processor = structlog.processors.JSONRenderer() if as_json else _for_people
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
            structlog.processors.format_exc_info,
            render,
        ],
        logger_factory=lambda *_: _Stderr(),
        cache_logger_on_first_use=True,
    )


def _for_people(_: object, level: str, event: structlog.typing.EventDict) -> str:
    """``12:34:56 went back: version=2 to=1 because=…``"""
    time, name = str(event.pop("time"))[11:19], str(event.pop("event")).replace("_", " ")
    for known in ("level", "model", "alias"):  # there is one of each
        event.pop(known, None)
    details = " ".join(f"{key}={value}" for key, value in event.items())
    mark = f"{level}: " if level in ("warning", "error") else ""
    return printable(f"{time} {mark}{name}" + (f": {details}" if details else ""))
