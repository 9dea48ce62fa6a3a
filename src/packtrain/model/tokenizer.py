"""What can be told of a tokenizer from its files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

_FILES = re.compile(
    r"tokenizer\.json|tokenizer_config\.json|special_tokens_map\.json|added_tokens\.json|vocab\.(json|txt|bpe)"
    r"|merges\.txt|tokenizer\.model(\.v\d+)?|spiece\.model|sentencepiece\.bpe\.model|tekken\.json|.*\.tiktoken"
    r"|chat_template\.(jinja|json)|chat_templates/.+\.jinja|tokenization_\w+\.py"
)
DOCUMENTS = (  # the files from which the questions below are answered
    "tokenizer.json", "vocab.json", "added_tokens.json", "tokenizer_config.json", "chat_template.jinja",
    "chat_template.json",
)  # fmt: skip


def is_tokenizer_file(path: str) -> bool:
    """Whether a file of a Hugging Face model's directory belongs to its tokenizer."""
    return _FILES.fullmatch(path) is not None


def vocabulary_size(documents: Mapping[str, bytes]) -> int | None:
    """How many tokens a tokenizer has, with those that were added. None where its files do not say it as JSON."""
    fast = _json(documents, "tokenizer.json")
    model = fast.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, dict):
        added = [entry.get("content") for entry in _list(fast.get("added_tokens")) if isinstance(entry, dict)]
        return len(vocabulary.keys() | {text for text in added if isinstance(text, str)})
    if isinstance(vocabulary, list):  # unigram: [token, score]
        known = {entry[0] for entry in vocabulary if isinstance(entry, list) and entry and isinstance(entry[0], str)}
        added = [entry.get("content") for entry in _list(fast.get("added_tokens")) if isinstance(entry, dict)]
        return len(known | {text for text in added if isinstance(text, str)})
    slow = _json(documents, "vocab.json")
    return len(slow.keys() | _json(documents, "added_tokens.json").keys()) if slow else None


def chat_template(documents: Mapping[str, bytes]) -> str | None:
    """The template of the conversation, in the order in which transformers looks for it; None where there is none."""
    if "chat_template.jinja" in documents:
        return documents["chat_template.jinja"].decode("utf-8", "replace")
    for path in ("chat_template.json", "tokenizer_config.json"):
        value = _json(documents, path).get("chat_template")
        if isinstance(value, str):
            return value
        if isinstance(value, list):  # several, by name
            return json.dumps(value, sort_keys=True)
    return None


def _json(documents: Mapping[str, bytes], path: str) -> dict[str, Any]:
    try:
        value = json.loads(documents.get(path, b"{}"))
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
