"""Training -> versions: `publish`, `export`, `adopt` and `register`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from packtrain.cli import completing, documents, options, text
from packtrain.cli.helptext import PUBLISH, command
from packtrain.cli.session import Session, takes
from packtrain.errors import UsageError
from packtrain.model.amount import size

if TYPE_CHECKING:
    from packtrain.flows.repair import Repaired


@command(
    panel=PUBLISH,
    epilog="packtrain publish output/merged --name llama-finetuned --alias staging --training-config sft.yaml",
)
@click.argument(
    "directory",
    metavar="DIR",
    type=Path,
    shell_complete=completing.folder,
    help="A merged or full model, or a LoRA adapter.",
)
@options.new_name
@options.also_promote
@options.training_config
@options.export_config
@options.training_dir
@options.base
@options.allow_code
@options.force
@options.paranoid
@options.dry_run
@click.option("--repair", is_flag=True, help="Mend what the store holds of DIR's version; makes no new one.")
@takes("actor", "storage_class")
def publish(
    session: Session,
    directory: Path,
    name: str,
    alias: str | None,
    training_config: Path | None,
    export_config: Path | None,
    training_dir: Path | None,
    base: str | None,
    allow_code: bool,
    force: bool,
    paranoid: bool,
    dry_run: bool,
    repair: bool,
) -> None:
    """Make what LLaMA-Factory wrote a new version.

    The directory is checked, hashed, uploaded and only then named. If it is interrupted, the same command continues
    where it was; the same bytes again make no new version.
    """
    if repair:
        if alias or allow_code or force or dry_run:
            raise UsageError(
                "--repair makes no version", hint="Leave out --alias, --allow-code, --force and --dry-run with it."
            )
        results = session.client.repair(
            directory, name, training_config=training_config, training_dir=training_dir, base=base
        )
        session.print(results, text=_repaired, document=_repaired_documents)
        return
    published = session.client.publish(
        directory,
        name,
        alias=alias,
        training_config=training_config,
        export_config=export_config,
        training_dir=training_dir,
        base=base,
        allow_code=allow_code,
        force=force,
        paranoid=paranoid,
        dry_run=dry_run,
    )
    session.print(published, text=text.published, document=documents.published)
    if published.created and not alias:
        session.note(f"next: packtrain promote {published.version} --to production")


@command(
    panel=PUBLISH,
    epilog="packtrain export merge.yaml --name llama-finetuned --training-config sft.yaml",
)
@click.argument(
    "config", metavar="YAML", type=Path, shell_complete=completing.file, help="What `llamafactory-cli export` is given."
)
@options.new_name
@options.also_promote
@options.training_config
@options.training_dir
@options.base
@options.allow_code
@options.force
@options.paranoid
@takes("actor", "storage_class", "llamafactory")
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
    paranoid: bool,
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
        paranoid=paranoid,
    )
    session.print(published, text=text.published, document=documents.published)
    if published.created and not alias:
        session.note(f"next: packtrain promote {published.version} --to production")


@command(
    panel=PUBLISH,
    epilog="packtrain adopt s3://team-bucket/models/support/v1 --name support-tone --alias production",
)
@click.argument(
    "source",
    metavar="SOURCE",
    shell_complete=completing.folder,
    help="A folder; a prefix, s3://BUCKET/PREFIX (gs://, az://); NAME/2 of MLflow's.",
)
@click.option(
    "--name",
    metavar="NAME",
    shell_complete=completing.models,
    help="The registered model that gets the version; not for NAME/2.",
)
@options.also_promote
@options.training_config
@options.training_dir
@options.base
@options.allow_code
@options.paranoid
@options.dry_run
@takes("actor", "storage_class")
def adopt(
    session: Session,
    source: str,
    name: str | None,
    alias: str | None,
    training_config: Path | None,
    training_dir: Path | None,
    base: str | None,
    allow_code: bool,
    paranoid: bool,
    dry_run: bool,
) -> None:
    """Make a model that you already have a version.

    The source is only read. It is checked like any other publish and hashed; within the store's own bucket or file
    system the store then copies it by itself. NAME/2, which somebody registered in MLflow without Packtrain, becomes a
    version under that number.
    """
    published = session.client.adopt(
        source,
        name,
        alias=alias,
        training_config=training_config,
        training_dir=training_dir,
        base=base,
        allow_code=allow_code,
        paranoid=paranoid,
        dry_run=dry_run,
    )
    session.print(published, text=text.published, document=documents.published)
    if published.created and not alias:
        session.note(f"next: packtrain promote {published.version} --to production")


@command(
    panel=PUBLISH,
    epilog="packtrain register llama-finetuned --registry http://mlflow.example.com:5000",
)
@options.model
@takes("actor", "storage_class")
def register(session: Session, name: str) -> None:
    """Show a model of the store's ledger in MLflow.

    With all its versions, under the numbers that they have, and its aliases: after MLflow lost it, or when a team that
    kept its registry in the store begins to use MLflow. Publishing does this by itself for a new model.
    """
    state = session.client.register(name)
    session.print(
        state,
        text=lambda state: f"{name}: {text.count(len(state.versions), 'version')} in MLflow",
        document=lambda state: {"name": name, "versions": sorted(state.versions), "aliases": state.aliases},
    )


def _repaired(results: Sequence[Repaired]) -> str:
    return "\n".join(line for each in results for line in _repaired_lines(each))


def _repaired_lines(repaired: Repaired) -> list[str]:
    mended = f"mended {', '.join(repaired.mended)}" if repaired.mended else "nothing was damaged"
    lines = [f"{repaired.version}: {mended}; all {size(repaired.checked)} are right"]
    if not repaired.lineage:
        lines.append(f"{repaired.version}: its lineage record is damaged; this does not make it again")
    return lines


def _repaired_documents(results: Sequence[Repaired]) -> list[dict[str, Any]]:
    return [
        {
            "name": each.version.name,
            "version": each.version.number,
            "digest": str(each.version.digest),
            "checked": each.checked,
            "mended": list(each.mended),
            "lineage": each.lineage,
        }
        for each in results
    ]
