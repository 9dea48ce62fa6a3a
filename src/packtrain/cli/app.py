"""The commands, in the order of the job. Each asks the `Client` and prints the result.

Only typer is imported at start: everything else is imported by what needs it, so that help is quick.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from packtrain.cli import documents, text
from packtrain.cli.helptext import Command, Group
from packtrain.cli.session import Session, root, with_settings
from packtrain.cli.terminal import answer
from packtrain.errors import UsageError

PUBLISH, PROMOTE, SERVE, LOOK, CHECK = "Publish", "Promote", "Pull and serve", "Look", "Check"

app = typer.Typer(
    name="packtrain",
    cls=Group,
    help="Carries fine-tuned models from LLaMA-Factory to vLLM: the right version, whole, verified, with a way back.",
    epilog="""\
packtrain publish output/merged --name llama-finetuned
packtrain promote llama-finetuned/1 --to production
packtrain serve llama-finetuned@production -- --port 8000
packtrain rollback llama-finetuned""",
    rich_markup_mode=None,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# typer brings click as a part of itself; this is click's UsageError, by the name that typer gives to the outside.
Misused: type[Exception] = typer.BadParameter.__mro__[1]

# Arguments and options that several commands share.
Ref = Annotated[str, typer.Argument(metavar="REFERENCE", help="NAME (its newest), NAME@alias, NAME/3, NAME@sha256:...")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="A registered model.")]
AnyName = Annotated[str | None, typer.Argument(metavar="[NAME]", help="A registered model; without it, all of them.")]
Reason = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; it is written into the ledger.")]
Expect = Annotated[
    int | None,
    typer.Option("--expect", metavar="VERSION", min=0, help="Only if the alias is at this version now (0: not set)."),
]
NewName = Annotated[
    str, typer.Option("--name", metavar="NAME", help="The registered model that gets the version.", show_default=False)
]
Alias = Annotated[str | None, typer.Option("--alias", metavar="ALIAS", help="Promote the version to this alias, too.")]
TrainingConfig = Annotated[
    Path | None,
    typer.Option("--training-config", metavar="YAML", help="The YAML that it was trained with, for the lineage."),
]
TrainingDir = Annotated[
    Path | None,
    typer.Option("--training-dir", metavar="DIR", help="Where the training wrote its losses, for the lineage."),
]
Base = Annotated[
    str | None,
    typer.Option("--base", metavar="BASE", help="What it was trained on: NAME/2, a folder, hf:ORG/NAME@REVISION."),
]
AllowCode = Annotated[bool, typer.Option("--allow-code", help="Allow custom code (*.py, auto_map); it is recorded.")]
Force = Annotated[bool, typer.Option("--force", help="A new version even if these bytes are one already.")]
ForVllm = Annotated[
    list[str] | None, typer.Argument(metavar="[-- VLLM ARGUMENTS]", help="What `vllm serve` is given as it is.")
]


def run_command(arguments: Sequence[str]) -> int:
    """Runs a command. Returns its exit code; raises PacktrainError."""
    command = typer.main.get_command(app)
    try:
        with command.make_context("packtrain", list(arguments)) as context:
            code: int | None = command.invoke(context)
    except typer.Exit as end:
        return end.exit_code
    except Misused as error:
        raise _usage_error(error) from error
    return code or 0


def _usage_error(error: Exception) -> UsageError:
    context = getattr(error, "ctx", None)
    path = context.command_path if context else "packtrain"
    hint = f"See: {path} --help"
    if path.endswith((" serve", " run")) and getattr(error, "option_name", ""):
        hint = f"What is for vLLM stands after two dashes: {path} REFERENCE -- {error.option_name} ..."  # type: ignore[attr-defined]
    message = error.format_message() if hasattr(error, "format_message") else str(error)
    return UsageError(message.rstrip("."), hint=hint)


def _version(wanted: bool) -> None:
    if wanted:
        from packtrain._version import __version__

        answer(f"packtrain {__version__}")
        raise typer.Exit


@app.callback()
@root
def packtrain(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None: ...


@app.command(
    cls=Command,
    rich_help_panel=PUBLISH,
    epilog="packtrain publish output/merged --name llama-finetuned --alias staging --training-config sft.yaml",
)
@with_settings("actor")
def publish(
    session: Session,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A merged or full model, or a LoRA adapter.")],
    name: NewName,
    alias: Alias = None,
    training_config: TrainingConfig = None,
    training_dir: TrainingDir = None,
    base: Base = None,
    allow_code: AllowCode = False,
    force: Force = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and hash; write nothing.")] = False,
) -> None:
    """Make what LLaMA-Factory wrote a new version.

    The directory is checked, hashed, uploaded and only then named. If it is interrupted, the same command continues
    where it was; the same bytes again make no new version.
    """
    published = session.client.publish(
        directory,
        name,
        alias=alias,
        training_config=training_config,
        training_dir=training_dir,
        base=base,
        allow_code=allow_code,
        force=force,
        dry_run=dry_run,
    )
    session.print(published, text=text.published, document=documents.published)
    if published.version and not alias and not dry_run:
        session.note(f"next: packtrain promote {published.version} --to production")


@app.command(
    cls=Command,
    rich_help_panel=PUBLISH,
    epilog="packtrain export merge.yaml --name llama-finetuned --training-config sft.yaml",
)
@with_settings("actor", "llamafactory")
def export(
    session: Session,
    config: Annotated[Path, typer.Argument(metavar="YAML", help="What `llamafactory-cli export` is given.")],
    name: NewName,
    alias: Alias = None,
    training_config: TrainingConfig = None,
    training_dir: TrainingDir = None,
    base: Base = None,
    allow_code: AllowCode = False,
    force: Force = False,
) -> None:
    """Merge with LLaMA-Factory, then publish the result.

    Runs `llamafactory-cli export YAML` and publishes its export_dir, with the lineage that the YAML and the
    adapter's folder give.
    """
    published = session.client.export(
        config,
        name,
        alias=alias,
        training_config=training_config,
        training_dir=training_dir,
        base=base,
        allow_code=allow_code,
        force=force,
    )
    session.print(published, text=text.published, document=documents.published)
    if published.version and not alias:
        session.note(f"next: packtrain promote {published.version} --to production")


@app.command(
    cls=Command,
    rich_help_panel=PROMOTE,
    epilog='packtrain promote llama-finetuned/3 --to production --expect 2 --reason "accuracy 0.87 on the eval set"',
)
@with_settings("actor")
def promote(
    session: Session,
    reference: Ref,
    to: Annotated[str, typer.Option("--to", metavar="ALIAS", help="The alias to move: production, staging, ...")],
    expect: Expect = None,
    reason: Reason = "",
) -> None:
    """Point an alias at a version.

    The ledger keeps who did it, when, from where and why. With --expect nothing is changed if somebody else has
    moved the alias meanwhile (exit code 5).
    """
    move = session.client.promote(reference, to=to, expect=expect, reason=reason)
    session.print(move, text=text.move, document=documents.move)


@app.command(
    cls=Command,
    rich_help_panel=PROMOTE,
    epilog='packtrain rollback llama-finetuned --reason "answers in the wrong language"',
)
@with_settings("actor")
def rollback(
    session: Session,
    name: Name,
    alias: Annotated[
        str,
        typer.Option("--alias", metavar="ALIAS", help="The alias to move back; else production.", show_default=False),
    ] = "production",
    to: Annotated[
        int | None, typer.Option("--to", metavar="VERSION", min=1, help="Back to this version; else to the last one.")
    ] = None,
    expect: Expect = None,
    reason: Reason = "",
) -> None:
    """Point an alias back at the version before.

    A second rollback goes further back, never to and fro. Archived versions are skipped.
    """
    move = session.client.rollback(name, alias=alias, to=to, expect=expect, reason=reason)
    session.print(move, text=text.move, document=documents.move)


@app.command(
    cls=Command,
    rich_help_panel=PROMOTE,
    epilog='packtrain archive llama-finetuned/1 --reason "superseded"',
)
@with_settings("actor")
def archive(session: Session, reference: Ref, reason: Reason = "") -> None:
    """Retire a version, so that it cannot be promoted.

    Refused while an alias points at it. Its bytes stay where they are.
    """
    version = session.client.archive(reference, reason=reason)
    session.print(version, text=text.archived, document=documents.version)


@app.command(
    cls=Command,
    rich_help_panel=SERVE,
    epilog='vllm serve "$(packtrain pull llama-finetuned@production)"',
)
@with_settings()
def pull(
    session: Session,
    reference: Ref,
    to: Annotated[
        Path | None, typer.Option("--to", metavar="DIR", help="Into this folder, not into the cache.")
    ] = None,
) -> None:
    """Fetch a version and print the path of it.

    The path is a complete, verified, read-only folder, and nothing else is printed on stdout. What this node has
    already is not fetched again; if it is interrupted, the same command continues where it was.
    """
    snapshot = session.client.pull(reference, to=to)
    session.print(snapshot, text=lambda snapshot: str(snapshot.path), document=documents.snapshot)


@app.command(
    cls=Command,
    rich_help_panel=SERVE,
    epilog="packtrain serve llama-finetuned@production -- --port 8000 --max-model-len 8192",
)
@with_settings("vllm")
def serve(session: Session, reference: Ref, arguments: ForVllm = None) -> int:
    """Pull a version and run vLLM on it.

    Says when vLLM is ready, passes signals on, leaves nothing behind and ends with vLLM's exit code. An adapter is
    served with its base.
    """
    return session.client.serve(reference, arguments or ())


@app.command(
    "run",
    cls=Command,
    rich_help_panel=SERVE,
    epilog="packtrain run llama-finetuned@production -- --port 8000",
)
@with_settings("vllm")
def run(session: Session, reference: Ref, arguments: ForVllm = None) -> None:
    """Pull a version and become vLLM on it.

    Like serve, but this process is replaced by vLLM: for containers and services, where vLLM is the main process.
    """
    session.client.run(reference, arguments or ())


@app.command(
    cls=Command,
    rich_help_panel=SERVE,
    epilog="packtrain url llama-finetuned@production",
)
@with_settings()
def url(session: Session, reference: Ref) -> None:
    """Print where a version is in the store.

    The URL never changes. It is for other tools, and for vLLM's own streaming from s3://.
    """
    session.print(session.client.url(reference), text=str, document=documents.url)


@app.command(
    cls=Command,
    rich_help_panel=LOOK,
    epilog="packtrain models llama-finetuned",
)
@with_settings()
def models(session: Session, name: AnyName = None) -> None:
    """List versions with aliases, losses and sizes.

    Newest first. The loss is that of the evaluation, or else of the training; `-` is what is not known.
    """
    entries = session.client.models(name)
    session.print(entries, text=text.models, document=documents.models)
    if not entries:
        session.note("there are no models yet; publish one: packtrain publish DIR --name NAME")


@app.command(
    cls=Command,
    rich_help_panel=LOOK,
    epilog="packtrain show llama-finetuned@production",
)
@with_settings()
def show(session: Session, reference: Ref) -> None:
    """Show a version and where it came from.

    Its digest, its place in the store, and the base model, data, settings and results of its training.
    """
    entry = session.client.show(reference)
    url = session.client.url(f"{entry.version.name}@{entry.version.digest}")
    session.print(
        entry,
        text=lambda entry: text.show(entry, url),
        document=lambda entry: {**documents.entry(entry), "url": url},
    )


@app.command(
    cls=Command,
    rich_help_panel=LOOK,
    epilog="packtrain history llama-finetuned",
)
@with_settings()
def history(session: Session, name: Name) -> None:
    """Show what happened to a model, who did it and why.

    The events of its ledger, oldest first.
    """
    session.print(session.client.history(name), text=text.history, document=documents.history)


@app.command(
    cls=Command,
    rich_help_panel=CHECK,
    epilog="packtrain verify llama-finetuned --bytes",
)
@with_settings()
def verify(
    session: Session,
    name: AnyName = None,
    every_byte: Annotated[bool, typer.Option("--bytes", help="Read every byte in the store, too.")] = False,
) -> None:
    """Check that everything is there and unchanged.

    Walks the ledger's chain, the records and the manifests, and names the first thing that does not hold (exit
    code 6).
    """
    verified = session.client.verify(name, every_byte=every_byte)
    session.print(verified, text=text.verified, document=documents.verified)
    if not verified:
        session.note("there are no models yet, so there is nothing to verify")
