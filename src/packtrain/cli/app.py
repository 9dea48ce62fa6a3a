"""The commands, in the order of the job. Each asks the `Client` and prints the result.

Only click is imported at start: everything else is imported by what needs it, so that help is quick.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from packtrain._version import __version__
from packtrain.cli import documents, text
from packtrain.cli.helptext import Group
from packtrain.cli.session import FLAGS, Session, takes
from packtrain.errors import UsageError

PUBLISH, PROMOTE, SERVE, LOOK, CHECK = "Publish", "Promote", "Pull and serve", "Look", "Check"

# Arguments and options that several commands share.
reference = click.argument(
    "reference", metavar="REFERENCE", help="NAME (its newest), NAME@alias, NAME/3, NAME@sha256:..."
)
model = click.argument("name", metavar="NAME", help="A registered model.")
any_model = click.argument(
    "name", metavar="[NAME]", required=False, help="A registered model; without it, all of them."
)
reason = click.option("--reason", metavar="TEXT", default="", help="Why; it is written into the ledger.")
expect = click.option(
    "--expect", metavar="VERSION", type=int, help="Only if the alias is at this version now (0: not set)."
)
new_name = click.option("--name", metavar="NAME", required=True, help="The registered model that gets the version.")
also_promote = click.option("--alias", metavar="ALIAS", help="Promote the version to this alias, too.")
training_config = click.option(
    "--training-config", metavar="YAML", type=Path, help="The YAML that it was trained with, for the lineage."
)
training_dir = click.option(
    "--training-dir", metavar="DIR", type=Path, help="Where the training wrote its losses, for the lineage."
)
base = click.option("--base", metavar="BASE", help="What it was trained on: NAME/2, a folder, hf:ORG/NAME@REVISION.")
allow_code = click.option("--allow-code", is_flag=True, help="Allow custom code (*.py, auto_map); it is recorded.")
force = click.option("--force", is_flag=True, help="A new version even if these bytes are one already.")
for_vllm = click.argument(
    "arguments", metavar="[-- VLLM ARGUMENTS]", nargs=-1, help="What `vllm serve` is given as it is."
)


@click.group(
    "packtrain",
    cls=Group,
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


@packtrain.command(
    panel=PUBLISH,
    epilog="packtrain publish output/merged --name llama-finetuned --alias staging --training-config sft.yaml",
)
@click.argument("directory", metavar="DIR", type=Path, help="A merged or full model, or a LoRA adapter.")
@new_name
@also_promote
@training_config
@training_dir
@base
@allow_code
@force
@click.option("--dry-run", is_flag=True, help="Check and hash; write nothing.")
@takes("actor")
def publish(
    session: Session,
    directory: Path,
    name: str,
    alias: str | None,
    training_config: Path | None,
    training_dir: Path | None,
    base: str | None,
    allow_code: bool,
    force: bool,
    dry_run: bool,
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
    if published.created and not alias:
        session.note(f"next: packtrain promote {published.version} --to production")


@packtrain.command(
    panel=PUBLISH,
    epilog="packtrain export merge.yaml --name llama-finetuned --training-config sft.yaml",
)
@click.argument("config", metavar="YAML", type=Path, help="What `llamafactory-cli export` is given.")
@new_name
@also_promote
@training_config
@training_dir
@base
@allow_code
@force
@takes("actor", "llamafactory")
def export(
    session: Session,
    config: Path,
    name: str,
    alias: str | None,
    training_config: Path | None,
    training_dir: Path | None,
    base: str | None,
    allow_code: bool,
    force: bool,
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
    if published.created and not alias:
        session.note(f"next: packtrain promote {published.version} --to production")


@packtrain.command(
    panel=PROMOTE,
    epilog='packtrain promote llama-finetuned/3 --to production --expect 2 --reason "accuracy 0.87 on the eval set"',
)
@reference
@click.option("--to", metavar="ALIAS", required=True, help="The alias to move: production, staging, ...")
@expect
@reason
@takes("actor")
def promote(session: Session, reference: str, to: str, expect: int | None, reason: str) -> None:
    """Point an alias at a version.

    The ledger keeps who did it, when, from where and why. With --expect nothing is changed if somebody else has
    moved the alias meanwhile (exit code 5).
    """
    move = session.client.promote(reference, to=to, expect=expect, reason=reason)
    session.print(move, text=text.move, document=documents.move)


@packtrain.command(
    panel=PROMOTE,
    epilog='packtrain rollback llama-finetuned --reason "answers in the wrong language"',
)
@model
@click.option("--alias", metavar="ALIAS", default="production", help="The alias to move back; else production.")
@click.option("--to", metavar="VERSION", type=int, help="Back to this version; else to the one before.")
@expect
@reason
@takes("actor")
def rollback(session: Session, name: str, alias: str, to: int | None, expect: int | None, reason: str) -> None:
    """Point an alias back at the version before.

    A second rollback goes further back, never to and fro. Archived versions are skipped.
    """
    move = session.client.rollback(name, alias=alias, to=to, expect=expect, reason=reason)
    session.print(move, text=text.move, document=documents.move)


@packtrain.command(
    panel=PROMOTE,
    epilog='packtrain archive llama-finetuned/1 --reason "superseded"',
)
@reference
@reason
@takes("actor")
def archive(session: Session, reference: str, reason: str) -> None:
    """Retire a version, so that it cannot be promoted.

    Refused while an alias points at it. Its bytes stay where they are.
    """
    version = session.client.archive(reference, reason=reason)
    session.print(version, text=text.archived, document=documents.version)


@packtrain.command(
    panel=SERVE,
    epilog='vllm serve "$(packtrain pull llama-finetuned@production)"',
)
@reference
@click.option("--to", metavar="DIR", type=Path, help="Into this folder, not into the cache.")
@takes()
def pull(session: Session, reference: str, to: Path | None) -> None:
    """Fetch a version and print the path of it.

    The path is a complete, verified, read-only folder, and nothing else is printed on stdout. What this node has
    already is not fetched again; if it is interrupted, the same command continues where it was.
    """
    snapshot = session.client.pull(reference, to=to)
    session.print(snapshot, text=lambda snapshot: str(snapshot.path), document=documents.snapshot)


@packtrain.command(
    panel=SERVE,
    epilog="packtrain serve llama-finetuned@production -- --port 8000 --max-model-len 8192",
)
@reference
@for_vllm
@takes("vllm")
def serve(session: Session, reference: str, arguments: tuple[str, ...]) -> int:
    """Pull a version and run vLLM on it.

    Says when vLLM is ready, passes signals on, leaves nothing behind and ends with vLLM's exit code. An adapter is
    served with its base.
    """
    return session.client.serve(reference, arguments)


@packtrain.command(
    panel=SERVE,
    epilog="packtrain run llama-finetuned@production -- --port 8000",
)
@reference
@for_vllm
@takes("vllm")
def run(session: Session, reference: str, arguments: tuple[str, ...]) -> None:
    """Pull a version and become vLLM on it.

    Like serve, but this process is replaced by vLLM: for containers and services, where vLLM is the main process.
    """
    session.client.run(reference, arguments)


@packtrain.command(
    panel=SERVE,
    epilog="packtrain url llama-finetuned@production",
)
@reference
@takes()
def url(session: Session, reference: str) -> None:
    """Print where a version is in the store.

    The URL never changes. It is for other tools, and for vLLM's own streaming from s3://.
    """
    session.print(session.client.url(reference), text=str, document=documents.url)


@packtrain.command(
    panel=LOOK,
    epilog="packtrain models llama-finetuned",
)
@any_model
@takes()
def models(session: Session, name: str | None) -> None:
    """List versions with aliases, losses and sizes.

    Newest first. The loss is that of the evaluation, or else of the training; `-` is what is not known.
    """
    entries = session.client.models(name)
    session.print(entries, text=text.models, document=documents.models)
    if not entries:
        session.note("there are no models yet; publish one: packtrain publish DIR --name NAME")


@packtrain.command(
    panel=LOOK,
    epilog="packtrain show llama-finetuned@production",
)
@reference
@takes()
def show(session: Session, reference: str) -> None:
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


@packtrain.command(
    panel=LOOK,
    epilog="packtrain history llama-finetuned",
)
@model
@takes()
def history(session: Session, name: str) -> None:
    """Show what happened to a model, who did it and why.

    The events of its ledger, oldest first.
    """
    session.print(session.client.history(name), text=text.history, document=documents.history)


@packtrain.command(
    panel=CHECK,
    epilog="packtrain verify llama-finetuned --bytes",
)
@any_model
@click.option("--bytes", "every_byte", is_flag=True, help="Read every byte in the store, too.")
@takes()
def verify(session: Session, name: str | None, every_byte: bool) -> None:
    """Check that everything is there and unchanged.

    Walks the ledger's chain, the records and the manifests, and names the first thing that does not hold (exit
    code 6).
    """
    verified = session.client.verify(name, every_byte=every_byte)
    session.print(verified, text=text.verified, document=documents.verified)
    if not verified:
        session.note("there are no models yet, so there is nothing to verify")


def run_command(arguments: Sequence[str]) -> int:
    """Runs a command. Returns its exit code; raises PacktrainError."""
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
    return UsageError(error.format_message().rstrip("."), hint=hint)
