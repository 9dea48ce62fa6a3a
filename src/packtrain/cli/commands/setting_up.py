"""A machine and its shells: `init`, `doctor`, `up`, `webhook` and `completion`."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from packtrain.cli import completing, text
from packtrain.cli.completing import SHELLS, script
from packtrain.cli.helptext import SET_UP, command
from packtrain.cli.session import CACHE, Session, takes
from packtrain.cli.terminal import answer, printable
from packtrain.errors import UsageError, disk_error

if TYPE_CHECKING:
    from packtrain.flows.doctor import Check

PROFILES = ("nfs", "object", "mlflow", "hybrid")


@command(
    panel=SET_UP,
    epilog="packtrain init --profile object --store s3://models/prod",
)
@click.option(
    "--profile",
    metavar="PROFILE",
    type=click.Choice(PROFILES),
    required=True,
    help="A shared volume (nfs), a bucket (object), or MLflow with a bucket (mlflow, hybrid).",
)
@takes()
def init(session: Session, profile: str) -> None:
    """Write a commented packtrain.toml here.

    It explains every line and marks what must be edited; settings that are given as flags are written into it. A file
    that is there already stays as it is.
    """
    from packtrain.flows.init import EDIT, init

    path = init(profile, Path(), session.settings)
    session.print(
        path,
        text=lambda path: f"wrote {path} for the profile {profile}",
        document=lambda path: {"path": str(path.absolute()), "profile": profile},
    )
    edit = f"edit what is marked {EDIT} in {path}, then: " if EDIT in path.read_text(encoding="utf-8") else ""
    session.note(f"next: {edit}packtrain doctor")


@command(
    panel=SET_UP,
    epilog="packtrain doctor",
)
@takes(*CACHE, "vllm", "llamafactory")
def doctor(session: Session) -> int:
    """Check that this machine is set up right.

    Settings, credentials, what the store allows and guarantees, ledgers, the cache's disk, engines: a line for each,
    with what to do. Ends with the exit code of the first failure.
    """
    from packtrain.cli.progress import reporter
    from packtrain.client import diagnose

    found = list(_told(session, diagnose(reporter(as_json=session.as_json), **session.settings)))
    if session.as_json:
        session.print(found, text=str, document=_document)
    counts = [(sum(check.level == level for check in found), level) for level in ("failure", "warning")]
    session.note(" and ".join(text.count(count, level) for count, level in counts if count) or "all is well")
    return next((check.code for check in found if check.code), 0)


@command(
    panel=SET_UP,
    epilog="packtrain up --profile hybrid",
)
@click.option(
    "--profile",
    metavar="PROFILE",
    type=click.Choice(["hybrid"]),
    default="hybrid",
    help="hybrid: a bucket, and MLflow on PostgreSQL.",
)
@click.option(
    "--dir",
    "directory",
    metavar="DIR",
    type=Path,
    default=Path(".packtrain"),
    shell_complete=completing.folder,
    help="Where their data stays; else .packtrain.",
)
@click.option("--port", metavar="PORT", type=int, help="MLflow's port; else any that is free.")
@takes()
def up(session: Session, profile: str, directory: Path, port: int | None) -> None:
    """Run the servers of a set-up on this machine.

    To try it out, on a laptop. They listen on loopback and stop with this command (Ctrl-C); their data stays. What a
    shell needs to use them is written to DIR/env.
    """
    from packtrain.testing.hybrid import hybrid

    session.note("starting an S3 server, PostgreSQL and MLflow (half a minute) ...")
    with hybrid(directory.absolute(), port=port) as running:
        file = directory / "env"
        file.touch(mode=0o600)
        file.write_text(running.shell(), encoding="utf-8")
        session.tell(
            running,
            text=lambda running: f"MLflow is at {running.mlflow.url}, the models in {running.s3.url}",
            document=lambda running: {"profile": profile, "env": str(file), "mlflow": running.mlflow.url},
        )
        session.note(
            f"next, in another shell: source {shlex.quote(str(file))} && packtrain doctor   (Ctrl-C stops it all)"
        )
        running.wait()


@command(
    panel=SET_UP,
    epilog="packtrain webhook --secret-file /run/secrets/mlflow-webhook --host 0.0.0.0",
)
@click.option(
    "--secret-file",
    metavar="FILE",
    type=Path,
    required=True,
    shell_complete=completing.file,
    help="The secret that MLflow signs its webhooks with.",
)
@click.option("--host", metavar="ADDRESS", default="127.0.0.1", help="Where to listen; else 127.0.0.1.")
@click.option("--port", metavar="PORT", type=int, default=8090, help="Else 8090.")
@takes("actor")
def webhook(session: Session, secret_file: Path, host: str, port: int) -> None:
    """Hear MLflow's webhooks, and look at once.

    What somebody moves in MLflow's pages is then recorded, or undone, within a second, and those who follow an alias on
    this machine look again. Without it they look at their intervals.
    """
    try:
        secret = secret_file.read_bytes().strip()
    except OSError as error:
        raise disk_error(error, f"{secret_file} cannot be read") from error
    if not secret:
        raise UsageError(f"{secret_file} is empty", hint="Write the secret into it that MLflow was given.")
    session.client.hear(
        secret,
        host=host,
        port=port,
        ready=lambda bound: session.tell(
            bound,
            text=lambda bound: f"listening on http://{host}:{bound}/",
            document=lambda bound: {"url": f"http://{host}:{bound}/"},
        ),
    )


@command(
    panel=SET_UP,
    epilog="source <(packtrain completion bash)",
)
@click.argument("shell", metavar="SHELL", type=click.Choice(list(SHELLS)), help="bash, zsh or fish.")
@takes()
def completion(session: Session, shell: str) -> None:
    """Print what makes a shell complete commands.

    Commands, options, files, and the names, aliases and versions of models that this machine has seen.
    """
    group = click.get_current_context().find_root().command
    session.print(script(shell, group), text=str, document=lambda text: {"shell": shell, "script": text})


def _told(session: Session, checks: Iterable[Check]) -> Iterator[Check]:
    """Each is printed as soon as it is known: a store that does not answer takes a while to say so."""
    for check in checks:
        if not session.as_json:
            answer(f"{check.level:7}  {check.about:18}  {printable(check.what)}")
            for line in check.fix.splitlines():
                answer(f"{'':27}  -> {printable(line)}")
        yield check


def _document(checks: Iterable[Check]) -> list[dict[str, str]]:
    return [{key: getattr(check, key) for key in ("about", "level", "what", "fix")} for check in checks]
