"""The command line: `packtrain`."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from packtrain.errors import PacktrainError

__all__ = ["main"]


def main() -> NoReturn:
    """Runs a command and ends the process with its documented exit code. No traceback reaches the user."""
    from packtrain.cli.app import app
    from packtrain.errors import INTERRUPTED, PacktrainError, exit_code

    as_json = "--json" in sys.argv[1 : sys.argv.index("--") if "--" in sys.argv else None]
    try:
        code = app(standalone_mode=False) or 0
    except PacktrainError as error:
        _say_error(error, as_json)
        code = exit_code(error)
    except KeyboardInterrupt:
        print("interrupted: running the same command again continues where it was", file=sys.stderr)
        code = INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the exit does not complain again
        code = 0
    except Exception as error:  # noqa: BLE001 - the last resort: a bug of ours must not show a traceback
        code = _library_exit(error)
    sys.exit(code)


def _say_error(error: PacktrainError, as_json: bool) -> None:
    from packtrain.cli.render import error_as_json, error_as_text

    if as_json:
        print(error_as_json(error))
    print(error_as_text(error), file=sys.stderr)


def _library_exit(error: Exception) -> int:
    """Click's own refusals (usage, exit, abort) as they are; anything else is a bug."""
    if hasattr(error, "show") and hasattr(error, "exit_code"):  # click's ClickException: unknown options and so on
        error.show()
        return int(error.exit_code)
    if hasattr(error, "exit_code"):  # click's Exit
        return int(error.exit_code)
    if type(error).__name__ == "Abort":
        return 130
    from packtrain.errors import INTERNAL_ERROR

    with tempfile.NamedTemporaryFile("w", prefix="packtrain-bug-", suffix=".txt", delete=False) as report:
        report.write(f"{sys.argv}\n\n{traceback.format_exc()}")
    print(f"internal error: {type(error).__name__}: {error}", file=sys.stderr)
    print(f"  -> this is a bug in Packtrain; please report it with {report.name}", file=sys.stderr)
    return INTERNAL_ERROR
