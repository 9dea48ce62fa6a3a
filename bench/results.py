"""What was measured, as docs/performance.json keeps it and docs/performance.md shows it."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.measure import Contender, Cost


@dataclass
class Row:
    name: str
    verified: bool
    costs: list[Cost]


@dataclass
class Table:
    """Contenders for one job of ``size`` bytes. The first row is what the others are compared with."""

    title: str
    size: int
    rows: list[Row]

    @classmethod
    def of(cls, title: str, size: int, contenders: Sequence[Contender]) -> Table:
        return cls(title, size, [Row(each.name, each.verified, each.costs) for each in contenders])


@dataclass
class Figure:
    """One claim: ``value`` is to be at most ``target``, or at least if ``at_least``."""

    what: str
    value: float
    unit: str = "x"
    target: float | None = None
    at_least: bool = False

    @property
    def met(self) -> bool | None:
        if self.target is None:
            return None
        return self.value >= self.target if self.at_least else self.value <= self.target


@dataclass
class Outcome:
    """Of one case."""

    title: str
    note: str = ""
    tables: list[Table] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    runs: int = 0
    measured_on: dict[str, str] = field(default_factory=dict)


def ratios(mine: Row, other: Row, of: Callable[[Cost], float]) -> list[float]:
    """Run by run: what was measured side by side."""
    return [of(a) / of(b) for a, b in zip(mine.costs, other.costs, strict=True)]


def ratio(mine: Row, other: Row, of: Callable[[Cost], float]) -> float:
    return statistics.median(ratios(mine, other, of))


def wall(cost: Cost) -> float:
    return cost.wall


def cpu(cost: Cost) -> float:
    return cost.cpu


def fastest(rows: Iterable[Row]) -> Row:
    return min(rows, key=lambda row: statistics.median(cost.wall for cost in row.costs))


def this_machine(versions: dict[str, str]) -> dict[str, str]:
    """What the figures were taken on."""
    model = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "?"
    )
    memory = next((int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), 0)
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{os.cpu_count()} cores of {model}, {memory / 1e6:.0f} GB, Linux {platform.release()}",
        "load": f"{os.getloadavg()[1]:.1f}",
        "Python": platform.python_version(),
        **versions,
    }


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


# Kept


def load(path: Path) -> dict[str, Outcome]:
    """The outcomes that were kept, by the names of their cases."""
    if not path.exists():
        return {}
    return {name: _outcome(value) for name, value in json.loads(path.read_text()).items()}


def save(path: Path, outcomes: dict[str, Outcome]) -> None:
    kept = {name: asdict(outcome) for name, outcome in outcomes.items()}
    path.write_text(json.dumps(kept, indent=1, default=float) + "\n")


def _outcome(value: dict[str, Any]) -> Outcome:
    tables = [
        Table(
            table["title"],
            table["size"],
            [Row(row["name"], row["verified"], [Cost(**cost) for cost in row["costs"]]) for row in table["rows"]],
        )
        for table in value["tables"]
    ]
    figures = [Figure(**figure) for figure in value["figures"]]
    return Outcome(value["title"], value["note"], tables, figures, value["runs"], value["measured_on"])


# Shown


def summary(outcomes: dict[str, Outcome]) -> str:
    """Every figure beside its target."""
    lines = ["| measure | measured | to reach | |", "|---|---|---|---|"]
    for outcome in outcomes.values():
        for figure in outcome.figures:
            verdict = {True: "reached", False: "**missed**", None: ""}[figure.met]
            lines.append(f"| {figure.what} | {amount(figure)} | {goal(figure)} | {verdict} |")
    return "\n".join(lines)


def details(outcome: Outcome) -> str:
    """The tables of one case."""
    lines = [f"### {outcome.title}", ""]
    if outcome.note:
        lines += [outcome.note, ""]
    for table in outcome.tables:
        lines += [_table(table), ""]
    facts = outcome.measured_on
    versions = ", ".join(f"{name} {value}" for name, value in facts.items() if name not in ("date", "machine", "load"))
    runs = f"{outcome.runs} runs, interleaved; " if outcome.runs > 1 else ""
    lines.append(f"*{runs}{facts['machine']} (load {facts['load']}), {facts['date']}; {versions}.*")
    return "\n".join(lines)


def _table(table: Table) -> str:
    costs = [cost for row in table.rows for cost in row.costs]
    served, counted = any(cost.server for cost in costs), any(cost.received for cost in costs)
    heads = [table.title, "verified", "wall s (min-max)", "ratio", "CPU s per GB", "peak MB"]
    lines = []
    for row in table.rows:
        walls = [cost.wall for cost in row.costs]
        cells = [
            row.name,
            "yes" if row.verified else "no",
            f"{_median(walls):.2f} ({min(walls):.2f}-{max(walls):.2f})",
            f"{ratio(row, table.rows[0], wall):.2f}",
            f"{_median([cost.cpu for cost in row.costs]) / (table.size / 1e9):.2f}",
            f"{_median([cost.peak for cost in row.costs]):.0f}",
        ]
        if served:
            cells.append(f"{100 * _median([cost.server for cost in row.costs]):.0f}")
        if counted:
            cells.append(f"{_median([cost.received for cost in row.costs]) / 1e6:.2f}")
        lines.append(cells)
    if served:
        heads.append("server's core, % busy")
    if counted:
        heads.append("MB from the server")
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [heads, ["---"] * len(heads), *lines])


def _median(values: Sequence[float]) -> float:
    return statistics.median(values)


def amount(figure: Figure) -> str:
    return _amount(figure.value, figure.unit)


def goal(figure: Figure) -> str:
    if figure.target is None:
        return "-"
    return ("at least " if figure.at_least else "at most ") + _amount(figure.target, figure.unit)


def _amount(value: float, unit: str) -> str:
    if unit == "x":
        return f"{value:.3f}x" if 1 < value < 1.01 else f"{value:.2f}x"
    if unit == "%":
        return f"{value:.1f} %"
    if not unit:
        return f"{value:.0f}"  # a count
    return f"{value:.0f} {unit}" if value >= 10 else f"{value:.1f} {unit}"
