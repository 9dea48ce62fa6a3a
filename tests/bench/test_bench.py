"""The bench itself: what it serves, what it calls reached, and that docs/performance.md shows what it kept."""

from __future__ import annotations

import shutil
import sys
from contextlib import suppress
from pathlib import Path
from xml.etree import ElementTree

import pytest
from bench.__main__ import CASES, KEPT
from bench.chart import chart
from bench.endless import endless
from bench.measure import Contender, cores, measure, memory_kept, on_every_core, race
from bench.results import Figure, Outcome, Row, Table, fastest, ratio, wall

from bench import page, results
from packtrain import Client
from packtrain.errors import IntegrityError


def test_what_is_made_as_it_is_asked_for_is_what_its_manifest_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with endless(0, tmp_path / "server", chunks=5) as server:
        for name, value in {
            "AWS_ENDPOINT_URL": server.endpoint,
            "AWS_ACCESS_KEY_ID": "bench",
            "AWS_SECRET_ACCESS_KEY": "bench",
            "AWS_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(name, value)
        snapshot = Client(store="s3://bench", cache_dir=tmp_path / "cache").pull("m", to=tmp_path / "out")
    assert snapshot.fetched == server.size == 5 * (4 << 20)
    (weights,) = snapshot.path.glob("*.safetensors")
    data = weights.read_bytes()
    assert len({data[start : start + (4 << 20)] for start in range(0, len(data), 4 << 20)}) == 5, (
        "each chunk is another"
    )


def test_every_contender_once_in_each_run_and_what_it_leaves_goes(tmp_path: Path) -> None:
    log, left = tmp_path / "log", tmp_path / "left"

    def contender(name: str) -> Contender:
        script = f"from pathlib import Path; Path({str(left)!r}).mkdir(); open({str(log)!r}, 'a').write({name!r})"
        return Contender(name, lambda _: [sys.executable, "-c", script], remove=[left])

    contenders = [contender("a"), contender("b")]
    race(contenders, 3, {})
    assert log.read_text() == "abbaab", "another one is first each time"
    assert not left.exists()
    assert [len(each.costs) for each in contenders] == [3, 3]


def test_the_cost_is_that_of_the_whole_process_on_the_clients_cores() -> None:
    program = f"import os; assert sorted(os.sched_getaffinity(0)) == {cores(1)}; b = bytearray(80_000_000); b[::4096]"
    cost = measure([sys.executable, "-c", program], {})
    assert cost.peak > 80
    assert cost.cpu > 0
    assert 0 <= cost.server <= 1
    with pytest.raises(SystemExit, match="failed"):
        measure([sys.executable, "-c", "raise SystemExit(3)"], {})


def test_where_there_is_no_server_nobody_waits_for_it() -> None:
    with on_every_core():
        assert measure([sys.executable, "-c", ""], {}).server == 0


@pytest.mark.parametrize("offered", [True, False])
def test_memory_is_kept_if_the_kernel_can_be_told_and_then_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offered: bool
) -> None:
    order = tmp_path / "page_reporting_order"
    monkeypatch.setattr("bench.measure._PAGE_REPORTING", order)
    if offered:
        order.write_text("9\n")
    with suppress(KeyboardInterrupt), memory_kept():
        assert not offered or int(order.read_text()) > 10
        raise KeyboardInterrupt
    assert order.exists() is offered and (not offered or order.read_text() == "9\n")


def test_a_table_says_how_busy_the_server_was() -> None:
    busy = [results.Cost(1.0, 1.0, 1.0, server=share) for share in (0.2, 0.9, 0.6)]
    outcome = Outcome(
        "t", tables=[Table("t", 10, [Row("a", True, busy)])], measured_on={"machine": "", "load": "", "date": ""}
    )
    assert "server's core, % busy |" in results.details(outcome)
    assert "| 60 |" in results.details(outcome)
    alone = Outcome("t", tables=[Table("t", 10, [Row("a", True, costs(1.0))])], measured_on=outcome.measured_on)
    assert "server" not in results.details(alone)


def costs(*walls: float) -> list[results.Cost]:
    return [results.Cost(each, each, 1.0) for each in walls]


def test_ratios_are_taken_run_by_run() -> None:
    """A run in which the machine was slow is as slow for both."""
    ours, theirs = Row("a", True, costs(1.0, 10.0, 2.0)), Row("b", False, costs(2.0, 20.0, 3.0))
    assert ratio(ours, theirs, wall) == 0.5
    assert fastest([theirs, ours]) is ours


@pytest.mark.parametrize(
    ("figure", "verdict"),
    [
        (Figure("a", 1.11, "x", 1.1), "**missed**"),
        (Figure("a", 1.1, "x", 1.1), "reached"),
        (Figure("a", 96.9, "%", 97, at_least=True), "**missed**"),
        (Figure("a", 97.0, "%", 97, at_least=True), "reached"),
        (Figure("a", 5.0, "MB"), "| - |  |"),
    ],
)
def test_a_figure_says_whether_it_is_reached(figure: Figure, verdict: str) -> None:
    assert verdict in results.summary({"case": Outcome("t", figures=[figure])})


def test_outcomes_are_kept_as_they_are(tmp_path: Path) -> None:
    table = Table("t", 10, [Row("a", True, costs(1.0, 2.0))])
    outcome = Outcome("t", "n", [table], [Figure("f", 1.0, "x", 1.1)], 2, {"date": "2026-11-26"})
    results.save(tmp_path / "kept", {"case": outcome})
    assert results.load(tmp_path / "kept") == {"case": outcome}


def test_the_page_shows_what_was_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has written a figure by hand."""
    kept = results.load(KEPT)
    assert kept.keys() <= CASES.keys()
    shown = shutil.copy(page.PAGE, tmp_path / "performance.md")
    monkeypatch.setattr(page, "PAGE", shown)
    monkeypatch.setattr(page, "CHART", tmp_path / "performance.svg")
    page.write_page(kept)
    assert shown.read_text() == (KEPT.parent / "performance.md").read_text()
    drawn = (KEPT.parent / "performance.svg").read_text()
    assert drawn == chart(kept)
    ElementTree.fromstring(drawn)


def test_a_lie_of_the_server_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the memory that was measured is that of a pull that checks."""
    for name, value in {"ACCESS_KEY_ID": "bench", "SECRET_ACCESS_KEY": "bench", "REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    with endless(0, tmp_path / "server", chunks=2) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        monkeypatch.setattr("bench.endless._BLOCK", bytes((4 << 20) - 8))
        with pytest.raises(IntegrityError, match="not what its manifest says"):
            Client(store="s3://bench", cache_dir=tmp_path / "cache").pull("m", to=tmp_path / "out")
