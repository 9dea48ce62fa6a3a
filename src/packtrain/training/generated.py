"""What publish writes beside a merged model so that stock MLflow clients load it: a function of the export alone.

The directory stays a plain Hugging Face model (``model_binary: .``); MLflow's transformers flavor reads the tokenizer
from components/tokenizer. No time, no run, no random identity: the same export gives the same bytes, so they are
part of the version's digest. A model that this flavor cannot load (vision-language, custom code, an adapter) gets
nothing, rather than an MLmodel that promises what does not work.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from packtrain.training.checkpoint import Checkpoint

MLMODEL = """\
flavors:
  python_function:
    loader_module: mlflow.transformers
  transformers:
    components:
    - tokenizer
    instance_type: TextGenerationPipeline
    model_binary: .
    pipeline_model_type: {architecture}
    source_model_name: {architecture}
    task: text-generation
    tokenizer_type: AutoTokenizer
signature:
  inputs: '[{{"type": "string", "required": true}}]'
  outputs: '[{{"type": "string", "required": true}}]'
  params: null
"""
TOKENIZER_FOLDER = "components/tokenizer"

_TEXT_GENERATION = re.compile(r"[A-Za-z0-9_]+(ForCausalLM|LMHeadModel)")
_VERSION = re.compile(r"\d+(\.\d+){1,2}")
_TOKENIZER_FILES = re.compile(
    r"tokenizer(_config)?\.json|tokenizer\.model(\.v\d+)?|vocab\.(json|txt|model|bpe)|merges\.txt|spiece\.model"
    r"|sentencepiece\.bpe\.model|tekken\.json|.*\.tiktoken|special_tokens_map\.json|added_tokens\.json"
    r"|chat_template\.(jinja|json)|additional_chat_templates/.+"
)


@dataclass(frozen=True, slots=True)
class Generated:
    """A file to publish that the export does not hold: either its ``content``, or the taken file it is a copy of."""

    path: str
    content: bytes | None = None
    copy_of: str | None = None


def generate(checkpoint: Checkpoint) -> tuple[Generated, ...]:
    """The files to add, sorted by path; none that the export has itself."""
    architecture = _text_generation(checkpoint)
    if architecture is None:
        return ()
    taken = set(checkpoint.taken)
    return tuple(
        sorted((g for g in _files(checkpoint, architecture) if not _occupied(g.path, taken)), key=lambda g: g.path)
    )


def _files(checkpoint: Checkpoint, architecture: str) -> Iterator[Generated]:
    yield Generated("MLmodel", content=MLMODEL.format(architecture=architecture).encode())
    yield Generated("requirements.txt", content=_requirements(checkpoint).encode())
    copied = [path for path in checkpoint.taken if _TOKENIZER_FILES.fullmatch(path)]
    if "tokenizer_class" not in checkpoint.document("tokenizer_config.json"):
        copied.append("config.json")  # AutoTokenizer then asks it for the class
    yield from (Generated(f"{TOKENIZER_FOLDER}/{path}", copy_of=path) for path in copied)


def _text_generation(checkpoint: Checkpoint) -> str | None:
    """The architecture, if MLflow's text-generation flavor can load this model without its own code."""
    if checkpoint.kind != "merged" or any(document.get("auto_map") for document in checkpoint.documents.values()):
        return None
    architectures = checkpoint.document("config.json").get("architectures")
    if not isinstance(architectures, list) or len(architectures) != 1:
        return None
    name = architectures[0]
    return name if isinstance(name, str) and _TEXT_GENERATION.fullmatch(name) else None


def _requirements(checkpoint: Checkpoint) -> str:
    version = checkpoint.document("config.json").get("transformers_version")
    known = isinstance(version, str) and _VERSION.fullmatch(version)
    return f"accelerate\ntorch\ntransformers{f'>={version}' if known else ''}\n"


def _occupied(path: str, taken: set[str]) -> bool:
    """Whether the export has a file of this path, or one where its folder would be."""
    parts = path.split("/")
    return any("/".join(parts[:depth]) in taken for depth in range(1, len(parts) + 1))
