"""Golden outputs: what a version's engine answered when it was known to be right, and whether another one answers so.

A prompt is asked twice. Once as a client asks it: through the model's chat template, decoded greedily. That shows the
tokens that the engine makes of the prompt, and those it answers with. Then the engine is asked how likely it finds each
of these tokens and its rivals, *along the recorded tokens*, so that one token that tipped over at a tie does not end
the comparison. From both `compare` tells the same weights, on other hardware or in another precision, from others:

- The prompt's tokens must be equal: another chat template or tokenizer shows here.
- The answer's tokens must be equal, but for ones that the recording engine itself found about as likely (`TIE`).
- `distance`: the root mean square of the differences of log-probabilities.
- `shift`: how much of it belongs to the token, wherever it occurs. Rounding errs here up, there down; weights that
  changed move the same token the same way each time. This finds changes that are smaller than the rounding.

The figures, and what was measured for them, are in docs/adr/0015.

A golden record is canonical JSON, named by the SHA-256 of its bytes. Log-probabilities are whole millionths of a nat.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from packtrain.errors import IntegrityError, UsageError
from packtrain.model import canonical
from packtrain.model.digest import Digest

SCHEMA = "packtrain.golden/1"
RESULT_SCHEMA = "packtrain.gate/1"

TOKENS = 16  # of an answer, unless it ends before
RIVALS = 10  # the likeliest tokens that are kept of a position
SCORED = 128  # positions of a prompt and its answer, the last ones

UNIT = 1_000_000  # of a log-probability, in a nat

TIE = 0.5  # nats
MOST_DISTANCE = 0.15  # nats
MOST_SHIFT = 0.01  # nats
SIGNIFICANT = 2.5  # the ratio of variances from which a shift is no accident

Scores = Mapping[int, int]
"""At one position: the likeliest tokens and the one that is there, with their log-probabilities."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """``messages``, as (role, content), go through the chat template; without them ``text`` is completed as it is."""

    text: str = ""
    messages: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        said = self.messages[-1][1] if self.messages else self.text
        line = " ".join(said.split())
        return line if len(line) <= 48 else f"{line[:47]}…"

    @property
    def plain(self) -> Prompt:
        """For a model without a chat template."""
        return Prompt(text="\n".join(content for _, content in self.messages)) if self.messages else self


@dataclass(frozen=True, slots=True)
class Answer:
    """``rendered``: the prompt's tokens; ``tokens``: the greedy answer's; ``scores`` of the last positions of the two,
    those of the recorded ones if this is a replay."""

    rendered: tuple[int, ...]
    tokens: tuple[int, ...]
    scores: tuple[Scores, ...]


@dataclass(frozen=True, slots=True)
class Golden:
    """``digest`` of the version's manifest; ``made_with``: vLLM's version, its arguments, the precision; ``source``:
    where the prompts are from."""

    digest: Digest
    made_with: Mapping[str, str]
    source: str
    answers: tuple[tuple[Prompt, Answer], ...]

    def encode(self) -> bytes:
        return canonical.encode(
            {
                "schema": SCHEMA,
                "digest": self.digest.hex,
                "made_with": dict(self.made_with),
                "source": self.source,
                "answers": [{**_prompt(prompt), **_answer(answer)} for prompt, answer in self.answers],
            }
        )

    @classmethod
    def decode(cls, data: bytes, *, expect: Digest) -> Golden:
        """Reads a record whose bytes must have the digest ``expect``. Raises IntegrityError."""
        what = f"the golden record {expect}"
        if Digest.of(data) != expect:
            raise IntegrityError(f"{what} does not hash to its name")
        value = canonical.decode(data.rstrip(b"\n"), what=what)
        if not isinstance(value, dict) or value.get("schema") != SCHEMA:
            raise IntegrityError(
                f"{what} has a schema this Packtrain does not read",
                hint="It was written by another version of Packtrain: upgrade this one.",
            )
        try:
            answers = tuple((_read_prompt(each), _read_answer(each)) for each in value["answers"])
            made_with = {_text(key): _text(entry) for key, entry in value["made_with"].items()}
            golden = cls(Digest(value["digest"]), made_with, _text(value["source"]), answers)
        except (KeyError, TypeError, ValueError, AttributeError, UsageError) as error:
            raise IntegrityError(f"{what} is not valid: {error!r}") from error
        if not answers:
            raise IntegrityError(f"{what} holds no answers")
        return golden


@dataclass(frozen=True, slots=True)
class Comparison:
    """``differences``: what is not as it must be, in words; ``distance`` and ``shift`` in nats; ``tokens`` of the
    answers, of which ``equal`` came before the first that differs."""

    prompts: int
    tokens: int
    equal: int
    distance: float
    shift: float
    differences: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return not self.differences

    def __str__(self) -> str:
        return (
            f"{self.prompts} prompts, {self.equal} of {self.tokens} tokens equal, distance {self.distance:.4f} and "
            f"shift {self.shift:.4f} nats"
        )


def in_short(differences: Sequence[str]) -> str:
    """The first, and how many more there are. Empty if there are none."""
    more = f" (and {len(differences) - 1} more)" if len(differences) > 1 else ""
    return f"{differences[0]}{more}" if differences else ""


def compare(golden: Golden, replayed: Sequence[Answer], *, rounded: bool = False) -> Comparison:
    """Holds what an engine answers now against what was recorded. ``rounded``: the weights themselves were rounded
    once more, as a merge does it; then a shift means nothing, and only the distance counts."""
    differences: list[str] = []
    equal = total = 0
    pairs = [(answer, replay) for (_, answer), replay in zip(golden.answers, replayed, strict=True)]
    for (prompt, answer), replay in zip(golden.answers, replayed, strict=True):
        total += len(answer.tokens)
        if answer.rendered != replay.rendered:
            differences.append(
                f"{str(prompt)!r} becomes other tokens: {_where(answer.rendered, replay.rendered)}; "
                "the chat template or the tokenizer is another"
            )
            continue
        place = _first_difference(answer.tokens, replay.tokens)
        equal += place
        if place < max(len(answer.tokens), len(replay.tokens)) and not _is_tie(answer, replay, place):
            differences.append(
                f"{str(prompt)!r} is answered otherwise: {_where(answer.tokens, replay.tokens)}, and that was no tie"
            )
    positions = [
        each for answer, replay in pairs if answer.rendered == replay.rendered for each in _both(answer, replay)
    ]
    distance, (shift, ratio) = _distance(positions), _shift(positions)
    if distance > MOST_DISTANCE:
        differences.append(f"its log-probabilities differ by {distance:.3f} nats, where {MOST_DISTANCE} may be")
    elif not rounded and shift > MOST_SHIFT and ratio > SIGNIFICANT:
        differences.append(
            f"the same tokens are always off the same way, by {shift:.4f} nats where {MOST_SHIFT} may be: "
            "its weights are others"
        )
    return Comparison(len(pairs), total, equal, distance, shift, tuple(differences))


Position = tuple[int, Scores, Scores]
"""The token before it, and the scores that were recorded and those of now."""


def _both(answer: Answer, replay: Answer) -> Iterable[Position]:
    read = (*answer.rendered, *answer.tokens)[-len(answer.scores) - 1 : -1]
    return zip(read, answer.scores, replay.scores, strict=True)


def _distance(positions: Sequence[Position]) -> float:
    """Of a rival that is not among the replay's, it is known that it is no likelier than the least of these."""
    squares = [
        (score - after.get(token, min(score, *after.values()))) ** 2
        for _, before, after in positions
        for token, score in before.items()
    ]
    return math.sqrt(sum(squares) / len(squares)) / UNIT if squares else 0.0


