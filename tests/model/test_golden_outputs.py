"""Golden outputs: the same weights are told from others, whatever rounding does to both."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from packtrain.errors import IntegrityError
from packtrain.model import canonical
from packtrain.model.digest import Digest
from packtrain.model.golden import MOST_DISTANCE, TIE, UNIT, Answer, Golden, Prompt, compare
from tests.model.examples import GOLDEN_OUTPUTS, hex_of

PROMPT, ANSWER, POSITIONS, VOCABULARY, RIVALS = 30, 16, 45, 80, 10


def recorded() -> Golden:
    """Eight answers of a model whose likeliest tokens are some of a small vocabulary's."""
    source = random.Random(7)
    answers = []
    for number in range(8):
        scores = []
        for _ in range(POSITIONS):
            rivals = source.sample(range(VOCABULARY), RIVALS)
            scores.append({token: round(-(0.3 + 0.9 * rank) * UNIT) for rank, token in enumerate(rivals)})
        tokens = tuple(next(iter(each)) for each in scores[-ANSWER:])
        rendered = tuple(source.randrange(VOCABULARY) for _ in range(PROMPT))
        answers.append((Prompt(messages=(("user", f"prompt {number}"),)), Answer(rendered, tokens, tuple(scores))))
    return Golden(Digest(hex_of("v")), {"vllm": "0"}, "built in", tuple(answers))


def replayed(golden: Golden, moved: Callable[[int], float]) -> list[Answer]:
    """The same, with each log-probability moved by some nats, by its token."""
    return [
        replace(
            answer,
            scores=tuple(
                {token: round(score + moved(token) * UNIT) for token, score in each.items()} for each in answer.scores
            ),
        )
        for _, answer in golden.answers
    ]


def one_changed(golden: Golden, change: Callable[[Answer], Answer]) -> list[Answer]:
    first, *others = (answer for _, answer in golden.answers)
    return [change(first), *others]


def test_the_same_answers_pass() -> None:
    golden = recorded()
    said = compare(golden, [answer for _, answer in golden.answers])
    assert said.passed and (said.prompts, said.equal, said.tokens, said.distance, said.shift) == (8, 128, 128, 0, 0)


@pytest.mark.parametrize("seed", range(20))
def test_rounding_passes(seed: int) -> None:
    """As bf16 rounds logits between 16 and 32: to eighths."""
    source = random.Random(seed)
    golden = recorded()
    said = compare(golden, replayed(golden, lambda _: source.uniform(-1 / 16, 1 / 16)))
    assert said.passed, said
    assert said.distance == pytest.approx(0.036, abs=0.002)


@pytest.mark.parametrize("seed", range(20))
def test_weights_that_changed_less_than_rounding_does_are_seen(seed: int) -> None:
    source = random.Random(seed)
    shifts = [source.gauss(0, 0.02) for _ in range(VOCABULARY)]
    golden = recorded()
    said = compare(golden, replayed(golden, lambda token: shifts[token] + source.uniform(-1 / 16, 1 / 16)))
    assert said.distance < MOST_DISTANCE
    assert not said.passed and "always off the same way" in said.differences[0]
    assert compare(golden, replayed(golden, lambda token: shifts[token]), rounded=True).passed, "a merge rounds weights"


def test_a_large_distance_fails() -> None:
    source = random.Random(1)
    golden = recorded()
    said = compare(golden, replayed(golden, lambda _: source.gauss(0, 1.2 * MOST_DISTANCE)))
    assert [difference for difference in said.differences if "differ by" in difference]


def test_rivals_that_are_gone_count_as_far_as_is_known() -> None:
    golden = recorded()
    others = [
        replace(answer, scores=tuple({token + 1000: score for token, score in each.items()} for each in answer.scores))
        for _, answer in golden.answers
    ]
    assert compare(golden, others).distance > 1


def test_another_rendering_fails() -> None:
    golden = recorded()
    said = compare(golden, one_changed(golden, lambda each: replace(each, rendered=(*each.rendered[:3], 79, 1))))
    assert len(said.differences) == 1
    assert "'prompt 0' becomes other tokens: token 4 was" in said.differences[0]


def test_another_answer_fails_unless_it_was_a_tie() -> None:
    golden = recorded()
    _, first = golden.answers[0]
    place = 5
    scores = first.scores[place - ANSWER]
    second = sorted(scores, key=lambda token: -scores[token])[1]
    turned = (*first.tokens[:place], second, *first.tokens[place + 1 :])
    said = compare(golden, one_changed(golden, lambda each: replace(each, tokens=turned)))
    assert (said.equal, said.tokens) == (128 - ANSWER + place, 128)
    assert "'prompt 0' is answered otherwise: token 6 was" in said.differences[0]

    close = {**scores, second: scores[first.tokens[place]] - round(TIE * UNIT)}
    tied = replace(first, scores=(*first.scores[: place - ANSWER], close, *first.scores[place - ANSWER + 1 :]))
    golden = replace(golden, answers=((golden.answers[0][0], tied), *golden.answers[1:]))
    assert compare(golden, one_changed(golden, lambda each: replace(each, tokens=turned))).passed


def test_an_answer_that_ends_before_fails() -> None:
    golden = recorded()
    said = compare(golden, one_changed(golden, lambda each: replace(each, tokens=each.tokens[:4])))
    assert "is the end" in said.differences[0]


def test_records_round_trip_and_are_refused_when_changed() -> None:
    golden = recorded()
    data = golden.encode()
    assert Golden.decode(data, expect=Digest.of(data)) == golden
    assert Golden.decode(data + b"\n", expect=Digest.of(data + b"\n")) == golden, "as garbage collection leaves it"
    with pytest.raises(IntegrityError, match="does not hash to its name"):
        Golden.decode(data.replace(b"prompt 1", b"prompt 9"), expect=Digest.of(data))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"schema": "packtrain.golden/2"}, "a schema this Packtrain does not read"),
        ({"answers": []}, "no answers"),
        ({"digest": 1}, "not valid"),
        ({"answers": [{"text": "a", "prompt_tokens": [1], "tokens": [2], "scores": [[[1, -5]]]}]}, "not valid"),
        ({"answers": [{"text": "a", "prompt_tokens": ["1"], "tokens": [2], "scores": [[[2, -5]]]}]}, "not valid"),
    ],
)
def test_records_that_say_nonsense_are_refused(change: dict[str, object], why: str) -> None:
    value = canonical.decode(GOLDEN_OUTPUTS.encode(), what="it")
    data = canonical.encode({**value, **change})
    with pytest.raises(IntegrityError, match=why):
        Golden.decode(data, expect=Digest.of(data))
