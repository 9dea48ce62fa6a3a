"""Whether it is right: `check` before a publish, `verify` after."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from packtrain.cli import completing, documents, options, text
from packtrain.cli.helptext import CHECK, PUBLISH, command
from packtrain.cli.session import Session, takes
from packtrain.cli.terminal import printable
from packtrain.errors import EXIT_CODES, Refused
from packtrain.model.amount import size

if TYPE_CHECKING:
    from packtrain.flows.check import Verdict


@command(
    panel=PUBLISH,
    epilog="packtrain check output/merged --scan",
)
@click.argument(
    "directory",
    metavar="DIR",
    type=Path,
    shell_complete=completing.folder,
    help="A merged or full model, or a LoRA adapter.",
)
@options.base
@options.allow_code
@click.option("--scan", is_flag=True, help="Read all weights, too, and look for NaN and infinity.")
@takes()
def check(session: Session, directory: Path, base: str | None, allow_code: bool, scan: bool) -> int:
    """Say whether vLLM could serve a directory.

    What publish asks first, without publishing: every finding with what is wrong, where, and what to do. Ends with
    exit code 3 if a publish would be refused.
    """
    verdict = session.client.check(directory, base=base, allow_code=allow_code, scan=scan)
    session.print(verdict, text=_text, document=_document)
    return EXIT_CODES[Refused] if verdict.refused else 0


def _text(verdict: Verdict) -> str:
    lines = [f"{verdict.directory}: {verdict.kind}, {verdict.files} files, {size(verdict.size)}"]
    for finding in verdict.findings:
        lines += [f"  {finding.level} {finding}", f"    -> {finding.fix}"]
    return "\n".join(printable(line) for line in [*lines, _sum(verdict)])


def _sum(verdict: Verdict) -> str:
    if not verdict.findings:
        return "all is well" if verdict.scanned else "all is well, as far as names, headers and documents tell"
    refusals = sum(finding.level == "refuse" for finding in verdict.findings)
    warnings = len(verdict.findings) - refusals
    counted = [(refusals, "refusal"), (warnings, "warning")]
    told = ", ".join(f"{count} {what}{'s' * (count > 1)}" for count, what in counted if count)
    return f"{told}: publish would {'refuse it' if refusals else 'take it'}"


def _document(verdict: Verdict) -> dict[str, Any]:
    return {
        "directory": str(verdict.directory),
        "kind": verdict.kind,
        "files": verdict.files,
        "size": verdict.size,
        "left": list(verdict.left),
        "scanned": verdict.scanned,
        "refused": verdict.refused,
        "findings": [documents.finding(finding) for finding in verdict.findings],
    }


@command(
    panel=CHECK,
    epilog="packtrain verify llama-finetuned --bytes",
)
@options.any_model
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
