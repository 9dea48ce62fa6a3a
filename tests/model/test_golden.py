"""The bytes of each format of schema /1, pinned.

They may never change. Manifests are named by the digest of their bytes, in ledgers, in paths of stores and in caches;
events by the event after them; records by their file's name. If an encoder wrote the same value as other bytes, what
was published yesterday would no longer verify, the same model published twice would be two models, and every chain
would look tampered with. A reader that no longer took these bytes would lose what is in every store.

So a failure here is not cured by new golden files. A format that must change gets schema /2 and golden files of its
own, and these stay, because readers of /2 must read /1.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from packtrain.model.digest import Digest
from packtrain.model.golden import Golden
from packtrain.model.lease import Holder, Lease, lease_key
from packtrain.model.ledger import Log, event_key
from packtrain.model.lineage import Lineage, record_key
from packtrain.model.manifest import Manifest
from packtrain.model.mirror import Policy
from tests.model.examples import (
    GATE_RESULT,
    GOLDEN_OUTPUTS,
    LINEAGE,
    MANIFESTS,
    hex_of,
    ledger_that_mlflow_shows,
    ledger_with_every_action,
)

GOLDEN = Path(__file__).parent / "golden"

PAYLOADS = {
    "merged": "a6dec9da53dd519c7cf8b58692383483a406ac39706cd603023f370eacea4b29",
    "adapter": "62f26426fa8427d8fd2a68285fc2e61ba0914fea47eabbea12c83efa1c56afb3",
}

# The SHA-256 of each file, here again so that nobody changes a file and its digest in one stroke.
DIGESTS = {
    "merged.manifest.json": "5813638610b4d3a370582580b63844f2ab58763ba7b313be332f6f496ae18abc",
    "merged-again.manifest.json": "59649b9369315a8f7b318088229b8c839ca42a202709e52c8335820841d615ae",
    "adapter-of-a-version.manifest.json": "8afb08dcff03577edac4c2a67761031764ea4b46f4ff36f466dacf6d66a37b85",
    "adapter-of-local-bytes.manifest.json": "ee7921350ba95b72282c3dec6d267761fb89c45a39c821cfe2ea9166b1e89edf",
    "adapter-of-a-repository.manifest.json": "2cc7cda726b7bb6e847395b84730f60af1062c937dc5562556113348de960e4b",
    "adapter-of-a-revision.manifest.json": "ae18bab6c7a44f6c6da91a4c989c3cc38ee68dcc0d881f2528af92224748db02",
    "adapter-of-nothing-known.manifest.json": "b6bf57af0fc014062f312a5c8f76e888a58150861dc043a9d67b0828386615cb",
    "every-action.ledger.jsonl": "d1a7014f27edbec579936f24a03ce3e9079742a3ebca351c9cc75933ff398639",
    "golden-outputs.json": "2d0d76859c6a180b815b2054440db4676a0bbcefede8bfc3235340017c617661",
    "gate-result.json": "7ea3cfa3164dbd7357461966ccadcc06bd560c2b4ded7555d2ae6baeacbadee1",
    "lease.json": "3816b5bf70233b50f9974f67260d4bd26005c2fb9e7db8f8789e1c5709c3f253",
    "mlflow.ledger.jsonl": "d114f9a5c834b4108bcc5ce64f0d8e499dcc87630e842d2d37ede95475b77f3c",
    "lineage.json": "dc381f8155e65b2e1614c5fcdb0092a88c67389e8fff4e16fa85bf456d252eb9",
}


def golden(file_name: str) -> bytes:
    data = (GOLDEN / file_name).read_bytes()
    assert hashlib.sha256(data).hexdigest() == DIGESTS[file_name], f"{file_name} was changed"
    return data


def test_every_golden_file_is_pinned() -> None:
    assert {path.name for path in GOLDEN.iterdir()} == DIGESTS.keys()


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifest(name: str) -> None:
    data, manifest = golden(f"{name}.manifest.json"), MANIFESTS[name]
    assert manifest.encode() == data
    assert manifest.digest.hex == DIGESTS[f"{name}.manifest.json"]
    assert Manifest.decode(data, expect=manifest.digest) == manifest
    assert manifest.payload.hex == PAYLOADS[manifest.kind]


def test_ledger() -> None:
    """One event a line; the newline is not part of it."""
    lines = golden("every-action.ledger.jsonl").splitlines()
    writer = ledger_with_every_action()
    assert writer.events == lines

    log = Log("llama-finetuned")
    for line in lines:
        log.extend(line)
    assert log.head == hashlib.sha256(lines[-1]).hexdigest()
    assert log.state == writer.log.state
    assert {event.action for event in log.events} == {
        "publish.begin", "attached", "version.created", "alias.promoted", "alias.rolled_back", "version.archived",
        "referenced", "condemned", "node.went_back", "node.held",
    }  # fmt: skip
    first, second = log.state.versions[1], log.state.versions[2]
    assert log.state.aliases == {"production": 1}
    assert (first.code, first.archived, first.base, first.actor) == (True, False, None, "ada@lab")
    assert first.digest == MANIFESTS["merged"].digest
    assert first.lineage == Digest.of(LINEAGE.encode())
    assert (second.code, second.archived, str(second.base)) == (False, True, "llama-finetuned/1")
    assert (second.archived_at, second.collected) == (log.events[-5].time, True)
    assert log.state.condemned == {second.digest, Digest(hex_of("nobody's record"))}


def test_ledger_that_mlflow_shows() -> None:
    lines = golden("mlflow.ledger.jsonl").splitlines()
    writer = ledger_that_mlflow_shows()
    assert writer.events == lines
    log = Log("llama-finetuned")
    for line in lines:
        log.extend(line)
    assert log.state == writer.log.state
    assert (log.state.aliases, log.state.trails) == ({"production": 1}, {"production": (2, 1)})
    assert log.state.policy == Policy(frozenset({"production"}), frozenset({"gold"}))
    mirror = log.state.mirror
    assert (mirror.created, mirror.intents, mirror.unsettled) == (1_767_323_045_678, {}, {"production": 1})
    assert sorted(mirror.numbers.values()) == [1, 2]


def test_lineage() -> None:
    data = golden("lineage.json")
    assert LINEAGE.encode() == data
    assert Lineage.decode(data, expect=Digest(DIGESTS["lineage.json"])) == LINEAGE


def test_golden_outputs() -> None:
    data = golden("golden-outputs.json")
    assert GOLDEN_OUTPUTS.encode() == data
    assert Golden.decode(data, expect=Digest(DIGESTS["golden-outputs.json"])) == GOLDEN_OUTPUTS


def test_result_of_a_gate() -> None:
    assert golden("gate-result.json") == GATE_RESULT


def test_lease() -> None:
    data = golden("lease.json")
    lease = Lease(Holder(host="gpu-node-7", pid=4711, user="ada@lab"), until="2026-03-02T09:45:27.104Z")
    assert lease.encode() == data
    assert Lease.decode(data, what="lease.json") == lease


def test_where_things_are() -> None:
    version = ledger_with_every_action().log.state.versions[1]
    assert version.prefix == f"models/llama-finetuned/{DIGESTS['merged.manifest.json']}/"
    assert event_key("llama-finetuned", 42) == "ledger/llama-finetuned/0000000042.json"
    assert lease_key("m", version.digest, "0" * 32) == f"leases/m/{version.digest.hex}/{'0' * 32}.json"
    assert record_key("m", Digest(DIGESTS["lineage.json"])) == f"records/m/{DIGESTS['lineage.json']}.json"
