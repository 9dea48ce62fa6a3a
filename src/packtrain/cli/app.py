"""`packtrain`: its commands, in the order of the job.

Only click is imported at start, then the module of the command that was given, and by it what it needs.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import click

from packtrain._version import __version__
from packtrain.cli import completing
from packtrain.cli.helptext import Group, Lazy
from packtrain.cli.session import FLAGS, Session, takes
from packtrain.errors import UsageError

COMMANDS = {
    "init": "setting_up",
    "doctor": "setting_up",
    "up": "setting_up",
    "webhook": "setting_up",
    "completion": "setting_up",
    "check": "checking",
    "publish": "publishing",
    "export": "publishing",
    "adopt": "publishing",
    "register": "publishing",
    "watch": "watching",
    "gate": "gating",
    "promote": "promoting",
    "rollback": "promoting",
    "hold": "promoting",
    "archive": "promoting",
    "policy": "promoting",
    "pull": "serving",
    "serve": "serving",
    "run": "serving",
    "status": "asking",
    "what": "asking",
    "attest": "gating",
    "url": "serving",
    "cache": "caching",
    "models": "looking",
    "show": "looking",
    "lineage": "tracing",
    "compare": "comparing",
    "diff": "diffing",
    "history": "looking",
    "verify": "checking",
    "gc": "collecting",
}


@click.group(
    "packtrain",
    cls=Group,
    commands=Lazy({name: f"packtrain.cli.commands.{module}" for name, module in COMMANDS.items()}),
    example="The straight line",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\
packtrain publish output/merged --name llama-finetuned
packtrain promote llama-finetuned/1 --to production
packtrain serve llama-finetuned@production -- --port 8000
packtrain rollback llama-finetuned""",
)
@click.version_option(__version__, message="packtrain %(version)s")
@takes(*FLAGS)
def packtrain(_session: Session) -> None:
    """Carries fine-tuned models from LLaMA-Factory to vLLM: the right version, whole, verified, with a way back."""


def run_command(arguments: Sequence[str]) -> int:
    """Runs a command, or answers a shell that completes one. Returns its exit code; raises PacktrainError."""
    if asked := os.environ.get(completing.VARIABLE):
        return completing.answer(asked, packtrain)
    try:
        with packtrain.make_context("packtrain", list(arguments)) as context:
            code: int | None = packtrain.invoke(context)
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.UsageError as error:
        raise _usage_error(error) from error
    return code or 0


def _usage_error(error: click.UsageError) -> UsageError:
    path = error.ctx.command_path if error.ctx else "packtrain"
    hint = f"See: {path} --help"
    if isinstance(error, click.NoSuchOption) and path.endswith((" serve", " run")):
        hint = f"What is for vLLM stands after two dashes: {path} REFERENCE -- {error.option_name} ..."
    return UsageError(" ".join(error.format_message().split()).rstrip("."), hint=hint)
