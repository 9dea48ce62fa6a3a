"""Training -> versions: `publish` and `export`."""

from __future__ import annotations

from pathlib import Path

import click

from packtrain.cli import documents, options, text
from packtrain.cli.helptext import PUBLISH, command
from packtrain.cli.session import Session, takes


@command(
    panel=PUBLISH,
    epilog="packtrain publish output/merged --name llama-finetuned --alias staging --training-config sft.yaml",
)
@click.argument("directory", metavar="DIR", type=Path, help="A merged or full model, or a LoRA adapter.")
@options.new_name
@options.also_promote
@options.training_config
@options.training_dir
@options.base
@options.allow_code
@options.force
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


@command(
    panel=PUBLISH,
    epilog="packtrain export merge.yaml --name llama-finetuned --training-config sft.yaml",
)
@click.argument("config", metavar="YAML", type=Path, help="What `llamafactory-cli export` is given.")
@options.new_name
@options.also_promote
@options.training_config
@options.training_dir
@options.base
@options.allow_code
@options.force
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
