"""Clients, many at once, and what each was answered."""

from __future__ import annotations

import http.client
import json
import random
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Self

PROMPTS = tuple(f"question {number}" for number in range(5))
PATIENCE = 300.0  # seconds for one answer


@dataclass(frozen=True)
class Answer:
    """``text`` as far as it came; ``problem`` is empty if the answer is complete, and explicit if it is not."""

    prompt: str
    tokens: int
    streamed: bool
    version: str = ""
    digest: str = ""
    fingerprints: frozenset[str] = frozenset()
    text: str = ""
    ids: tuple[int, ...] = ()
    status: int = 0
    problem: str = ""


def ask(port: int, model: str, prompt: str, tokens: int, *, stream: bool, key: str = "") -> Answer:
    """One completion, greedy and of exactly that many tokens."""
    asked = Answer(prompt, tokens, stream)
    body = {
        "model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "stream": stream,
        "return_token_ids": True,
    }  # fmt: skip
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)) as connection:
        try:
            connection.request("POST", "/v1/completions", json.dumps(body), headers)
            reply = connection.getresponse()
            data = reply.read()
        except (OSError, http.client.HTTPException) as error:
            return Answer(prompt, tokens, stream, problem=f"vanished: {error!r}")
    more: dict[str, Any] = {
        "version": reply.headers.get("X-Packtrain-Version", ""),
        "digest": reply.headers.get("X-Packtrain-Digest", ""),
        "status": reply.status,
    }
    if reply.status != 200:
        return Answer(prompt, tokens, stream, problem=f"{reply.status}: {data[:300]!r}", **more)
    documents = [data]
    if stream:
        *events, done = [line.removeprefix(b"data: ") for line in data.split(b"\n\n") if line]
        documents = events if done == b"[DONE]" else [*events, done]
        if done != b"[DONE]":
            more["problem"] = "the stream ended without [DONE]"
    parsed = [json.loads(document) for document in documents]
    for document in parsed:
        if "error" in document:
            more["problem"] = document["error"]["message"]
    pieces = [document for document in parsed if "choices" in document]
    return Answer(
        asked.prompt,
        asked.tokens,
        asked.streamed,
        fingerprints=frozenset(
            piece["system_fingerprint"] for piece in pieces if "system_fingerprint" in piece
        ),  # vLLM says it in the last
        ids=tuple(token for piece in pieces for token in piece["choices"][0].get("token_ids") or ()),
        text="".join(choice["text"] for piece in pieces for choice in piece["choices"]),
        **more,
    )


class Load:
    """While it is entered, ``clients`` ask one thing after another, streamed or not, of mixed lengths. Each thinks for
    up to ``pause`` seconds in between."""

    def __init__(
        self,
        port: int,
        model: str,
        *,
        clients: int = 4,
        tokens: tuple[int, int] = (4, 40),
        pause: float = 0.0,
        key: str = "",
    ) -> None:
        self._port, self._model, self._tokens, self._pause, self._key = port, model, tokens, pause, key
        self._over = threading.Event()
        self._lock = threading.Lock()
        self.answers: list[Answer] = []
        self._threads = [threading.Thread(target=self._ask, args=(n,), daemon=True) for n in range(clients)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive(), "a request was neither answered nor failed"

    def _ask(self, seed: int) -> None:
        chance = random.Random(seed)
        while not self._over.is_set():
            prompt = chance.choice(PROMPTS)
            answer = ask(
                self._port,
                self._model,
                prompt,
                chance.randint(*self._tokens),
                stream=chance.random() < 0.5,
                key=self._key,
            )
            with self._lock:
                self.answers.append(answer)
            self._over.wait(chance.uniform(0, self._pause))

    def of(self, version: str) -> list[Answer]:
        with self._lock:
            return [answer for answer in self.answers if answer.version == version and not answer.problem]

    def problems(self) -> list[Answer]:
        with self._lock:
            return [answer for answer in self.answers if answer.problem]

    def check(self, is_right: Callable[[Answer], bool]) -> None:
        """No answer is missing, none mixes versions, and each is exactly what the version in its header says."""
        assert self.problems() == []
        for answer in self.answers:
            short = answer.digest.removeprefix("sha256:")[:12]
            assert answer.fingerprints == {f"{answer.version}@{short}"}, answer
            assert is_right(answer), answer
