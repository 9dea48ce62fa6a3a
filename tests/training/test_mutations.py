"""Good models of many architectures pass; each single thing that is wrong with one is found, by its own name."""

from __future__ import annotations

import json
import re
import shutil
import struct
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conftest import SHARED_FIXTURES
from tests.training import test_preflight

from packtrain.client import Silent
from packtrain.model.finding import Finding
from packtrain.model.safetensors import DTYPE_BITS
from packtrain.testing.tinymodels import TensorBytes, kinds, write_adapter, write_model, write_safetensors
from packtrain.training.checkpoint import INDEX, inspect
from packtrain.training.preflight import preflight
from packtrain.training.preflight.architecture import expect
from packtrain.training.preflight.base import base_in, base_of
from packtrain.training.preflight.scan import scan
from packtrain.training.weights import read_header

ROOT = Path(__file__).parents[2]
WEIGHTS, LORA = "model.safetensors", "adapter_model.safetensors"
MODELS = [kind for kind in kinds() if kind != "qwen3_vl"]
ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {"targets": ("q_proj", "v_proj")},
    "dora": {"targets": ("q_proj",), "dora": True},
    "saved": {"targets": ("q_proj",), "modules_to_save": ("embed_tokens", "lm_head")},
}
UNSERVABLE = ("warn", "adapter-unservable", "adapter_config.json")

