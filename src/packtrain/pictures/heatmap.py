"""A delta as an SVG: layers by kinds of tensors, the darker the more of it is fetched; below, how all of it comes.

The picture has its own background, and colours for light and for dark. What a cell stands for is said where the
pointer rests on it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from xml.sax.saxutils import quoteattr

from packtrain.model.amount import size
from packtrain.model.delta import Delta, Stack, stacks
from packtrain.model.tensors import Tally
from packtrain.pictures.text import cut, printable, xml

# Pixels.
MARGIN = 24
NAMES = 184  # width of the kinds' column
CELLS, FEWEST = 640, 240  # width that the rows of cells take, at most and at least
SAYS = 272  # width of what stands at a row's end
LINE = 20
CELL = 16  # a cell's height, and its width as long as all find room
BAR = 14
CHARACTER = 6.9  # mean width at 12 px of the widest of the common sans-serif fonts
STEPS = 4  # of the scale

_STYLE = """
text { font: 12px system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, "DejaVu Sans", sans-serif }
text { fill: #1f2328 } .heading { font-size: 16px; font-weight: 600 } .title { font-weight: 600 }
.muted { fill: #59636e } .ground { fill: #ffffff } .cell { stroke: #d1d9e0; stroke-width: 0.5 }
.s0 { fill: #eff2f5 } .s1 { fill: #b6e3ff } .s2 { fill: #54aeff } .s3 { fill: #0969da } .s4 { fill: #033d8b }
.gone { fill: none; stroke: #818b98; stroke-dasharray: 2 2 }
.linked { fill: #aceebb } .copied { fill: #4ac26b } .fetched { fill: #033d8b }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 } .muted { fill: #9198a1 } .ground { fill: #0d1117 } .cell { stroke: #2f353d }
.s0 { fill: #151b23 } .s1 { fill: #0c2d6b } .s2 { fill: #1158c7 } .s3 { fill: #388bfd } .s4 { fill: #a5d6ff }
.linked { fill: #0f5323 } .copied { fill: #2ea043 } .fetched { fill: #a5d6ff }
}"""


def draw(delta: Delta) -> str:
    """The whole picture, a complete SVG document."""
    ways, plan = delta.ways, delta.plan
    heading = f"{delta.before} → {delta.after}"
    share = f"{ways.fetched / ways.size:.1%}" if ways.size else "nothing"
    said = f"{size(ways.fetched)} of {size(plan.manifest.size + delta.manifest.size)} fetched ({share})"
    drawn = stacks(delta.tensors)
    cells = float(min(CELLS, max([FEWEST, *(CELL * len(stack.layers) for stack in drawn)])))
    width = MARGIN + NAMES + cells + SAYS
    top = MARGIN + 76.0
    lines: list[str] = []
    for stack in drawn:
        lines += _stack(stack, top, cells)
        top += LINE * (len(stack.kinds) + 1) + 8
    height = top + BAR + 2 * LINE + MARGIN
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" '
            f'viewBox="0 0 {width:g} {height:g}" role="img" aria-label={quoteattr(printable(f"{heading}: {said}"))}>',
            f"<title>{xml(heading)}</title>",
            f"<style>{_STYLE}\n</style>",
            f'<rect class="ground" width="{width:g}" height="{height:g}"/>',
            f'<text class="heading" x="{MARGIN}" y="{MARGIN + 16}">{xml(cut(heading, 90))}</text>',
            f'<text class="muted" x="{MARGIN}" y="{MARGIN + 38}">{xml(said)}</text>',
            *_legend(width - MARGIN, MARGIN + 27),
            *lines,
            *_bar(delta, top, width - 2 * MARGIN),
            "</svg>\n",
        ]
    )


def _legend(right: float, y: float) -> Iterator[str]:
    x = right - 48
    yield f'<text class="muted" x="{x:g}" y="{y + 12:g}">all of it</text>'
    for step in range(STEPS, -1, -1):
        x -= CELL
        yield f'<rect class="cell s{step}" x="{x - 6:g}" y="{y:g}" width="{CELL}" height="{CELL}"/>'
    yield f'<text class="muted" text-anchor="end" x="{x - 12:g}" y="{y + 12:g}">nothing of it is fetched</text>'


def _stack(stack: Stack, top: float, cells: float) -> Iterator[str]:
    """A line for its layers' numbers, then one for each kind."""
    yield f'<text class="title" x="{MARGIN}" y="{top:g}">{xml(cut(stack.name or "outside of layers", 26))}</text>'
    side = min(float(CELL), cells / len(stack.layers))
    places = {layer: MARGIN + NAMES + number * side for number, layer in enumerate(stack.layers)}
    if stack.name:
        every = 5 * math.ceil(32 / (5 * side))
        for layer in stack.layers[::every]:
            yield f'<text class="muted" x="{places[layer]:g}" y="{top:g}">{layer}</text>'
    top += 8
    for kind, row in stack.kinds.items():
        middle = top + LINE / 2 + 4
        yield f'<text x="{MARGIN}" y="{middle:g}">{xml(cut(kind, int(NAMES / CHARACTER)))}</text>'
        for layer, cell in row.items():
            said = f"{stack.name}.{layer} {kind}" if stack.name else kind
            yield _cell(cell, said, places[layer], top + (LINE - CELL) / 2, side)
        says = cut(_says(sum(row.values(), Tally())), int((SAYS - MARGIN - 12) / CHARACTER))
        yield f'<text class="muted" x="{MARGIN + NAMES + cells + 12:g}" y="{middle:g}">{xml(says)}</text>'
        top += LINE


def _cell(cell: Tally, name: str, x: float, y: float, side: float) -> str:
    fetched, whole = cell.ways.fetched, cell.size
    step = -(-STEPS * fetched // whole) if whole else 0
    kind = "gone" if not whole and cell.tensors["removed"] else f"s{step}"
    return (
        f'<rect class="cell {kind}" x="{x:g}" y="{y:g}" width="{side:g}" height="{CELL}">'
        f"<title>{xml(f'{name}: {_says(cell)}')}</title></rect>"
    )


def _says(each: Tally) -> str:
    states = ", ".join(f"{number} {state}" for state, number in each.tensors.items() if number)
    return f"{states}; {size(each.ways.fetched)} fetched" if each.ways.fetched else states


def _bar(delta: Delta, top: float, width: float) -> Iterator[str]:
    """How all of it comes, to scale."""
    ways = delta.ways
    x = label = float(MARGIN)
    for name, amount in (("linked", ways.linked), ("copied", ways.copied), ("fetched", ways.fetched)):
        if amount:
            part = width * amount / ways.size
            yield f'<rect class="{name}" x="{x:.1f}" y="{top:g}" width="{part:.1f}" height="{BAR}"/>'
            x += part
            text = f"{name} {size(amount)}"
            yield f'<rect class="{name}" x="{label:g}" y="{top + BAR + 10:g}" width="10" height="10"/>'
            yield f'<text x="{label + 16:g}" y="{top + BAR + 19:g}">{xml(text)}</text>'
            label += 32 + len(text) * CHARACTER
