"""Where a version came from: `lineage`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from packtrain.cli import documents, options
from packtrain.cli.helptext import LOOK, command
from packtrain.cli.session import Session, takes
from packtrain.cli.text import card, lineage_rows, run_rows, time
from packtrain.model.amount import size

if TYPE_CHECKING:
    from packtrain.model.ancestry import Ancestry, Generation, Promotion


@command(panel=LOOK, epilog="packtrain lineage llama-finetuned@production --svg lineage.svg")
@options.reference
@options.svg
@click.option("--mermaid", is_flag=True, help="Print it as a Mermaid flowchart instead.")
@takes()
def lineage(session: Session, reference: str, svg: Path | None, mermaid: bool) -> None:
    """Show which training made a version.

    Its data, settings, results and who promoted it; then the same of the base model, as far back as it is published.
    """
    ancestry = session.client.lineage(reference)
    if svg is not None:
        from packtrain.pictures.svg import draw

        session.draw(svg, draw(ancestry))
    session.print(ancestry, text=_mermaid if mermaid else text, document=document)


def text(ancestry: Ancestry) -> str:
    """A card for each generation, the version first."""
    return "\n\n".join(card(_rows(generation)) for generation in ancestry)


def _rows(generation: Generation) -> list[tuple[str, str]]:
    version = generation.version
    return [
        ("version", f"{version} ({version.kind}, {size(version.size)}{', archived' if version.archived else ''})"),
        ("digest", str(version.digest)),
        ("published", f"{time(version.created)} UTC by {version.actor}"),
        *((f"@{promotion.alias}", _promotion(promotion)) for promotion in generation.promotions),
        *lineage_rows(generation.lineage),
        *run_rows(generation.run),
    ]


def _promotion(promotion: Promotion) -> str:
    how = "rolled back" if promotion.back else "promoted"
    reason = f": {promotion.reason}" if promotion.reason else ""
    return f"{how} {time(promotion.time)} UTC by {promotion.actor}{reason}"


def document(ancestry: Ancestry) -> list[dict[str, Any]]:
    return [
        {
            **documents.version(generation.version),
            "aliases": [
                {
                    "alias": each.alias,
                    "actor": each.actor,
                    "time": each.time,
                    "reason": each.reason,
                    "rolled_back": each.back,
                }
                for each in generation.promotions
            ],
            "lineage": documents.lineage(generation.lineage),
            "run": documents.run(generation.run),
        }
        for generation in ancestry
    ]


def _mermaid(ancestry: Ancestry) -> str:
    from packtrain.pictures.mermaid import draw

    return draw(ancestry)
