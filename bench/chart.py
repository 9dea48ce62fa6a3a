"""Every figure beside its target, as one SVG."""

from __future__ import annotations

from xml.sax.saxutils import escape

from bench.results import Figure, Outcome, amount, goal

# Pixels.
_WIDTH, _MARGIN, _LINE, _BAR = 960, 16, 26, 14
_LABELS, _PLOT = 470, 300  # widths: of what a bar is, and of a bar that just reaches its target at two thirds
_LONGEST = 1.5  # times the target: a longer bar ends there

_STYLE = """
text { font: 12px system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, "DejaVu Sans", sans-serif;
fill: #1f2328 } .heading { font-weight: 600; font-size: 13px } .muted { fill: #59636e } .ground { fill: #ffffff }
.met { fill: #2da44e } .missed { fill: #cf222e } .target { stroke: #1f2328; stroke-width: 1.5 }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .muted { fill: #9198a1 } .ground { fill: #0d1117 }
.met { fill: #3fb950 } .missed { fill: #f85149 } .target { stroke: #e6edf3 } }"""


def chart(outcomes: dict[str, Outcome]) -> str:
    """One bar a figure that has a target, as long as it is of that target; the line is the target."""
    parts: list[str] = []
    y = _MARGIN + 14
    for outcome in outcomes.values():
        figures = [figure for figure in outcome.figures if figure.target is not None]
        if not figures:
            continue
        parts.append(f'<text class="heading" x="{_MARGIN}" y="{y}">{escape(outcome.title)}</text>')
        y += 8
        for figure in figures:
            parts.append(_bar(figure, y))
            y += _LINE
        y += 24
    target = _MARGIN + _LABELS + _PLOT / _LONGEST
    top = f'<line class="target" x1="{target}" y1="{_MARGIN + 4}" x2="{target}" y2="{y - 30}"/>'
    says = f'<text class="muted" x="{target}" y="{_MARGIN - 2}" text-anchor="middle">target</text>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{y}" viewBox="0 0 {_WIDTH} {y}" role="img">'
        f"<title>Measured, beside the targets</title><style>{_STYLE}</style>"
        f'<rect class="ground" width="100%" height="100%"/>{"".join(parts)}{top}{says}</svg>\n'
    )


def _bar(figure: Figure, y: int) -> str:
    assert figure.target is not None
    of_none = _LONGEST if figure.value else 0.0
    share = figure.value / figure.target if figure.target else of_none
    length = min(share, _LONGEST) * _PLOT / _LONGEST
    x = _MARGIN + _LABELS
    middle = y + _LINE // 2 + 4
    sign = "≥" if figure.at_least else "≤"
    value = f"{amount(figure)} ({sign} {goal(figure).split(' ', 2)[2]})"
    return (
        f'<text x="{x - 10}" y="{middle}" text-anchor="end">{escape(figure.what.partition(" (")[0])}</text>'
        f'<rect class="{"met" if figure.met else "missed"}" x="{x}" y="{y + (_LINE - _BAR) // 2}" width="{length:.1f}" '
        f'height="{_BAR}" rx="2"/>'
        f'<text class="muted" x="{x + _PLOT + 8}" y="{middle}">{escape(value)}</text>'
    )
