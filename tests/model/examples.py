"""One example of each format, built in code. tests/model/golden holds the bytes that they must have for ever."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta

from packtrain.model.digest import Digest
from packtrain.model.golden import Answer, Check, Golden, Prompt, encode_result
from packtrain.model.ledger import Draft, Log, timestamp
from packtrain.model.lineage import Dataset, Lineage, Parent
from packtrain.model.manifest import Base, Chunks, FileEntry, Manifest
from packtrain.model.mirror import Policy
from packtrain.model.version import BaseVersion

MIB = 1 << 20
START = datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)


def hex_of(text: str) -> str:
    """A digest that is easy to make again."""
    return hashlib.sha256(text.encode()).hexdigest()


def entry(path: str, lengths: list[int], *, generated: bool = False) -> FileEntry:
    cut = Chunks(lengths, [hex_of(f"{path} {index}") for index in range(len(lengths))])
    return FileEntry(path, sum(lengths), hex_of(path), cut, generated)


MERGED = Manifest.of(
    "merged",
    [
        entry("model-00001-of-00002.safetensors", [1234, 4 * MIB, 4 * MIB, 17]),
        entry("model-00002-of-00002.safetensors", [999, 3 * MIB]),
        entry("config.json", [661]),
        entry("tokenizer.json", [4 * MIB, 321]),
        entry("added/empty", []),
        entry("notes/ünïcödé 🦙.md", [5]),
        entry("MLmodel", [410], generated=True),
        entry("components/tokenizer/tokenizer.json", [4 * MIB, 321], generated=True),
    ],
)

_ADAPTER_FILES = [entry("adapter_config.json", [820]), entry("adapter_model.safetensors", [400, MIB])]

ADAPTERS = {
    "adapter-of-a-version": Manifest.of(
        "adapter", _ADAPTER_FILES, Base(manifest=MERGED.digest, payload=MERGED.payload)
    ),
    "adapter-of-local-bytes": Manifest.of("adapter", _ADAPTER_FILES, Base(payload=MERGED.payload)),
    "adapter-of-a-repository": Manifest.of("adapter", _ADAPTER_FILES, Base(hub="Qwen/Qwen2.5-0.5B")),
    "adapter-of-a-revision": Manifest.of("adapter", _ADAPTER_FILES, Base(hub="Qwen/Qwen2.5-0.5B", revision="c291d6f")),
    "adapter-of-nothing-known": Manifest.of("adapter", _ADAPTER_FILES),
}

MANIFESTS = {"merged": MERGED, "merged-again": MERGED.again(), **ADAPTERS}

GOLDEN_OUTPUTS = Golden(
    digest=Digest(hex_of("a version")),
    made_with={"packtrain": "0.1.0", "vllm": "0.32.0+cpu", "arguments": "--dtype bfloat16"},
    source="v1-eval, of the training's evaluation",
    answers=(
        (
            Prompt(messages=(("system", "Be brief."), ("user", "Où allez-vous ?"))),
            Answer(
                (505, 17, 4),
                (9, 509),
                ({17: -1_204_112, 3: -900_000}, {4: -5}, {9: -210_003, 12: -1_700_000}, {509: 0}),
            ),
        ),
        (Prompt(text="def add(a, b):"), Answer((1, 2), (3,), ({2: -20_000_000, 3: -1}, {3: -333_333, 7: -1_250_000}))),
    ),
)

GATE_RESULT = encode_result(
    GOLDEN_OUTPUTS.digest,
    Digest.of(GOLDEN_OUTPUTS.encode()),
    GOLDEN_OUTPUTS.made_with,
    [
        Check("answers", True, "it answers"),
        Check(
            "as the adapter on its base",
            False,
            "not as the adapter on its base: 'def add(a, b):' is answered otherwise",
        ),
    ],
)

LINEAGE = Lineage(
    base=Parent(
        "Qwen/Qwen2.5-0.5B", "c291d6f", "qwen/1", f"sha256:{hex_of('base')}", f"sha256:{hex_of('base payload')}"
    ),
    adapters=(Parent("saves/sft", payload=f"sha256:{hex_of('adapter payload')}"), Parent("saves/dpo")),
    datasets=(
        Dataset("identity", {"identity.json": hex_of("identity")}, {"file_name": "identity.json"}),
        Dataset("über", info={"hf_hub_url": "org/über", "num_samples": 500}),
    ),
    eval_datasets=(Dataset("identity-eval"),),
    template="qwen",
    stage="sft",
    finetuning_type="lora",
    lora={"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"], "dropout": 0.05},
    hyperparameters={"learning_rate": 1e-4, "per_device_train_batch_size": 1, "bf16": False},
    metrics={"train_loss": 1.25, "eval_loss": 1.5, "eval_accuracy": 0.5, "steps": 3},
    curves={"loss": ((1, 2.5), (2, 1.75), (3, 1.25)), "eval_loss": ((3, 1.5),)},
    steps=3,
    epochs=1.0,
    tools={"transformers": "4.52.4", "peft": "0.15.2"},
    export_tools={"llamafactory": "0.9.3"},
    git_revision="0123abc",
    git_dirty=False,
    contradictions=("seed: the configuration says 1, the training's own records say 42",),
    training_config={"model_name_or_path": "Qwen/Qwen2.5-0.5B", "do_train": True, "resume": None},
    export_config={"export_dir": "merged", "export_legacy_format": False},
)


class Writer:
    """Appends to a log as a registry does, and keeps the bytes; each event a second after the one before."""

    def __init__(self, name: str, actor: str = "ada@lab") -> None:
        self.log = Log(name)
        self.actor = actor
        self.events: list[bytes] = []

    def append(self, draft: Draft | None) -> None:
        assert draft is not None
        number = len(self.events) + 1
        event = self.log.draft(draft, nonce=f"{number:032x}", time=self.moment(number), actor=self.actor)
        self.events.append(event.encode())
        self.log.extend(self.events[-1])

    def publish(self, manifest: Manifest, *, code: bool = False, base: BaseVersion | None = None) -> None:
        publish_id = hex_of(f"publish {len(self.events)}")[:32]
        digest = manifest.digest
        self.append(self.log.state.begin_publish(digest, publish_id, self.moment(3600)))
        state = self.log.state
        self.append(state.create_version(manifest, digest, publish_id, code=code, base=base, force=True))

    @staticmethod
    def moment(seconds: int) -> str:
        return timestamp(START + timedelta(seconds=seconds))


def ledger_with_every_action() -> Writer:
    writer = Writer("llama-finetuned")
    lineage = Digest.of(LINEAGE.encode())
    writer.append(writer.log.state.attach(MERGED.digest, "lineage", lineage))
    writer.publish(MERGED, code=True)
    writer.append(writer.log.state.promote("production", 1, reason="the first one 🦙"))
    base = BaseVersion("llama-finetuned", 1, MERGED.digest)
    adapter = ADAPTERS["adapter-of-a-version"]
    writer.append(writer.log.state.reference(MERGED.digest, "other-adapter", adapter.digest))
    writer.publish(adapter, base=base)
    writer.append(writer.log.state.promote("production", 2, expect=1))
    writer.append(writer.log.state.roll_back("production", reason="answers in riddles"))
    writer.append(writer.log.state.archive(2, reason="bad"))
    writer.append(writer.log.state.condemn([adapter.digest], [Digest(hex_of("nobody's record"))]))
    writer.append(writer.log.state.went_back("gpu-node-7", "production", 2, 1, "the gate: it answers in riddles"))
    writer.append(writer.log.state.hold("gpu-node-7", "production", 2, "ada@lab", "until we know why"))
    writer.append(writer.log.state.hold("gpu-node-7", "production", None, "ada@lab", ""))
    return writer


def ledger_that_mlflow_shows() -> Writer:
    """Every action that has to do with MLflow, and the policy."""
    writer = Writer("llama-finetuned")

    def say(action: str, **details: object) -> None:
        writer.append(Draft(action, details))

    def publish(manifest: Manifest, number: int, *, there: bool, **more: object) -> None:
        publish_id = hex_of(f"publish {len(writer.events)}")[:32]
        digest = manifest.digest
        writer.append(writer.log.state.begin_publish(digest, publish_id, writer.moment(3600)))
        details = {
            "digest": digest.hex,
            "payload": manifest.payload.hex,
            "kind": manifest.kind,
            "size": manifest.size,
            "publish_id": publish_id,
            **more,
        }
        say("version.intent", **details, **({"version": number} if there else {}))
        say("version.created", **details, version=number)

    say("mirror.bound", created=1_767_323_045_678)
    publish(MERGED, 2, there=False, code=True)
    base = {"name": "llama-finetuned", "version": 2, "digest": MERGED.digest.hex}
    publish(ADAPTERS["adapter-of-a-version"], 1, there=True, base=base)
    writer.append(writer.log.state.promote("production", 2, reason="the first one"))
    say("alias.helped", alias="production", to=2)
    say("alias.settled", alias="production", to=2, own=True)
    say("alias.adopted", alias="production", **{"from": 2}, to=1, reason="moved in MLflow")
    writer.append(writer.log.state.set_policy(Policy(frozenset({"production"}), frozenset({"gold"}))))
    say("alias.restored", alias="production", found=None, to=1)
    return writer
