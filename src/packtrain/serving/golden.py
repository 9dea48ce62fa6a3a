"""Asking an engine for golden outputs, to keep them or to hold them against kept ones. Written against vLLM 0.32.

Each prompt takes two requests: a chat (or a completion) that says its token ids, and a completion of one token whose
prompt is all of these, with the log-probabilities of the prompt. vLLM gives at most 20 a position unless it is told
otherwise (``--max-logprobs``).
"""

from __future__ import annotations

import http.client
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from packtrain.model.golden import RIVALS, SCORED, TOKENS, UNIT, Answer, Golden, Prompt, Scores

ASKED = 20  # rivals: more than are kept, so that few of those that are kept are missing

Ask = Callable[[str, Mapping[str, Any]], tuple[int, Any]]
"""Sends JSON to a path. The status, and the JSON of the answer or None."""


class Unanswered(Exception):
    """An engine that did not answer as it must; the message completes "the engine"."""


class NoTemplate(Unanswered):
    """The model has no chat template."""


def record(ask: Ask, model: str, prompts: Sequence[Prompt]) -> tuple[tuple[Prompt, Answer], ...]:
    """What the engine answers. A model without a chat template is given the plain text instead. Raises Unanswered."""
    answers = []
    for wanted in prompts:
        prompt = wanted
        try:
            rendered, tokens = _answer(ask, model, prompt)
        except NoTemplate:
            prompt = wanted.plain
            rendered, tokens = _answer(ask, model, prompt)
        scores = _score(ask, model, rendered, tokens)
        kept = [_likeliest(each, of) for each, of in zip(scores, (*rendered, *tokens)[-len(scores) :], strict=True)]
        answers.append((prompt, Answer(rendered, tokens, tuple(kept))))
    return tuple(answers)


def replay(ask: Ask, model: str, golden: Golden) -> list[Answer]:
    """What the engine answers to the recorded prompts. Raises Unanswered."""
    replayed = []
    for prompt, answer in golden.answers:
        rendered, tokens = _answer(ask, model, prompt)
        scores = _score(ask, model, answer.rendered, answer.tokens)
        replayed.append(Answer(rendered, tokens, scores))
    return replayed


def check_status(path: str, status: int, answer: Any) -> None:
    if status == http.client.OK:
        return
    error = answer.get("error") if isinstance(answer, dict) else None
    said = error.get("message", "") if isinstance(error, dict) else ""
    kind = NoTemplate if status == http.client.BAD_REQUEST and "chat template" in json.dumps(answer) else Unanswered
    raise kind(f"{path} answered {status}" + (f": {said}" if said else ""))


def _answer(ask: Ask, model: str, prompt: Prompt) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The tokens of the prompt, and those of the answer."""
    shape = {"model": model, "max_tokens": TOKENS, "temperature": 0, "return_token_ids": True}
    if prompt.messages:
        messages = [{"role": role, "content": content} for role, content in prompt.messages]
        path, body = "/v1/chat/completions", {**shape, "messages": messages}
    else:
        path, body = "/v1/completions", {**shape, "prompt": prompt.text}
    status, answer = ask(path, body)
    check_status(path, status, answer)
    try:
        choice = answer["choices"][0]
        rendered = answer["prompt_token_ids"] if prompt.messages else choice["prompt_token_ids"]
        return tuple(map(int, rendered)), tuple(map(int, choice["token_ids"]))
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise Unanswered(f"{path} did not say the tokens of its answer: {str(answer)[:200]}") from error


def _score(ask: Ask, model: str, rendered: Sequence[int], tokens: Sequence[int]) -> tuple[Scores, ...]:
    """How likely the engine finds the last of these tokens, and their rivals. The first token has no score."""
    path, sequence = "/v1/completions", [*rendered, *tokens]
    body = {"model": model, "prompt": sequence, "max_tokens": 1, "temperature": 0, "prompt_logprobs": ASKED}
    status, answer = ask(path, body)
    check_status(path, status, answer)
    wanted = min(SCORED, len(sequence) - 1)
    try:
        said = answer["choices"][0]["prompt_logprobs"]
        scores = tuple(map(_scores, said[len(said) - wanted :]))
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise Unanswered(f"{path} did not say the log-probabilities of its prompt: {str(answer)[:200]}") from error
    if len(said) != len(sequence):
        raise Unanswered(f"{path} took a prompt of {len(sequence)} tokens for {len(said)}")
    return scores


def _scores(position: Mapping[str, Mapping[str, Any]]) -> Scores:
    found = {int(token): float(entry["logprob"]) for token, entry in position.items()}
    if not found or not all(map(math.isfinite, found.values())):
        raise Unanswered(f"answered with log-probabilities that are no numbers: {str(found)[:200]}")
    return {token: round(score * UNIT) for token, score in found.items()}


def _likeliest(scores: Scores, token: int) -> Scores:
    """The likeliest `RIVALS`, and the token that is there."""
    kept = sorted(scores, key=lambda each: (-scores[each], each))[:RIVALS]
    return {each: scores[each] for each in (*kept, token)}
