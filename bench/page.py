"""docs/performance.md: the part of it that the bench writes, and its chart."""

from __future__ import annotations

from bench import results
from bench.chart import chart
from bench.results import Outcome
from bench.tools import ROOT

PAGE = ROOT / "docs" / "performance.md"
CHART = ROOT / "docs" / "performance.svg"
BEGIN, END = "<!-- bench output -->", "<!-- end of bench output -->"


def write_page(outcomes: dict[str, Outcome]) -> None:
    """Puts tables and chart in the place of those before."""
    CHART.write_text(chart(outcomes))
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    parts = ["![every measure beside its target](performance.svg)", results.summary(outcomes)]
    parts += [results.details(outcome) for outcome in outcomes.values()]
    PAGE.write_text(before + BEGIN + "\n" + "\n\n".join(parts) + "\n" + END + after)
