"""`packtrain`: its commands, in the order of the job.

Only click is imported at start: everything else is imported by what needs it, so that help is quick.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import click

from packtrain._version import __version__
from packtrain.cli import completing
from packtrain.cli.commands import (
    asking,
    caching,
    checking,
    collecting,
    comparing,
    diffing,
    gating,
    looking,
    promoting,
    publishing,
    serving,
    setting_up,
    tracing,
    watching,
)
from packtrain.cli.helptext import Group
from packtrain.cli.session import FLAGS, Session, takes
from packtrain.errors import UsageError


@click.group(
    "packtrain",
    cls=Group,
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


for command in (
    setting_up.init,
    setting_up.doctor,
    setting_up.up,
    setting_up.webhook,
    setting_up.completion,
    checking.check,
    publishing.publish,
    publishing.export,
    publishing.adopt,
    publishing.register,
    watching.watch,
    gating.gate,
    promoting.promote,
    promoting.rollback,
    promoting.hold,
    promoting.archive,
    promoting.policy,
    serving.pull,
    serving.serve,
    serving.run,
    asking.status,
    asking.what,
    gating.attest,
    serving.url,
    caching.cache,
    looking.models,
    looking.show,
    tracing.lineage,
    comparing.compare,
    diffing.diff,
    looking.history,
    checking.verify,
    collecting.gc,
):
    packtrain.add_command(command)


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