Break = Callable[[Path], Any]


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of every kind, and adapters of the Llama."""
    home = tmp_path_factory.mktemp("good")
    for kind in kinds():
        write_model(home / kind, kind)
    for name, options in ADAPTERS.items():
        write_adapter(home / name, home / "llama", seed=2, rank=4, base_name="team/llama", **options)
    return home


@pytest.fixture
def copy(good: Path, tmp_path: Path) -> Callable[[str], Path]:
    return lambda kind: Path(shutil.copytree(good / kind, tmp_path / kind))


def find(directory: Path, base: Path | None = None, *, scanned: bool = False) -> list[Finding]:
    checkpoint = inspect(directory)
    findings = preflight(checkpoint, allow_code=False, base=base_in(base) if base else None, whole=scanned)
    return [*findings, *(scan(checkpoint, Silent()) if scanned else ())]


def named(findings: list[Finding]) -> set[tuple[str, str, str]]:
    assert all(finding.what and finding.fix for finding in findings)
    return {(finding.level, finding.code, finding.where) for finding in findings}


# What breaks a model


def config(name: str = "config.json", **values: Any) -> Break:
    """Sets keys of a document; None removes them."""

    def change(directory: Path) -> None:
        path = directory / name
        document = json.loads(path.read_text()) | values
        path.write_text(json.dumps({key: value for key, value in document.items() if value is not None}))

    return change


def inside(name: str, *keys: str | int, value: Any) -> Break:
    """Sets a value deep in a document."""

    def change(directory: Path) -> None:
        document = json.loads((directory / name).read_text())
        place = document
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value
        (directory / name).write_text(json.dumps(document))

    return change


def retensor(change: Callable[[dict[str, TensorBytes]], Any], file: str = WEIGHTS) -> Break:
    def rewrite(directory: Path) -> None:
        path = directory / file
        data = path.read_bytes()
        tensors = {t.name: (t.dtype, t.shape, data[t.start : t.end]) for t in read_header(path).tensors}
        change(tensors)
        write_safetensors(path, tensors)

    return rewrite


def zeros(dtype: str, *shape: int) -> TensorBytes:
    count = DTYPE_BITS[dtype] // 8
    for size in shape:
        count *= size
    return dtype, shape, bytes(count)


def drop(*names: str, file: str = WEIGHTS) -> Break:
    return retensor(lambda tensors: [tensors.pop(name) for name in names], file)


def add(name: str, dtype: str, *shape: int, file: str = WEIGHTS) -> Break:
    """A tensor more, or in place of the one of this name."""
    return retensor(lambda tensors: tensors.update({name: zeros(dtype, *shape)}), file)


def rename(old: str, new: str, file: str = WEIGHTS) -> Break:
    return retensor(lambda tensors: tensors.update({new: tensors.pop(old)}), file)


def poke(name: str, number: bytes, file: str = WEIGHTS) -> Break:
    """Other bytes in the middle of a tensor."""

    def change(tensors: dict[str, TensorBytes]) -> None:
        dtype, shape, data = tensors[name]
        place = len(data) // 2
        tensors[name] = dtype, shape, data[:place] + number + data[place + len(number) :]

    return retensor(change, file)


def all_as(dtype: str) -> Break:
    def change(tensors: dict[str, TensorBytes]) -> None:
        tensors.update({name: zeros(dtype, *shape) for name, (_, shape, _) in tensors.items()})

    return retensor(change)


def lose(*names: str) -> Break:
    return lambda directory: [(directory / name).unlink() for name in names]


def put(name: str, content: bytes) -> Break:
    return lambda directory: (directory / name).write_bytes(content)


def one_piece_more(directory: Path) -> None:
    """A sentencepiece model with a token that the embedding has no row for."""
    path = directory / "tokenizer.model"
    path.write_bytes(b"\x0a\x03\x0a\x01!" + path.read_bytes())


Q0, E, HEAD = "model.layers.0.self_attn.q_proj.weight", "model.embed_tokens.weight", "lm_head.weight"
LQ = "base_model.model.model.layers.0.self_attn.q_proj."
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
TOKEN = {"id": 320, "content": "<new>", "special": True}
CONFIG, GENERATION, TOKENIZER = "config.json", "generation_config.json", "tokenizer_config.json"

# (kind, what breaks it, the code and the file that name it; "!" before a code: refused, "?": warned)
MUTATIONS: dict[str, tuple[str, Break, str, str]] = {
    # the vocabulary
    "a token without a row": ("llama", inside("tokenizer.json", "added_tokens", 0, value=TOKEN), "!vocabulary-too-large", "tokenizer.json"),
    "a token added beside": ("qwen2", put("added_tokens.json", b'{"<new>": 320}'), "!vocabulary-too-large", "tokenizer.json"),
    "a sentencepiece without a row": ("sentencepiece", one_piece_more, "!vocabulary-too-large", "tokenizer.model"),
    "a decoder beyond the rows": ("mistral", config(TOKENIZER, added_tokens_decoder={"999": {"content": "x"}}), "!vocabulary-too-large", "tokenizer.json"),
    "a token that an unknown model has no row for": ("qwen3_vl", inside("tokenizer.json", "added_tokens", 0, value=TOKEN), "!vocabulary-too-large", "tokenizer.json"),
    # the shapes
    "another vocab_size": ("llama", config(vocab_size=321), "!shape-mismatch", WEIGHTS),
    "another hidden_size": ("gemma", config(hidden_size=64), "!shape-mismatch", WEIGHTS),
    "another head_dim": ("qwen3", config(head_dim=8), "!shape-mismatch", WEIGHTS),
    "another number of key heads": ("mistral", config(num_key_value_heads=4), "!shape-mismatch", WEIGHTS),
    "another intermediate_size": ("phi3", config(intermediate_size=96), "!shape-mismatch", WEIGHTS),
    "an expert of another size": ("qwen3_moe", add("model.layers.1.mlp.experts.2.up_proj.weight", "BF16", 25, 32), "!shape-mismatch", WEIGHTS),
    "a bias of another size": ("qwen2", add("model.layers.1.self_attn.k_proj.bias", "BF16", 17), "!shape-mismatch", WEIGHTS),
    "a matrix turned": ("llama", add("model.layers.0.mlp.up_proj.weight", "BF16", 32, 48), "!shape-mismatch", WEIGHTS),
    "another vision width": ("qwen2_vl", inside(CONFIG, "vision_config", "embed_dim", value=32), "!shape-mismatch", WEIGHTS),
    "another projector": ("llava", add("multi_modal_projector.linear_1.weight", "BF16", 32, 32), "!shape-mismatch", WEIGHTS),
    "other groups of four bits": ("gptq", inside(CONFIG, "quantization_config", "group_size", value=32), "!shape-mismatch", WEIGHTS),
    "other bits": ("awq", inside(CONFIG, "quantization_config", "bits", value=8), "!shape-mismatch", WEIGHTS),
    "an unknown model's small embedding": ("qwen3_vl", inside(CONFIG, "text_config", "vocab_size", value=400), "!shape-mismatch", WEIGHTS),
    "a size in words": ("llama", config(hidden_size="32"), "!config-invalid", CONFIG),
    "no layers": ("llama", config(num_hidden_layers=-1), "!config-invalid", CONFIG),
    # the tensors
    "a norm lost": ("llama", drop("model.norm.weight"), "!tensor-missing", WEIGHTS),
    "a bias lost": ("qwen2", drop("model.layers.0.self_attn.v_proj.bias"), "!tensor-missing", WEIGHTS),
    "a query norm lost": ("qwen3", drop("model.layers.1.self_attn.q_norm.weight"), "!tensor-missing", WEIGHTS),
    "an expert lost": ("mixtral", drop("model.layers.1.block_sparse_moe.experts.3.w2.weight"), "!tensor-missing", WEIGHTS),
    "a router lost": ("qwen3_moe", drop("model.layers.1.mlp.gate.weight"), "!tensor-missing", WEIGHTS),
    "the output layer lost": ("llama", drop(HEAD), "!tensor-missing", WEIGHTS),
    "the output bias lost": ("phi", drop("lm_head.bias"), "!tensor-missing", WEIGHTS),
    "a vision bias lost": ("qwen2_5_vl", drop("visual.merger.mlp.2.bias"), "!tensor-missing", WEIGHTS),
    "a layer promised more": ("gemma2", config(num_hidden_layers=3), "!tensor-missing", WEIGHTS),
    "no longer tied": ("qwen2_tied", config(tie_word_embeddings=False), "!tensor-missing", WEIGHTS),
    "scales lost": ("gptq", drop("model.layers.0.mlp.up_proj.scales"), "!tensor-missing", WEIGHTS),
    "an unknown model's layer lost": ("qwen3_vl", inside(CONFIG, "text_config", "num_hidden_layers", value=3), "!tensor-missing", WEIGHTS),
    "the classifier lost": ("llama_classifier", drop("score.weight"), "!tensor-missing", WEIGHTS),
    "a stranger": ("mistral", add("model.layers.0.self_attn.sinks", "BF16", 4), "!tensor-extra", WEIGHTS),
    "a LoRA left in": ("llama", add("model.layers.0.self_attn.q_proj.lora_A.weight", "BF16", 4, 32), "!tensor-extra", WEIGHTS),
    "a bias that nobody reads": ("llama", add("model.layers.0.self_attn.q_proj.bias", "BF16", 32), "!tensor-extra", WEIGHTS),
    "a layer promised less": ("phi", config(num_hidden_layers=1), "!tensor-extra", WEIGHTS),
    "a value head": ("llama", add("v_head.summary.weight", "BF16", 1, 32), "!tensor-extra", WEIGHTS),
    # types
    "weights in float32": ("llama", all_as("F32"), "!dtype-mismatch", CONFIG),
    "a config of float32": ("mistral", config(dtype="float32"), "!dtype-mismatch", CONFIG),
    "an older config's float16": ("qwen2", config(dtype=None, torch_dtype="torch.float16"), "!dtype-mismatch", CONFIG),
    "one matrix in float32": ("llama", add(Q0, "F32", 32, 32), "?dtype-mixed", WEIGHTS),
    # tied embeddings
    "another output layer though tied": ("qwen2_tied", add(HEAD, "BF16", 320, 32), "!tied-differ", WEIGHTS),
    "tied all at once": ("llama", config(tie_word_embeddings=True), "!tied-differ", WEIGHTS),
    "a vision model's tie": ("qwen2_vl", config(tie_word_embeddings=True), "!tied-differ", WEIGHTS),
    # quantisation
    "four bits that are not there": ("llama", config(quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 16}), "!quantisation-mismatch", CONFIG),
    "eight bits that are not there": ("qwen3", config(quantization_config={"quant_method": "fp8"}), "!quantisation-mismatch", CONFIG),
    "AWQ that is not there": ("mistral", config(quantization_config={"quant_method": "awq", "bits": 4, "group_size": 16}), "!quantisation-mismatch", CONFIG),
    "four bits unsaid": ("awq", config(quantization_config=None), "!quantisation-mismatch", CONFIG),
    # tokenizer and the rest that an answer needs
    "no chat template": ("llama", lose("chat_template.jinja"), "?no-chat-template", ""),
    "no generation config": ("gemma3", lose(GENERATION), "?no-generation-config", GENERATION),
    "a stop that is no token": ("llama", config(GENERATION, eos_token_id=[317, 400]), "?stop-token-unknown", GENERATION),
    "a stop of another model": ("sentencepiece", config(eos_token_id=128009), "?stop-token-unknown", CONFIG),
    "a stop in words": ("mistral", config(GENERATION, eos_token_id="</s>"), "?stop-token-unknown", GENERATION),
    "a vision model's stop": ("llava", inside(CONFIG, "text_config", "eos_token_id", value=999), "?stop-token-unknown", CONFIG),
    "merges lost": ("qwen3", lose("merges.txt"), "?tokenizer-files", "merges.txt"),
    "vocabulary and merges lost": ("qwen2", lose("vocab.json", "merges.txt"), "?tokenizer-files", "vocab.json"),
    "a pointer for a tokenizer": ("llama", put("tokenizer.json", LFS), "!tokenizer-invalid", "tokenizer.json"),
    "a pointer for sentencepiece": ("sentencepiece", put("tokenizer.model", LFS), "!tokenizer-invalid", "tokenizer.model"),
    "half a tokenizer": ("gemma", put("tokenizer.json", b'{"model": {'), "!tokenizer-invalid", "tokenizer.json"),
    "no processor": ("gemma3_vl", lose("preprocessor_config.json"), "?no-processor", "preprocessor_config.json"),
    "an architecture of tomorrow": ("llama", config(architectures=["Llama9ForCausalLM"]), "?architecture-unknown", CONFIG),
    "a quantisation of tomorrow": ("gptq", inside(CONFIG, "quantization_config", "checkpoint_format", value="marlin"), "?architecture-unknown", CONFIG),
}  # fmt: skip

NAN, INFINITY = {"BF16": b"\xc0\x7f", "F16": b"\x00\x7e", "F32": struct.pack("<f", float("nan"))}, b"\x80\xff"
SCANNED: dict[str, tuple[str, Break]] = {
    "NaN in bfloat16": ("llama", poke(Q0, NAN["BF16"])),
    "infinity in bfloat16": ("mixtral", poke("model.norm.weight", INFINITY)),
    "NaN in float16": ("gptq", poke("model.layers.1.mlp.up_proj.scales", NAN["F16"])),
    "NaN in float32": ("lora", poke(LQ + "lora_A.weight", NAN["F32"], LORA)),
}

# (adapter, what breaks it, whether only its base shows it, the finding)
ADAPTER_MUTATIONS: dict[str, tuple[str, Break, bool, str, str]] = {
    "another rank": ("lora", config("adapter_config.json", r=8), False, "!adapter-rank", "adapter_config.json"),
    "a pattern of ranks": ("lora", config("adapter_config.json", rank_pattern={"v_proj": 2}), False, "!adapter-rank", "adapter_config.json"),
    "one half of another rank": ("lora", add(LQ + "lora_B.weight", "F32", 32, 3, file=LORA), False, "!adapter-rank", "adapter_config.json"),
    "a half without a rank": ("lora", add(LQ + "lora_B.weight", "F32", 32, file=LORA), False, "!adapter-rank", "adapter_config.json"),
    "a target forgotten": ("lora", config("adapter_config.json", target_modules=["q_proj"]), False, "!adapter-target", "adapter_config.json"),
    "a pattern that matches less": ("lora", config("adapter_config.json", target_modules=r".*\.q_proj"), False, "!adapter-target", "adapter_config.json"),
    "one layer only, it says": ("lora", config("adapter_config.json", layers_to_transform=[1]), False, "!adapter-target", "adapter_config.json"),
    "a target without weights": ("lora", config("adapter_config.json", target_modules=["q_proj", "v_proj", "o_proj"]), False, "?adapter-target", "adapter_config.json"),
    "a target without weights that the base has": ("lora", config("adapter_config.json", target_modules=["q_proj", "v_proj", "o_proj"]), True, "!adapter-target", LORA),
    "a layer lost": ("lora", drop(LQ + "lora_A.weight", LQ + "lora_B.weight", file=LORA), True, "!adapter-target", LORA),
    "half a LoRA": ("lora", drop(LQ + "lora_B.weight", file=LORA), False, "!tensor-missing", LORA),
    "a magnitude lost": ("dora", drop(LQ + "lora_magnitude_vector", file=LORA), False, "!tensor-missing", LORA),
    "a magnitude of another length": ("dora", add(LQ + "lora_magnitude_vector", "F32", 16, file=LORA), False, "!adapter-shape", LORA),
    "DoRA unsaid": ("dora", config("adapter_config.json", use_dora=False), False, "!tensor-extra", LORA),
    "a module to save lost": ("saved", drop("base_model.model.lm_head.weight", file=LORA), False, "!adapter-module", LORA),
    "a module to save that is not": ("lora", config("adapter_config.json", modules_to_save=["lm_head"]), False, "!adapter-module", LORA),
    "a module saved unasked": ("lora", add("base_model.model.model.norm.weight", "BF16", 32, file=LORA), False, "!adapter-module", LORA),
    "a saved module of another size": ("saved", add("base_model.model.lm_head.weight", "BF16", 400, 32, file=LORA), True, "!adapter-shape", LORA),
    "inputs of another base": ("lora", add(LQ + "lora_A.weight", "F32", 4, 64, file=LORA), True, "!adapter-shape", LORA),
    "outputs of another base": ("lora", add(LQ + "lora_B.weight", "F32", 64, 4, file=LORA), True, "!adapter-shape", LORA),
    "a layer that the base lacks": ("lora", lambda d: [rename(LQ + f"lora_{x}.weight", LQ.replace("0", "7") + f"lora_{x}.weight", LORA)(d) for x in "AB"], True, "!adapter-target", LORA),
    "biases": ("lora", config("adapter_config.json", bias="all"), False, "?adapter-unservable", "adapter_config.json"),
    "a start that changed the base": ("lora", config("adapter_config.json", init_lora_weights="pissa"), False, "?adapter-unservable", "adapter_config.json"),
}  # fmt: skip


def expected(code: str, where: str) -> tuple[str, str, str]:
    return {"!": "refuse", "?": "warn"}[code[0]], code[1:], where


@pytest.mark.parametrize("kind", MODELS)
def test_a_good_model_gives_no_finding(kind: str, good: Path) -> None:
    assert find(good / kind, scanned=True) == []


@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.parametrize("with_base", [False, True])
def test_a_good_adapter_gives_no_finding_but_what_vllm_does_not_load(name: str, with_base: bool, good: Path) -> None:
    findings = named(find(good / name, good / "llama" if with_base else None, scanned=True))
    assert findings == (set() if name == "lora" else {UNSERVABLE})


@pytest.mark.parametrize("case", MUTATIONS)
def test_one_mutation_of_a_model_is_named(case: str, copy: Callable[[str], Path], good: Path) -> None:
    kind, break_it, code, where = MUTATIONS[case]
    directory = copy(kind)
    break_it(directory)
    assert named(find(directory)) - named(find(good / kind)) == {expected(code, where)}


@pytest.mark.parametrize("case", SCANNED)
def test_a_number_that_is_none_is_found_by_a_scan_alone(case: str, copy: Callable[[str], Path]) -> None:
    kind, break_it = SCANNED[case]
    directory = copy(kind)
    break_it(directory)
    assert find(directory) == []
    [finding] = find(directory, scanned=True)
    assert named([finding]) == {("refuse", "not-finite", LORA if kind == "lora" else WEIGHTS)}
    assert finding.what.endswith(": 1 numbers")


@pytest.mark.parametrize("case", ADAPTER_MUTATIONS)
def test_one_mutation_of_an_adapter_is_named(case: str, copy: Callable[[str], Path], good: Path) -> None:
    name, break_it, by_base, code, where = ADAPTER_MUTATIONS[case]
    directory = copy(name)
    break_it(directory)
    base = good / "llama" if by_base else None
    assert named(find(directory, base)) - {UNSERVABLE} == {expected(code, where)} - {UNSERVABLE}
    if by_base:
        assert ("refuse", code[1:], where) not in named(find(directory))
        shapes = base_of(json.loads((good / "llama" / "config.json").read_text()))
        findings = preflight(inspect(directory), allow_code=False, base=shapes)
        assert expected(code, where) in named(list(findings))  # a published base's config.json shows it, too


def test_what_vllm_would_not_load_is_said(good: Path) -> None:
    reasons = {name: find(good / name)[0].what for name in ("dora", "saved")}
    assert "DoRA" in reasons["dora"] and "modules_to_save" in reasons["saved"]


def test_tied_embeddings_saved_twice_and_equal_are_fine(copy: Callable[[str], Path]) -> None:
    directory = copy("qwen2_tied")
    retensor(lambda tensors: tensors.update({HEAD: tensors[E]}))(directory)
    assert find(directory) == []


def test_one_row_that_is_tied_and_differs_is_found_by_a_scan(copy: Callable[[str], Path]) -> None:
    """Without a scan large tensors are compared in places: it reads no more of a large model than of a small one."""
    directory = copy("qwen2_tied")
    config(vocab_size=200_000)(directory)
    embedding = zeros("BF16", 200_000, 32)
    retensor(lambda tensors: tensors.update({E: embedding, HEAD: embedding}))(directory)
    poke(HEAD, b"\x80\x3f")(directory)
    assert find(directory) == []
    assert named(find(directory, scanned=True)) == {("refuse", "tied-differ", WEIGHTS)}


def test_buffers_that_older_releases_saved_are_passed_over(copy: Callable[[str], Path]) -> None:
    directory = copy("llama")
    add("model.layers.0.self_attn.rotary_emb.inv_freq", "F32", 4)(directory)
    assert find(directory) == []


def test_a_body_without_its_prefix_is_the_same_model(copy: Callable[[str], Path]) -> None:
    directory = copy("qwen2_tied")
    retensor(lambda tensors: [tensors.update({n.removeprefix("model."): tensors.pop(n)}) for n in list(tensors)])(
        directory
    )
    assert find(directory) == []


@pytest.mark.parametrize("kind", ["qwen2_vl", "llava", "gemma3_vl"])
def test_vision_language_names_of_transformers_4_52_are_the_same_model(kind: str, copy: Callable[[str], Path]) -> None:
    def respell(name: str) -> str:
        name = re.sub(r"^(language_model\.model|model)\.", "model.language_model.", name)
        name = re.sub(r"^language_model\.lm_head", "lm_head", name)
        name = re.sub(r"^vision_tower\.", "vision_tower.vision_model.", name)
        return re.sub(r"^(visual|vision_tower|multi_modal_projector)\.", r"model.\1.", name)

    directory = copy(kind)
    before = set(read_header(directory / WEIGHTS).tensors)
    retensor(lambda tensors: [tensors.update({respell(n): tensors.pop(n)}) for n in list(tensors)])(directory)
    assert not {t.name for t in read_header(directory / WEIGHTS).tensors} & {t.name for t in before} - {HEAD}
    assert find(directory) == []


def test_what_a_config_leaves_out_is_not_held_against_the_weights(copy: Callable[[str], Path]) -> None:
    """As in the Hub's LLaVA 1.5, whose text_config leaves the sizes to the class."""
    directory = copy("llava")
    text = {"model_type": "llama", "vocab_size": 320, "eos_token_id": 317}
    inside(CONFIG, "text_config", value=text)(directory)
    assert find(directory) == []


