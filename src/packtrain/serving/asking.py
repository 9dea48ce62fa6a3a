"""Asking an endpoint of ours, wherever it is, what it is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from packtrain.errors import NotFound, Refused, Unavailable, UsageError

WITHIN = 30.0  # seconds


@dataclass(frozen=True, slots=True)
class Reply:
    """``document`` is None if the answer was no JSON. Names in ``headers`` are in small letters."""

    status: int
    headers: Mapping[str, str]
    document: Any


@dataclass(frozen=True, slots=True)
class Endpoint:
    """``url`` without a path; ``key``: its API key, or empty; ``headers`` are sent with everything."""

    url: str
    key: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str, key: str = "") -> Endpoint:
        """Raises UsageError."""
        url = text if "://" in text else f"http://{text}"
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"{text!r} is not the URL of an endpoint", hint="Write it like http://node-7:8000.")
        return cls(url.rstrip("/").removesuffix("/v1"), key)

    def ask(self, path: str, body: Mapping[str, Any] | None = None) -> Reply:
        """Raises Unavailable, and Refused if the key is not the right one."""
        import httpx  # here, because it takes a while to import

        headers = {**self.headers, **({"Authorization": f"Bearer {self.key}"} if self.key else {})}
        try:
            method = "POST" if body is not None else "GET"
            reply = httpx.request(method, self.url + path, json=body, headers=headers, timeout=WITHIN)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise Unavailable(
                f"{self.url} cannot be reached: {error or type(error).__name__}",
                hint="Is it the address of `packtrain serve`, and does it run?",
            ) from error
        if reply.status_code in (401, 403):
            raise Refused(f"{self.url} wants an API key", hint="Give it: --api-key KEY, or set VLLM_API_KEY.")
        try:
            document = reply.json()
        except json.JSONDecodeError:
            document = None
        return Reply(reply.status_code, {k.lower(): v for k, v in reply.headers.items()}, document)


def status(endpoint: Endpoint) -> Mapping[str, Any]:
    """What a supervisor says of itself. Raises NotFound if it is none."""
    reply = endpoint.ask("/status")
    if reply.status != 200 or not isinstance(reply.document, dict) or "engines" not in reply.document:
        raise NotFound(
            f"{endpoint.url} does not follow an alias: it has no /status",
            hint=f"Ask it what it serves: packtrain what {endpoint.url}",
        )
    return reply.document


@dataclass(frozen=True, slots=True)
class Claim:
    """What an endpoint says that it serves. ``digest`` is ``sha256:`` and 64 hex digits, or as many of them as the
    endpoint says; ``by``: how it says so."""

    name: str
    number: int
    digest: str
    by: str


def claim(endpoint: Endpoint) -> Claim:
    """Raises NotFound if it does not say: it is not an endpoint of ours."""
    models = endpoint.ask("/v1/models")
    version, digest = models.headers.get("x-packtrain-version", ""), models.headers.get("x-packtrain-digest", "")
    by = "its headers"
    if not version:
        version, digest, by = _fingerprint(endpoint, models)
    name, slash, number = version.rpartition("/")
    if not slash or not number.isdecimal():
        raise NotFound(
            f"{endpoint.url} does not say which version it serves",
            hint="It was not started by packtrain serve or run, or with another --fingerprint-mode.",
        )
    return Claim(name, int(number), digest, by)


def served_name(endpoint: Endpoint, name: str) -> str:
    """What the endpoint calls the registered model ``name``: that, if it does. Raises NotFound if it serves nothing."""
    models = endpoint.ask("/v1/models").document
    try:
        names = [str(each["id"]) for each in models["data"]]
        return name if name in names else names[0]
    except (KeyError, IndexError, TypeError):
        raise NotFound(f"{endpoint.url} does not say which models it serves") from None


def _fingerprint(endpoint: Endpoint, models: Reply) -> tuple[str, str, str]:
    """Version and digest in an answer's ``system_fingerprint`` (``NAME/3@9f86d081884c``): of a vLLM without a proxy."""
    try:
        model = models.document["data"][0]["id"]
    except (KeyError, IndexError, TypeError):
        return "", "", ""
    reply = endpoint.ask("/v1/completions", {"model": model, "prompt": "Hello", "max_tokens": 1})
    said = reply.document.get("system_fingerprint") if isinstance(reply.document, dict) else None
    version, _, digest = str(said or "").rpartition("@")
    return version, f"sha256:{digest}", "an answer's fingerprint"
