"""Whether an endpoint answers as the version that it names: its golden prompts are asked there, as a client asks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from packtrain.errors import Conflict, NotFound
from packtrain.flows.catalog import read_golden
from packtrain.model.golden import Comparison, Golden, compare
from packtrain.model.version import ModelVersion
from packtrain.ports import Registry, Store
from packtrain.serving.asking import Claim, Endpoint, Reply, claim, served_name
from packtrain.serving.golden import Unanswered, replay


@dataclass(frozen=True, slots=True)
class Attested:
    """``compared`` is None if the endpoint did not answer as it must; ``wrong`` says what is not right."""

    url: str
    claim: Claim
    version: ModelVersion
    golden: Golden
    compared: Comparison | None
    wrong: tuple[str, ...]

    @property
    def holds(self) -> bool:
        return not self.wrong


def attest(store: Store, registry: Registry, endpoint: Endpoint) -> Attested:
    """Raises NotFound if the endpoint names no version, or one that has no golden outputs; Unavailable; Conflict if it
    switches to another version meanwhile."""
    said = claim(endpoint)
    state = registry.read(said.name).state
    version = state.version(said.number)
    golden = read_golden(store, state, version)
    if golden is None:
        raise NotFound(
            f"{version} has no golden outputs to hold {endpoint.url} against",
            hint=f"Record them, on a machine with vLLM: packtrain gate {version}",
        )
    wrong = []
    if said.digest == "sha256:" or not str(version.digest).startswith(said.digest):
        wrong.append(f"it names the digest {said.digest}, and {version} has {version.digest}")
    compared = None
    try:
        compared = compare(golden, replay(_asker(endpoint, version), served_name(endpoint, said.name), golden))
        wrong += compared.differences
    except Unanswered as error:
        wrong.append(str(error))
    return Attested(endpoint.url, said, version, golden, compared, tuple(wrong))


def _asker(endpoint: Endpoint, version: ModelVersion) -> Any:
    def ask(path: str, body: Mapping[str, Any]) -> tuple[int, Any]:
        reply = endpoint.ask(path, body)
        answered = _answered_by(reply)
        if answered and answered != str(version):
            raise Conflict(
                f"{endpoint.url} named {version}, then {answered} answered: it switched meanwhile",
                hint="Run the command again.",
            )
        return reply.status, reply.document

    return ask


def _answered_by(reply: Reply) -> str:
    """The version that an answer says it is from; empty if it does not."""
    if named := reply.headers.get("x-packtrain-version", ""):
        return named
    said = reply.document.get("system_fingerprint") if isinstance(reply.document, dict) else None
    return str(said or "").rpartition("@")[0]