def test_an_unknown_architecture_is_said_to_be_unknown_and_not_refused(good: Path) -> None:
    [finding] = find(good / "qwen3_vl")
    assert (finding.level, finding.code) == ("warn", "architecture-unknown")
    assert "Qwen3VLForConditionalGeneration" in finding.what and "only" in finding.what


def test_many_tensors_are_one_finding(copy: Callable[[str], Path]) -> None:
    directory = copy("mixtral")
    config(num_local_experts=9)(directory)
    findings = [finding for finding in find(directory) if finding.code == "tensor-missing"]
    assert len(findings) == 1 and "and 29 more" in findings[0].what


def test_only_headers_are_read(tmp_path: Path) -> None:
    """The headers of a 70B model over holes: 140 GB that would take minutes to read take no room and no time."""
    directory = write_model(tmp_path / "huge", "llama")
    sizes = {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "vocab_size": 128256}
    config(**sizes, num_attention_heads=64, num_key_value_heads=8, head_dim=128)(directory)
    (directory / WEIGHTS).unlink()
    tensors = list(expect(json.loads((directory / CONFIG).read_text()), layers=80).shapes.items())
    places = {}
    for number in range(30):
        shard = f"model-{number + 1:05}-of-00030.safetensors"
        write_hollow(directory / shard, dict(tensors[number::30]))
        places |= dict.fromkeys(dict(tensors[number::30]), shard)
    (directory / INDEX).write_text(json.dumps({"weight_map": places}))
    assert sum(path.stat().st_size for path in directory.glob("*.safetensors")) > 140e9
    assert find(directory) == []


