"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path

import click

from packtrain.cli import completing

reference = click.argument(
    "reference",
    metavar="REFERENCE",
    shell_complete=completing.references,
    help="NAME (its newest), NAME@alias, NAME/3, NAME@sha256:...",
)
before = click.argument(
    "before", metavar="BEFORE", shell_complete=completing.references, help="A reference, as for the other commands."
)
after = click.argument(
    "after", metavar="AFTER", shell_complete=completing.references, help="Another one, of the same model or of another."
)
svg = click.option(
    "--svg", metavar="FILE", type=Path, shell_complete=completing.file, help="Also draw it, into this file."
)
model = click.argument("name", metavar="NAME", shell_complete=completing.models, help="A registered model.")
any_model = click.argument(
    "name",
    metavar="[NAME]",
    required=False,
    shell_complete=completing.models,
    help="A registered model; without it, all of them.",
)
reason = click.option("--reason", metavar="TEXT", default="", help="Why; it is written into the ledger.")
expect = click.option(
    "--expect", metavar="VERSION", type=int, help="Only if the alias is at this version now (0: not set)."
)
new_name = click.option(
    "--name",
    metavar="NAME",
    required=True,
    shell_complete=completing.models,
    help="The registered model that gets the version.",
)
also_promote = click.option(
    "--alias", metavar="ALIAS", shell_complete=completing.aliases, help="Promote the version to this alias, too."
)
training_config = click.option(
    "--training-config",
    metavar="YAML",
    type=Path,
    shell_complete=completing.file,
    help="The YAML that it was trained with, for the lineage.",
)
export_config = click.option(
    "--export-config",
    metavar="YAML",
    type=Path,
    shell_complete=completing.file,
    help="The YAML that it was merged with, for the lineage.",
)
training_dir = click.option(
    "--training-dir",
    metavar="DIR",
    type=Path,
    shell_complete=completing.folder,
    help="Where the training wrote its losses, for the lineage.",
)
base = click.option(
    "--base",
    metavar="BASE",
    shell_complete=completing.bases,
    help="What it was trained on: NAME/2, a folder, hf:ORG/NAME@REVISION.",
)
allow_code = click.option("--allow-code", is_flag=True, help="Allow custom code (*.py, auto_map); it is recorded.")
force = click.option("--force", is_flag=True, help="A new version even if these bytes are one already.")
paranoid = click.option(
    "--paranoid", is_flag=True, help="Read everything back from the store before the version is named."
)
verify = click.option(
    "--verify", is_flag=True, help="In place: check every byte before. What is copied is always checked."
)
dry_run = click.option("--dry-run", is_flag=True, help="Check and hash; write nothing.")
for_vllm = click.argument(
    "arguments", metavar="[-- VLLM ARGUMENTS]", nargs=-1, help="What `vllm serve` is given as it is."
)
