"""What changed in the bytes of two versions, and what that costs a node: `diff`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from packtrain.cli import documents, options
from packtrain.cli.helptext import LOOK, command
from packtrain.cli.session import Session, takes
from packtrain.cli.text import NONE, count, table
from packtrain.model.amount import size

if TYPE_CHECKING:
    from packtrain.model.delta import Delta, FileChange, Stack
    from packtrain.model.sourcing import Ways
    from packtrain.model.tensors import Tally

BLOCK = 40  # layers side by side
RULER = 5  # layers from one number above them to the next
SHOWN = 10  # files by name; the others are counted
LEGEND = "· nothing of it is fetched, ░▒▓ a part, █ all of it; - it is gone"


@command(panel=LOOK, epilog="packtrain diff llama-finetuned/2 llama-finetuned/3")
@options.before
@options.after
@click.option("--exact", is_flag=True, help="Also read the small tensors that cannot be told apart by digests.")
@options.svg
@takes()
def diff(session: Session, before: str, after: str, exact: bool, svg: Path | None) -> None:
    """Show which tensors changed, and what a node would fetch.

    By layer and kind: how much of AFTER a node that has BEFORE links, copies and fetches, in how many chunks and
    requests. Tensors are compared by the digests in the manifests: no weights are downloaded.
    """
    delta = session.client.diff(before, after, exact=exact)
    if svg is not None:
        from packtrain.pictures.heatmap import draw

        session.draw(svg, draw(delta))
    session.print(delta, text=text, document=document)


def text(delta: Delta) -> str:
    """Layers by kinds of tensors, then everything that a node gets."""
    title = f"{delta.before} -> {delta.after}"
    if delta.same:
        return f"{title}\n\nThey are the same version: a node that has one has the other."
    grid = list(_grid(delta))
    tensors = [f"{table(('TENSORS', '', '', 'SIZE', 'FETCHED'), grid)}\n\n{LEGEND}"] if grid else []
    return "\n\n".join([title, *tensors, _transfer(delta), *_notes(delta)])


# Layers by kinds


def _grid(delta: Delta) -> Iterator[tuple[str, ...]]:
    from packtrain.model.delta import stacks

    for stack in stacks(delta.tensors):
        for start in range(0, len(stack.layers), BLOCK):
            layers = stack.layers[start : start + BLOCK]
            yield (_name(stack, layers), _ruler(layers) if stack.name else "", "", "", "")
            yield from _rows(stack, layers)


def _name(stack: Stack, layers: list[int]) -> str:
    if not stack.name:
        return "outside of layers"
    return f"{stack.name} {layers[0]}-{layers[-1]}" if len(layers) > 1 else f"{stack.name} {layers[0]}"


def _ruler(layers: list[int]) -> str:
    return "".join(str(layer).ljust(RULER) for layer in layers[::RULER])


def _rows(stack: Stack, layers: list[int]) -> Iterator[tuple[str, ...]]:
    from packtrain.model.tensors import Tally

    for kind, row in stack.kinds.items():
        present = [row[layer] for layer in layers if layer in row]
        if present:
            total = sum(present, Tally())
            states = ", ".join(f"{number} {state}" for state, number in total.tensors.items() if number)
            cells = "".join(_cell(row.get(layer)) for layer in layers)
            yield (f"  {kind}", cells, states, _amount(total.size), _amount(total.ways.fetched))


def _cell(tally: Tally | None) -> str:
    """How much of it is fetched."""
    if tally is None:
        return " "
    fetched, whole = tally.ways.fetched, tally.size
    if not fetched:
        return "·" if whole or not tally.tensors["removed"] else "-"
    return "█" if fetched == whole else "░▒▓"[min(2, 3 * fetched // whole)]


def _amount(count: int) -> str:
    return size(count) if count else NONE


# Everything that a node gets


def _transfer(delta: Delta) -> str:
    weights = [file for file in delta.files if file.header is not None]
    others = [file for file in delta.files if file.header is None and file.after is not None]
    at_hand = [file for file in others if not file.ways.fetched]
    new = sorted((file for file in others if file.ways.fetched), key=lambda file: -file.ways.fetched)
    rows = [
        ("tensors", delta.total.ways),
        (count(len(weights), "safetensors header"), delta.headers),
        *((file.path, file.ways) for file in new[:SHOWN]),
        (count(len(new[SHOWN:]), "smaller file"), _sum(new[SHOWN:])),
        (count(len(at_hand), "other file"), _sum(at_hand)),
        ("the manifest", delta.manifest),
        ("all", delta.ways),
    ]
    head = (f"A NODE WITH {delta.before} GETS", "SIZE", "LINKED", "COPIED", "FETCHED")
    return table(head, [(name, *map(_amount, (w.size, w.linked, w.copied, w.fetched))) for name, w in rows if w.size])


def _sum(files: list[FileChange]) -> Ways:
    from packtrain.model.sourcing import Ways

    return sum((file.ways for file in files), Ways())


def _notes(delta: Delta) -> Iterator[str]:
    fetched, plan = delta.ways.fetched, delta.plan
    yield (
        f"fetched: {fetched / delta.ways.size:.1%}, in {count(plan.chunks, 'chunk')} and the manifest, "
        f"with {plan.requests + 1} requests or more"
    )
    if gone := [file.path for file in delta.files if file.after is None]:
        more = f" and {len(gone) - SHOWN} more" if len(gone) > SHOWN else ""
        yield f"files that {delta.after} lacks: {', '.join(gone[:SHOWN])}{more}"
    if unknown := delta.total.tensors["unknown"]:
        yield (
            f"unknown: {count(unknown, 'small tensor')} in chunks that others share, of which something changed; "
            f"--exact reads {size(delta.total.bytes['unknown'])} of each version and tells"
        )


# For programs


def document(delta: Delta) -> dict[str, Any]:
    from packtrain.model.tensors import SAME, kind_of, layer_of, tally

    cells = tally(delta.tensors, lambda name: (layer_of(name), kind_of(name)))
    return {
        "before": documents.version(delta.before),
        "after": documents.version(delta.after),
        "transfer": {
            "all": _ways(delta.ways),
            "tensors": _ways(delta.total.ways),
            "headers": _ways(delta.headers),
            "manifest": _ways(delta.manifest),
            "chunks": delta.plan.chunks,
            "requests": delta.plan.requests,
        },
        "files": [
            {"path": file.path, "state": file.state, "before": file.before, "after": file.after, **_ways(file.ways)}
            for file in delta.files
        ],
        "tensors": {
            "total": _tally(delta.total),
            "kinds": {key: _tally(each) for key, each in tally(delta.tensors, kind_of).items()},
            "layers": {key: _tally(each) for key, each in tally(delta.tensors, layer_of).items()},
            "cells": [{"layer": layer, "kind": kind, **_tally(each)} for (layer, kind), each in cells.items()],
            "differing": [
                {"name": each.name, "state": each.state, "bytes": each.size, **_ways(each.ways)}
                for each in delta.tensors
                if each.state != SAME
            ],
        },
    }


def _ways(ways: Ways) -> dict[str, int]:
    return {"linked": ways.linked, "copied": ways.copied, "fetched": ways.fetched}


def _tally(each: Tally) -> dict[str, Any]:
    states = {state: {"tensors": each.tensors[state], "bytes": each.bytes[state]} for state in each.tensors}
    return {**states, **_ways(each.ways)}