def write_hollow(path: Path, shapes: dict[str, Any]) -> None:
    """A safetensors file of bfloat16 with its header and nothing behind it but a hole."""
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


def test_page_code_and_cases_name_the_same_codes() -> None:
    rows = re.findall(r"^\| `([a-z-]+)` \| ([a-z, ]+) \|", (ROOT / "docs/preflight.md").read_text(), re.MULTILINE)
    documented = {(code, level) for code, levels in rows for level in levels.split(", ")}
    assert len(rows) == len({code for code, _ in rows})
    cases = {(code, level) for _, _, found in test_preflight.CASES.values() for level, code, _ in found}
    mutations = [(code, where) for _, _, code, where in MUTATIONS.values()]
    mutations += [(code, where) for _, _, _, code, where in ADAPTER_MUTATIONS.values()]
    cases |= {expected(code, where)[1::-1] for code, where in mutations}
    elsewhere = {("custom-code", "warn"), ("not-finite", "refuse"), ("base-unpublished", "warn")}
    assert documented == cases | elsewhere
    pattern = r'(?:[._]?refuse|warn|find|Finding)\(\s*(?:"(?:refuse|warn)", )?"([a-z-]+)"'
    sources = [path.read_text() for path in (ROOT / "src" / "packtrain").rglob("*.py")]
    written = {code for source in sources for code in re.findall(pattern, source)} - {"refuse", "warn"}
    assert written == {code for code, _ in documented}


