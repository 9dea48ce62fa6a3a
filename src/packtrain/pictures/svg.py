"""An ancestry as an SVG: what went in, the training with its loss curves, the version, who promoted it.

It flows from top to bottom, the oldest generation first; the curves of a training stand to its right. The picture
has its own background, and colours for light and for dark.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from xml.sax.saxutils import quoteattr

from packtrain.model.ancestry import Ancestry, Generation
from packtrain.model.lineage import Curve, Lineage, thin
from packtrain.pictures import words
from packtrain.pictures.text import cut, printable, xml
from packtrain.pictures.words import Label

# Pixels.
MARGIN = 24
FLOW = 576  # width of the boxes' column
PLOT = 352  # width of the curves' column
GAP = 16
ARROW = 28  # height between a box and what it leads to
CELL = (FLOW - 2 * GAP) // 3  # width of an input
LINE = 18
PADDING = 12
PLOT_HEIGHT = 252
CHARACTER = 6.9  # mean width at 12 px of the widest of the common sans-serif fonts

MAX_POINTS = 400
MAX_STEP = 10**15  # no training has more steps,
MAX_VALUE = 1e30  # and no loss that means anything is larger
TINY = 1e-12  # a loss that is as good as zero
MAX_DOTS = 60  # of an evaluation; more would hide its line
LOGARITHMIC = 30  # how many times the lowest loss the highest is when the axis becomes logarithmic
_COLOURS = 4  # of curves, before they repeat

_STYLE = """
text { font: 12px system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, "DejaVu Sans", sans-serif }
text, .t { fill: #1f2328 } .title { font-weight: 600 } .heading { font-size: 16px; font-weight: 600 }
.muted { fill: #59636e } .ground { fill: #ffffff } .arrow { stroke: #818b98; fill: none; stroke-width: 1.5 }
.head { fill: #818b98 } .box { stroke-width: 1.25 } .axis { stroke: #818b98 } .grid { stroke: #d1d9e0 }
.input { fill: #f6f8fa; stroke: #afb8c1 } .training { fill: #ddf4ff; stroke: #218bff }
.adapter { fill: #fff8c5; stroke: #bf8700 } .version { fill: #dafbe1; stroke: #2da44e }
.alias { fill: #fbefff; stroke: #a475f9 } .unknown { fill: none; stroke: #818b98; stroke-dasharray: 5 4 }
.curve { fill: none; stroke-width: 2; stroke-linejoin: round } .c0 { stroke: #0969da } .c1 { stroke: #bc4c00 }
.c2 { stroke: #8250df } .c3 { stroke: #1a7f37 } .p0 { fill: #0969da } .p1 { fill: #bc4c00 } .p2 { fill: #8250df }
.p3 { fill: #1a7f37 }
@media (prefers-color-scheme: dark) {
text, .t { fill: #e6edf3 } .muted { fill: #9198a1 } .ground { fill: #0d1117 } .grid { stroke: #2f353d }
.input { fill: #151b23; stroke: #656c76 } .training { fill: #0c2744; stroke: #388bfd }
.adapter { fill: #2e2410; stroke: #bb8009 } .version { fill: #0f2d1a; stroke: #3fb950 }
.alias { fill: #271a45; stroke: #a371f7 } .c0 { stroke: #58a6ff } .c1 { stroke: #f0883e } .c2 { stroke: #bc8cff }
.c3 { stroke: #56d364 } .p0 { fill: #58a6ff } .p1 { fill: #f0883e } .p2 { fill: #bc8cff } .p3 { fill: #56d364 }
}"""


@dataclass(frozen=True, slots=True)
class Box:
    """``label`` at its place; ``kind`` is its class of the style."""

    x: float
    y: float
    width: float
    label: Label
    kind: str

    @property
    def lines(self) -> list[str]:
        """The label's lines, wrapped to the width."""
        columns = int((self.width - 2 * PADDING) / CHARACTER)
        if self.width <= CELL:
            return [cut(line, columns) for line in self.label.lines]
        return [part for line in self.label.lines for part in _wrap(line, columns)]

    @property
    def height(self) -> float:
        return 2 * PADDING + LINE * (1 + len(self.lines)) - 4

    @property
    def bottom(self) -> float:
        return self.y + self.height

    @property
    def middle(self) -> float:
        return self.x + self.width / 2

    def draw(self) -> Iterator[str]:
        columns = int((self.width - 2 * PADDING) / (CHARACTER * 1.07))
        whole = "\n".join((self.label.title, *self.label.lines))
        yield f"<g><title>{xml(whole)}</title>"
        yield (
            f'<rect class="box {self.kind}" x="{self.x:g}" y="{self.y:g}" width="{self.width:g}" '
            f'height="{self.height:g}" rx="6"/>'
        )
        left, top = self.x + PADDING, self.y + PADDING + 11
        yield f'<text class="title" x="{left:g}" y="{top:g}">{xml(cut(self.label.title, columns))}</text>'
        for number, line in enumerate(self.lines, start=1):
            yield f'<text class="muted" x="{left:g}" y="{top + LINE * number:g}">{xml(line)}</text>'
        yield "</g>"


def draw(ancestry: Ancestry) -> str:
    """The whole picture, a complete SVG document."""
    boxes: list[Box] = []
    arrows: list[str] = []
    plots: list[str] = []
    top = float(MARGIN + 40)
    before: Box | None = None
    for age, generation in enumerate(reversed(ancestry)):
        youngest = age == len(ancestry) - 1
        top, before = _generation(generation, before, top, youngest, boxes, arrows, plots)
    heading = f"Lineage of {ancestry[0].version}"
    width, height = 2 * MARGIN + FLOW + 2 * GAP + PLOT, top + MARGIN
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height:g}" '
            f'viewBox="0 0 {width} {height:g}" role="img" aria-label={quoteattr(printable(heading))}>',
            f"<title>{xml(heading)}</title>",
            f"<style>{_STYLE}\n</style>",
            f'<rect class="ground" width="{width}" height="{height:g}"/>',
            f'<text class="heading" x="{MARGIN}" y="{MARGIN + 16}">{xml(heading)}</text>',
            *arrows,
            *(line for box in boxes for line in box.draw()),
            *plots,
            "</svg>\n",
        ]
    )


def plot(lineage: Lineage) -> str:
    """The curves of a training alone, a complete SVG document."""
    width, height = 2 * MARGIN + PLOT, 2 * MARGIN + PLOT_HEIGHT
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            f'viewBox="0 0 {width} {height}" role="img" aria-label="Losses">',
            f"<style>{_STYLE}\n</style>",
            f'<rect class="ground" width="{width}" height="{height}"/>',
            *_plot(lineage, MARGIN, MARGIN),
            "</svg>\n",
        ]
    )


def _generation(
    generation: Generation,
    before: Box | None,
    top: float,
    youngest: bool,
    boxes: list[Box],
    arrows: list[str],
    plots: list[str],
) -> tuple[float, Box]:
    """Adds one generation below ``top``. ``before`` is the box of the version that it was made from, which stands
    in the first cell of its inputs already. Returns where the next one begins, and the box of its version."""
    lineage = generation.lineage
    above = [before] if before else []
    plot_bottom = top
    if lineage is None or not lineage.known:
        if not before:
            above = [Box(MARGIN, top, CELL, Label("lineage", ("unknown",)), "unknown")]
            boxes += above
    else:
        cells = _cells(words.inputs(generation, oldest=before is None), before, top)
        boxes += cells
        training = Box(
            MARGIN, max(b.bottom for b in [*above, *cells]) + ARROW, FLOW, words.training(lineage), "training"
        )
        boxes.append(training)
        arrows += [_arrow(box.middle, box.bottom, training.y) for box in [*above, *cells]]
        plots += _plot(lineage, MARGIN + FLOW + 2 * GAP, training.y)
        plot_bottom = training.y + PLOT_HEIGHT
        above = [training]
        for adapter in lineage.adapters:
            label = words.parent(adapter, "adapter")
            box = Box(MARGIN, above[0].bottom + ARROW, FLOW, label, "adapter")
            arrows.append(_arrow(MARGIN + CELL / 2, above[0].bottom, box.y))
            boxes.append(box)
            above = [box]
    version = words.version(generation.version)
    names = tuple(f"@{promotion.alias}" for promotion in generation.promotions)
    label = version if youngest or not names else Label(version.title, (*version.lines, ", ".join(names)))
    box = Box(MARGIN, max(b.bottom for b in above) + ARROW, CELL, label, "version")
    boxes.append(box)
    arrows.append(_arrow(box.middle, above[0].bottom, box.y))
    bottom = max(box.bottom, plot_bottom)
    if youngest:
        bottom = max(bottom, *_aliases(generation, box, boxes, arrows))
    return (bottom if youngest else box.y), box


def _aliases(generation: Generation, version: Box, boxes: list[Box], arrows: list[str]) -> Iterator[float]:
    """Adds the aliases beside the box of their version. Gives where each ends, and first where the version does."""
    yield version.bottom
    y = version.y
    for promotion in generation.promotions:
        x = version.x + CELL + 3 * GAP
        alias = Box(x, y, FLOW - CELL - 3 * GAP, words.promotion(promotion), "alias")
        boxes.append(alias)
        arrows.append(_sideways(alias.x, alias.y + 20, version.x + CELL, min(alias.y + 20, version.bottom - 10)))
        yield alias.bottom
        y = alias.bottom + GAP


def _cells(labels: list[Label], before: Box | None, top: float) -> list[Box]:
    """The inputs in rows of three; the first cell may be taken by the version before."""
    cells: list[Box] = []
    y, row_bottom = top, before.bottom if before else top
    for number, label in enumerate(labels, start=1 if before else 0):
        column = number % 3
        if column == 0 and number:
            y, row_bottom = row_bottom + GAP, 0.0
        cell = Box(MARGIN + column * (CELL + GAP), y, CELL, label, "input")
        row_bottom = max(row_bottom, cell.bottom)
        cells.append(cell)
    return cells


def _arrow(x: float, start: float, end: float) -> str:
    return (
        f'<path class="arrow" d="M{x:g} {start:g}V{end - 6:g}"/><path class="head" d="M{x - 4:g} {end - 8:g}h8l-4 8z"/>'
    )


def _sideways(x: float, y: float, end: float, end_y: float) -> str:
    return (
        f'<path class="arrow" stroke-dasharray="4 3" d="M{x:g} {y:g}H{end + 20:g}L{end + 6:g} {end_y:g}"/>'
        f'<path class="head" d="M{end + 8:g} {end_y - 4:g}v8l-8 -4z"/>'
    )


# Curves


def _plot(lineage: Lineage, x: float, y: float) -> Iterator[str]:
    """The curves of a training in axes with units: training as a line, evaluations with a dot at each point."""
    curves = {
        name: thin(drawable, MAX_POINTS)
        for name, curve in sorted(lineage.curves.items(), key=lambda pair: (pair[0] != "loss", pair[0]))
        if (drawable := tuple(p for p in curve if 0 <= p[0] <= MAX_STEP and abs(p[1]) <= MAX_VALUE))
    }
    if not curves:
        why = "beyond what can be drawn" if lineage.curves else "unknown"
        yield f'<rect class="box unknown" x="{x:g}" y="{y:g}" width="{PLOT}" height="44" rx="6"/>'
        yield f'<text class="muted" x="{x + PADDING:g}" y="{y + 26:g}">loss curve: {why}</text>'
        return
    points = [point for curve in curves.values() for point in curve]
    low, high = min(value for _, value in points), max(value for _, value in points)
    logarithmic = low > TINY and high / low > LOGARITHMIC
    steps = _ticks(0, max(step for step, _ in points) or 1)
    values = _decades(low, high) if logarithmic else _ticks(0.0 if 0 < low < high / 2 else low, high)
    scale = math.log10 if logarithmic else float
    left, right, top, bottom = x + 52, x + PLOT - 12, y + 48, y + PLOT_HEIGHT - 40

    def at(step: float, value: float) -> tuple[float, float]:
        across = (step - steps[0]) / (steps[-1] - steps[0])
        up = (scale(value) - scale(values[0])) / (scale(values[-1]) - scale(values[0]))
        return left + across * (right - left), bottom - up * (bottom - top)

    unit = "loss (nats per token" if lineage.stage in ("sft", "pt") else "loss ("
    heading = f"{unit}{', ' if unit[-1] != '(' else ''}logarithmic)" if logarithmic else f"{unit})".replace(" ()", "")
    yield f'<text class="title" x="{x:g}" y="{y + 12:g}">{heading}</text>'
    yield from _legend(curves, x, y + 34)
    for value in values:
        _, line = at(steps[0], value)
        yield f'<path class="grid" d="M{left:g} {line:.1f}H{right:g}"/>'
        yield f'<text class="muted" text-anchor="end" x="{left - 8:g}" y="{line + 4:.1f}">{value:g}</text>'
    for step in steps:
        column, _ = at(step, values[0])
        yield f'<path class="axis" d="M{column:.1f} {bottom:g}v4"/>'
        yield f'<text class="muted" text-anchor="middle" x="{column:.1f}" y="{bottom + 18:g}">{step:g}</text>'
    yield f'<path class="axis" d="M{left:g} {bottom:g}H{right:g}"/>'
    middle = (left + right) / 2
    yield f'<text class="muted" text-anchor="middle" x="{middle:g}" y="{bottom + 36:g}">training step</text>'
    for number, (name, curve) in enumerate(curves.items()):
        place = [at(step, value) for step, value in curve]
        yield from _line(place, number % _COLOURS, dots=name != "loss" or len(curve) == 1)


def _line(points: list[tuple[float, float]], colour: int, *, dots: bool) -> Iterator[str]:
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    yield f'<path class="curve c{colour}" d="M{path}"/>'
    if dots and len(points) <= MAX_DOTS:
        yield from (f'<circle class="p{colour}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>' for x, y in points)


def _legend(curves: dict[str, Curve], x: float, y: float) -> Iterator[str]:
    """The name of each curve and its last value, as many as there is room for."""
    names = {"loss": "training", "eval_loss": "evaluation"}
    end = x + PLOT
    for number, (name, curve) in enumerate(curves.items()):
        label = f"{names.get(name, name)} {words.number(curve[-1][1])}"
        if x + 14 + len(label) * CHARACTER > end:
            yield f'<text class="muted" x="{x:g}" y="{y:g}">…</text>'
            return
        yield f'<circle class="p{number % _COLOURS}" cx="{x + 4:g}" cy="{y - 4:g}" r="4"/>'
        yield f'<text x="{x + 14:g}" y="{y:g}">{xml(label)}</text>'
        x += 14 + (len(label) + 2) * CHARACTER


def _ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers that span the values, about ``count`` of them, at least two."""
    if high - low <= max(abs(high) * 1e-6, TINY):  # too close to be told apart
        pad = abs(high) / 10 if abs(high) > TINY else 0.5
        low, high = low - pad, high + pad
    rough = (high - low) / count
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10, 20) if unit * factor >= rough)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [number * step for number in range(first, last + 1)]


def _decades(low: float, high: float) -> list[float]:
    """Powers of ten that span positive values; at most seven of them."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = -(-(last - first) // 6)
    return [10.0**power for power in range(first, last + every, every)]


# Text


def _wrap(text: str, columns: int) -> list[str]:
    return textwrap.wrap(printable(text), columns, break_on_hyphens=False) or [""]