def _shift(positions: Sequence[Position]) -> tuple[float, float]:
    """An analysis of variance by token: the standard deviation of the tokens' own shifts, less what chance explains,
    and the ratio of the variance between tokens to that within them.

    Of the positions after the same token only the first counts: there an engine's state is about the same, and what is
    rounded the same way twice says nothing twice."""
    seen = set[int]()
    groups = defaultdict[int, list[float]](list)
    for read, before, after in positions:
        moved = {token: (after[token] - score) / UNIT for token, score in before.items() if token in after}
        if read in seen or len(moved) < 2:
            continue
        seen.add(read)
        mean = sum(moved.values()) / len(moved)  # all of a position move together when one of them does
        for token, by in moved.items():
            groups[token].append(by - mean)
    repeated = [moves for moves in groups.values() if len(moves) > 1]
    count, freedom = sum(map(len, repeated)), sum(len(moves) - 1 for moves in repeated)
    if not freedom:
        return 0.0, 0.0
    between = sum(sum(moves) ** 2 / len(moves) for moves in repeated) / len(repeated)
    within = sum(sum((by - sum(moves) / len(moves)) ** 2 for by in moves) for moves in repeated) / freedom
    shift = math.sqrt(max(0.0, between - within) / (count / len(repeated)))
    return shift, between / within if within else math.inf if between else 0.0


