"""The command line: `packtrain`.

main        runs a command, and ends the process with its documented exit code
app         the commands, in the order of the job; commands/ has them, options what they share
session     what every command is given: its settings, its `Client`, where its result goes
helptext    how help is laid out
progress    how long work goes, on stderr
completing  what a shell offers while a command is typed
text        results for people
documents   results for programs
failure     what is said when a command fails
terminal    the last step before stdout and stderr
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from contextlib import suppress
from typing import NoReturn

__all__ = ["main"]


def main() -> NoReturn:
    """The program. Whatever happens, it ends with a documented exit code and without a traceback on the terminal."""
    gc.set_threshold(20_000)  # what is imported is no garbage: looking for some in it took a twentieth of a start
    code = _run(sys.argv[1:] or ["--help"])
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # None, if whoever started us closed it
            stream.flush()
    os._exit(code)  # what is left takes Python some 20 ms to take apart, and nobody waits for any of it


def _run(arguments: list[str]) -> int:
    """The exit code of a command. Only what an error needs is imported when there is one."""
    signal.signal(signal.SIGTERM, _terminated)
    own = arguments[: arguments.index("--")] if "--" in arguments else arguments
    as_json = "--json" in own
    try:
        from packtrain.cli.app import run_command

        return run_command(arguments)
    except BrokenPipeError:  # whoever read our output has seen enough
        from packtrain.cli import terminal

        terminal.abandon_stdout()
        return 0
    except KeyboardInterrupt:
        from packtrain.cli import failure

        return failure.interrupted(as_json=as_json)
    except Exception as error:  # noqa: BLE001 - the last resort: what we did not foresee is our bug, and said as such
        from packtrain.cli import failure

        return failure.failed(error, as_json=as_json)


def _terminated(*_: object) -> NoReturn:
    """Leaves through every ``finally``, so that what this command started is ended too."""
    sys.exit(128 + signal.SIGTERM)