def test_there_are_as_many_mutations_as_promised() -> None:
    assert len(MUTATIONS) + len(SCANNED) + len(ADAPTER_MUTATIONS) >= 40


@pytest.mark.parametrize(
    ("kind", "break_it"),
    [
        ("qwen2_vl", inside(CONFIG, "vision_config", "mlp_ratio", value=float("inf"))),
        ("qwen3_vl", inside(CONFIG, "text_config", "num_hidden_layers", value=True)),
        ("llama", config(TOKENIZER, added_tokens_decoder={"9" * 5000: 1})),
        ("llama", put("tokenizer.model", b"\x0a" * 50)),
        ("sentencepiece", put("tokenizer.model", b"\x0a" * 50)),
        ("lora", config("adapter_config.json", rank_pattern={"(.*)*z": 1})),  # would take for ever
        ("lora", config("adapter_config.json", rank_pattern={"(": 1, "x": [1]})),
        ("lora", config("adapter_config.json", layers_to_transform={"a": 1})),
        ("lora", config("adapter_config.json", modules_to_save=5)),
    ],
)
def test_what_nobody_can_judge_is_passed_over(kind: str, break_it: Break, copy: Callable[[str], Path]) -> None:
    directory = copy(kind)
    break_it(directory)
    assert {finding.level for finding in find(directory)} <= {"warn"}


