"""Exports -> versions, as they appear: `watch`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from packtrain.cli import completing, documents, options
from packtrain.cli.helptext import PUBLISH, command
from packtrain.cli.session import Session, takes
from packtrain.cli.terminal import printable

if TYPE_CHECKING:
    from packtrain.flows.watch import Happened


@command(
    panel=PUBLISH,
    epilog="packtrain watch /srv/exports --name llama-finetuned --alias staging --remove-source",
)
@click.argument(
    "directory",
    metavar="DIR",
    type=Path,
    shell_complete=completing.folder,
    help="Where exports appear: each in a folder, or DIR itself.",
)
@options.new_name
@click.option(
    "--alias",
    metavar="ALIAS",
    shell_complete=completing.aliases,
    help="Promote each new version to this alias, too.",
)
@click.option("--remove-source", is_flag=True, help="Delete what was published, once the store's copy is verified.")
@click.option(
    "--interval",
    metavar="SECONDS",
    type=click.FloatRange(min=0, min_open=True),
    default=30.0,
    help="Between two looks; over it a finished export is quiet. Else 30.",
)
@click.option("--once", is_flag=True, help="Look twice, publish what is finished, and end.")
@takes("actor", "storage_class")
def watch(
    session: Session, directory: Path, name: str, alias: str | None, remove_source: bool, interval: float, once: bool
) -> None:
    """Publish exports as they appear in a folder.

    An export is published when it is complete and nothing in it has changed for a while: once, and whole. Goes on
    until it is interrupted; what fails is tried again.
    """
    happenings = session.client.watch(
        directory, name, alias=alias, remove_source=remove_source, interval=interval, once=once
    )
    for happened in happenings:
        session.tell(happened, text=_text, document=_document)


def _text(happened: Happened) -> str:
    match happened.event:
        case "found":
            what = "found; it is published when it is finished"
        case "published":
            what = f"published as {happened.version}"
        case "known":
            what = f"{happened.version} holds it already"
        case "refused":
            what = "refused, until it changes" + ("" if happened.findings else f": {happened.message}")
        case "removed":
            stayed = f"; not published, so still there: {', '.join(happened.stayed)}" if happened.stayed else ""
            what = f"removed, {happened.version} holds it{stayed}"
        case "kept":
            what = f"not removed: {happened.message}"
        case _:
            what = f"failed, trying again in {happened.retry:.0f} s: {happened.message}"
    lines = [f"{happened.path}: {what}"]
    lines += [f"  {finding.level} {finding}\n    -> {finding.fix}" for finding in happened.findings]
    if happened.hint and not happened.findings:
        lines.append(f"  -> {happened.hint}")
    return "\n".join(printable(line) for entry in lines for line in entry.splitlines())


def _document(happened: Happened) -> dict[str, Any]:
    version = happened.version
    return {
        "event": happened.event,
        "path": str(happened.path),
        "version": documents.version(version) if version else None,
        "findings": [documents.finding(finding) for finding in happened.findings],
        "stayed": list(happened.stayed),
        "message": happened.message,
        "hint": happened.hint,
        "retry": happened.retry,
    }
