"""The same flows in longer sessions, in random orders: many publishers, collectors, archivers and readers of aliases at
once, that sleep and die. What holds in each order of two or three holds here."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from packtrain.errors import PacktrainError
from packtrain.testing.orders import Actor, alone, passing, wander
from tests.flows.protocol import (
    DAY,
    gc,
    publish,
    release,
    require_no_garbage,
    require_nothing_lost,
    retire,
    settled,
    small,
    world,
)

FLOWS = {
    "publish one": publish("llama", "one"),
    "publish one again": publish("llama", "one", force=True),
    "publish two": publish("llama", "two"),
    "publish an adapter": publish("adapter", "adapter", base="llama/1"),
    "archive 1": retire("llama/1"),
    "archive 2": retire("llama/2"),
    "archive the adapter": retire("adapter/1"),
    "promote 1": release("llama/1"),
    "promote 2": release("llama/2"),
    "gc": gc(),
    "gc with a grace period": gc(grace=DAY),
}


@settings(deadline=None)
@given(
    chosen=st.lists(st.tuples(st.sampled_from(sorted(FLOWS)), st.booleans()), min_size=2, max_size=6),
    turns=st.lists(st.integers(0, 11), max_size=300),
    sleeps=st.integers(0, 2),
)
def test_no_random_order_loses_a_byte(chosen: list[tuple[str, bool]], turns: list[int], sleeps: int) -> None:
    actors = [Actor(f"{name} ({n})", FLOWS[name], mortal=mortal) for n, (name, mortal) in enumerate(chosen)]
    actors += [passing(30 * DAY, f"time {n}") for n in range(sleeps)]
    left = iter(turns)
    with small():
        start = world(publish("llama", "one"), publish("llama", "two"), release("llama/2"))
        outcome = wander(start, actors, require_nothing_lost, lambda n: next(left, 0) % n)
        for answer in outcome.answers.values():
            if isinstance(answer, PacktrainError):
                assert answer.message and answer.hint, "it says what to do"
        seen = outcome.world
        seen.clock.sleep(30 * DAY)
        for number in range(3):  # an adapter that goes leaves a base, which a later one takes
            seen = settled(alone(seen, Actor(f"gc {number}", gc())))
        require_nothing_lost(seen)
        require_no_garbage(seen)
