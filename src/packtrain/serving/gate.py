"""What an engine must show before it takes traffic: real requests, answered."""

from __future__ import annotations

import http.client
import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from packtrain.model.golden import Comparison, Golden, compare, in_short
from packtrain.serving.arguments import Endpoint
from packtrain.serving.golden import NoTemplate, Unanswered, check_status, replay

WITHIN = 300.0  # seconds for one answer: the first one compiles (vLLM 0.32 on a CPU: up to 40 s)
TOKENS = 8
PROMPT = "Hello, who are you?"


@dataclass(frozen=True, slots=True)
class Answering:
    """An engine that can be asked: where, with which key (empty: none), and the name of the model."""

    endpoint: Endpoint
    model: str
    key: str = ""

    def ask(self, path: str, body: Mapping[str, Any] | None = None, *, within: float = WITHIN) -> tuple[int, Any]:
        """The status and the JSON of an answer (None if it is none). Raises OSError and HTTPException."""
        connection = http.client.HTTPConnection(self.endpoint.reachable_host, self.endpoint.port, timeout=within)
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        try:
            connection.request("POST" if body else "GET", path, json.dumps(body) if body else None, headers)
            reply = connection.getresponse()
            data = reply.read()
        finally:
            connection.close()
        try:
            return reply.status, json.loads(data)
        except ValueError:
            return reply.status, None


@dataclass(frozen=True, slots=True)
class Verdict:
    """``reason``: why it did not pass, or nothing. ``seconds`` that it took. ``golden``: how its answers compare with
    golden ones, if it was held against some."""

    reason: str = ""
    seconds: float = 0.0
    golden: Comparison | None = None

    @property
    def passed(self) -> bool:
        return not self.reason


def gate(engine: Answering, golden: Golden | None = None) -> Verdict:
    """Whether an engine is healthy and answers: a completion and a chat, of the tokens that were asked for, with finite
    log-probabilities, in finite time. These also warm it up. Then, whether it answers as ``golden`` has it."""
    began = time.monotonic()
    compared: Comparison | None = None
    reason = ""
    try:
        _require(engine, "/health", None)
        _check_completion(engine)
        _check_chat(engine)
        if golden is not None:
            compared = compare(golden, replay(engine.ask, engine.model, golden))
            reason = in_short(compared.differences)
    except Unanswered as error:
        reason = str(error)
    except (OSError, http.client.HTTPException) as error:
        kind = "timed out" if isinstance(error, TimeoutError) else f"broke off ({error!r})"
        reason = f"a request {kind}"
    return Verdict(reason, time.monotonic() - began, compared)


def _check_completion(engine: Answering) -> None:
    body = {"model": engine.model, "prompt": PROMPT, "logprobs": 1, **_SHAPE}
    answer = _require(engine, "/v1/completions", body)
    choice = _choice(answer, "a completion")
    logprobs = (choice.get("logprobs") or {}).get("token_logprobs") or []
    _check_numbers(logprobs, "a completion")


def _check_chat(engine: Answering) -> None:
    body = {
        "model": engine.model,
        "messages": [{"role": "user", "content": PROMPT}],
        "logprobs": True,
        **_SHAPE,
    }
    status, answer = engine.ask("/v1/chat/completions", body)
    try:
        check_status("/v1/chat/completions", status, answer)
    except NoTemplate:
        return  # a base model: it has no chat, and its clients do not ask for one
    choice = _choice(answer, "a chat")
    entries = (choice.get("logprobs") or {}).get("content") or []
    _check_numbers([entry.get("logprob") for entry in entries], "a chat")


_SHAPE = {"max_tokens": TOKENS, "temperature": 0, "ignore_eos": True}


def _require(engine: Answering, path: str, body: Mapping[str, Any] | None) -> Any:
    status, answer = engine.ask(path, body)
    check_status(path, status, answer)
    return answer


def _choice(answer: Any, what: str) -> Mapping[str, Any]:
    try:
        choice: Mapping[str, Any] = answer["choices"][0]
        tokens = int(answer["usage"]["completion_tokens"])
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise Unanswered(f"{what} was answered with something else: {str(answer)[:200]}") from error
    if tokens < 1:
        raise Unanswered(f"{what} was answered with nothing")
    return choice


def _check_numbers(logprobs: list[Any], what: str) -> None:
    if not logprobs:
        raise Unanswered(f"{what} was answered without log-probabilities")
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in logprobs):
        raise Unanswered(f"{what} was answered with log-probabilities that are no numbers: {str(logprobs)[:200]}")
