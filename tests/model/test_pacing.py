"""How wide a download becomes on wires of different kinds."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from packtrain.model.pacing import LONGEST, SHORTEST, Pace

MB = 1_000_000


def settle(pace: Pace, wire: Callable[[int], float], windows: int) -> list[int]:
    """The width after each window."""
    widths = []
    for _ in range(windows):
        pace.observe(wire(pace.width))
        widths.append(pace.width)
    return widths


def test_a_long_wire_is_full_within_a_few_windows() -> None:
    pace = Pace(most=32)
    widths = settle(pace, lambda width: min(width * 10.0, 240.0) * MB, 8)
    assert widths[:4] == [8, 16, 16, 32]
    later = settle(pace, lambda width: min(width * 10.0, 240.0) * MB, 100)
    assert sum(min(width * 10.0, 240.0) for width in later) / len(later) > 0.98 * 240


def test_a_wire_that_gives_no_more_is_not_crowded() -> None:
    pace = Pace(most=32)
    widths = settle(pace, lambda _: 100.0 * MB, 100)
    assert sum(widths) / len(widths) < 12


@pytest.mark.parametrize("seed", range(5))
def test_noise_does_not_make_it_run_away(seed: int) -> None:
    choose = random.Random(seed)
    pace = Pace(most=64)
    widths = settle(pace, lambda _: choose.uniform(0.9, 1.1) * 100 * MB, 300)
    assert sum(widths) / len(widths) < 32


def test_it_finds_out_later_that_there_is_room() -> None:
    pace = Pace(most=64)
    settle(pace, lambda _: 50.0 * MB, 20)
    assert max(settle(pace, lambda width: width * 10.0 * MB, 30)) == 64


def test_it_halves_when_asked_and_does_not_come_back_at_once() -> None:
    pace = Pace(most=32)
    settle(pace, lambda width: width * 10.0 * MB, 4)
    assert pace.width == 32
    pace.slow_down()
    pace.slow_down()
    assert settle(pace, lambda width: width * 10.0 * MB, 10) == [8] * 10
    for _ in range(10):
        pace.slow_down()
    assert pace.width == 1


def test_never_more_than_may_be() -> None:
    assert Pace(most=3).width == 3
    assert max(settle(Pace(most=5), lambda width: width * 1.0 * MB, 50)) == 5


def test_requests_are_long_and_short_at_the_end() -> None:
    pace = Pace(most=8)
    assert pace.request_length(4_000 * MB) == LONGEST
    assert pace.request_length(160 * MB) == 10 * MB
    assert pace.request_length(0) == SHORTEST


@pytest.mark.parametrize("total", [10 * MB, 500 * MB, 4_000 * MB, 140_000 * MB])
def test_a_large_model_takes_few_requests_and_a_small_one_all_at_once(total: int) -> None:
    pace, missing, lengths = Pace(most=8, total=total), total, []
    while missing > 0:
        lengths.append(min(missing, pace.request_length(missing)))
        missing -= lengths[-1]
    assert min(lengths[:-1]) >= SHORTEST
    assert len(lengths) <= 33 + total // (LONGEST // 2)
    assert len(lengths) >= min(8, total // SHORTEST)