ANY_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["q_proj", "*", "("]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)
DOCUMENTS = [
    *((kind, CONFIG, ()) for kind in ("llama", "qwen3_moe", "gptq", "qwen3_vl")),
    *((kind, CONFIG, (part,)) for kind in ("qwen2_vl", "llava") for part in ("text_config", "vision_config")),
    ("gptq", CONFIG, ("quantization_config",)),
    ("llama", GENERATION, ()),
    ("llama", TOKENIZER, ()),
    ("llama", "tokenizer.json", ()),
    ("lora", "adapter_config.json", ()),
    ("saved", "adapter_config.json", ()),
]


@settings(max_examples=300, suppress_health_check=SHARED_FIXTURES)
@given(data=st.data(), value=ANY_JSON, which=st.sampled_from(DOCUMENTS))
def test_any_value_in_a_document_is_a_finding_or_none(
    data: st.DataObject, value: Any, which: tuple[str, str, tuple[str, ...]], good: Path, tmp_path: Path
) -> None:
    kind, name, section = which
    directory = tmp_path / kind
    if not directory.exists():
        shutil.copytree(good / kind, directory)
    document = json.loads((good / kind / name).read_text())
    place = document
    for part in section:
        place = place[part]
    keys = sorted({*place, "rank_pattern", "target_parameters", "layers_to_transform", "added_tokens_decoder", "dtype"})
    place[data.draw(st.sampled_from(keys))] = value
    (directory / name).write_text(json.dumps(document))
    try:
        for finding in find(directory, good / "llama"):
            str(finding).encode("utf-8")
    finally:
        shutil.copyfile(good / kind / name, directory / name)
