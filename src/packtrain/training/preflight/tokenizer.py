"""The tokenizer, and what else an engine needs beside the weights to answer as it was trained."""

from __future__ import annotations

import re
from collections.abc import Iterator

from packtrain.model.finding import Finding
from packtrain.training.documents import printable
from packtrain.training.preflight.architecture import architecture, text_config
from packtrain.training.preflight.view import View, refuse, warn

VOCABULARIES = re.compile(
    r"tokenizer\.json|tokenizer\.model(\.v\d+)?|vocab\.(json|txt|model|bpe)|spiece\.model|tekken\.json"
    r"|sentencepiece\.bpe\.model|.*\.tiktoken|tokenization_\w+\.py"
)

# Classes whose slow form reads these files; transformers 5 no longer writes them beside tokenizer.json.
_BYTE_LEVEL = ("Qwen2Tokenizer", "GPT2Tokenizer")
_BYTE_LEVEL_FILES = ("vocab.json", "merges.txt")
_GENERATES = ("ForCausalLM", "ForConditionalGeneration", "LMHeadModel")


def check_tokenizer(view: View) -> Iterator[Finding]:
    if view.checkpoint.kind != "merged":
        return
    found = [path for path in view.there if VOCABULARIES.fullmatch(path)]
    if not any(view.sizes.get(path, 1) for path in found):
        fix = "Copy the tokenizer's files from the base model: tokenizer.json, tokenizer_config.json and the like."
        yield refuse("no-tokenizer", "", "no tokenizer has a vocabulary here", fix)
    elif "vocab.json" in found and "merges.txt" not in view.there and "tokenizer.json" not in found:
        fix = "Copy merges.txt from the base model."
        yield refuse("no-tokenizer", "merges.txt", "is missing: vocab.json needs it", fix)


def check_tokenizer_files(view: View) -> Iterator[Finding]:
    if not view.merged:
        return
    if view.vocabulary_problem:
        path, problem = view.vocabulary_problem
        yield refuse("tokenizer-invalid", path, problem, "Copy it again from the base model (with Git: git lfs pull).")
    named = str(view.checkpoint.document("tokenizer_config.json").get("tokenizer_class")).removesuffix("Fast")
    lost = [path for path in _BYTE_LEVEL_FILES if path not in view.there]
    if named in _BYTE_LEVEL and lost and "tokenizer.json" in view.there:
        what = f"is missing: {named} has it in every release of transformers before 5, and vLLM releases built on those"
        fix = f"Copy {' and '.join(lost)} from the base model; a merge with transformers 5 leaves them behind."
        yield warn("tokenizer-files", lost[0], f"{what} may need it", fix)


def check_chat_template(view: View) -> Iterator[Finding]:
    if not _generates(view) or {"chat_template.jinja", "chat_template.json", "tekken.json"} & view.there:
        return
    documents = (view.checkpoint.document(name) for name in ("tokenizer_config.json", "processor_config.json"))
    if any(document.get("chat_template") for document in documents):
        return
    fix = "Copy chat_template.jinja or tokenizer_config.json from the base model, or give vLLM --chat-template."
    what = "there is no chat template: vLLM would refuse /v1/chat/completions"
    yield warn("no-chat-template", "", what, fix)


def check_generation_config(view: View) -> Iterator[Finding]:
    if _generates(view) and "generation_config.json" not in view.there:
        what = "is missing: an engine stops at config.json's eos_token_id alone, and samples by its own defaults"
        yield warn("no-generation-config", "generation_config.json", what, "Copy it from the base model.")


def check_stop_tokens(view: View) -> Iterator[Finding]:
    """An engine stops at these numbers; one that is no token never comes, and every answer runs to its limit."""
    vocabulary = view.vocabulary
    if vocabulary is None:
        return
    for path in ("config.json", "generation_config.json"):
        said = text_config(view.checkpoint.document(path)).get("eos_token_id")
        numbers = said if isinstance(said, list) else [] if said is None else [said]
        if unknown := [number for number in numbers if type(number) is not int or number not in vocabulary.ids]:
            what = f"stops at token {printable(repr(unknown[0]))[:40]}, which the tokenizer in {vocabulary.file} lacks"
            fix = "Set eos_token_id to the tokenizer's own, or copy the tokenizer from the base model."
            yield warn("stop-token-unknown", path, what, fix)


def check_processor(view: View) -> Iterator[Finding]:
    known = {"preprocessor_config.json", "processor_config.json"} & view.there
    if view.merged and isinstance(view.config.get("vision_config"), dict) and not known:
        what = "is missing: the model takes images, and an engine does not know how to prepare them"
        fix = "Copy preprocessor_config.json and processor_config.json from the base model."
        yield warn("no-processor", "preprocessor_config.json", what, fix)


def _generates(view: View) -> bool:
    return view.merged and architecture(view.config).endswith(_GENERATES)