def _is_tie(answer: Answer, replay: Answer, place: int) -> bool:
    """Whether the recording engine found the token that came instead about as likely. An end is a token, too: an answer
    that goes on where the other was cut off at `TOKENS` is none."""
    if place >= len(answer.tokens) or place >= len(replay.tokens):
        return False
    scores = answer.scores[place - len(answer.tokens)]
    instead = scores.get(replay.tokens[place])
    return instead is not None and scores[answer.tokens[place]] - instead <= TIE * UNIT


def _first_difference(one: Sequence[int], other: Sequence[int]) -> int:
    for place, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return place
    return min(len(one), len(other))


def _where(one: Sequence[int], other: Sequence[int]) -> str:
    place = _first_difference(one, other)
    said = [str(tokens[place]) if place < len(tokens) else "the end" for tokens in (one, other)]
    return f"token {place + 1} was {said[0]} and is {said[1]}"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that a gate looked at. ``said``: how it was, in words."""

    what: str
    passed: bool
    said: str


def encode_result(
    digest: Digest, golden: Digest | None, made_with: Mapping[str, str], checks: Sequence[Check]
) -> bytes:
    """The record of a gate: what was checked, and how it was. ``golden``: the record that it was held against."""
    return canonical.encode(
        {
            "schema": RESULT_SCHEMA,
            "digest": digest.hex,
            "golden": golden.hex if golden else None,
            "made_with": dict(made_with),
            "passed": all(check.passed for check in checks),
            "checks": [{"what": check.what, "passed": check.passed, "said": check.said} for check in checks],
        }
    )


# The JSON of a prompt and its answer. Scores are pairs, likeliest first: JSON's keys cannot be numbers.


def _prompt(prompt: Prompt) -> dict[str, Any]:
    if prompt.messages:
        return {"messages": [{"role": role, "content": content} for role, content in prompt.messages]}
    return {"text": prompt.text}


def _answer(answer: Answer) -> dict[str, Any]:
    return {
        "prompt_tokens": list(answer.rendered),
        "tokens": list(answer.tokens),
        "scores": [
            [[token, score] for token, score in sorted(scores.items(), key=lambda each: (-each[1], each[0]))]
            for scores in answer.scores
        ],
    }


def _read_prompt(value: Mapping[str, Any]) -> Prompt:
    if "messages" in value:
        return Prompt(messages=tuple((_text(each["role"]), _text(each["content"])) for each in value["messages"]))
    return Prompt(text=_text(value["text"]))


def _read_answer(value: Mapping[str, Any]) -> Answer:
    rendered, tokens = (tuple(map(_whole, value[key])) for key in ("prompt_tokens", "tokens"))
    scores = tuple({_whole(token): _whole(score) for token, score in each} for each in value["scores"])
    answered = scores[len(scores) - len(tokens) :]
    if len(scores) < len(tokens) or any(token not in each for token, each in zip(tokens, answered, strict=True)):
        raise ValueError("a token of an answer has no score")
    return Answer(rendered, tokens, scores)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a text")
    return value


def _whole(value: Any) -> int:
    if type(value) is not int:
        raise TypeError(f"{value!r} is not a whole number")
    return value
