"""What can be told of a tokenizer from its files."""

from __future__ import annotations

import json
from typing import Any

import pytest

from packtrain.model.tokenizer import chat_template, is_tokenizer_file, vocabulary_size

BPE = {"model": {"vocab": {"a": 0, "b": 1}}, "added_tokens": [{"content": "<s>", "id": 2}, {"content": "a", "id": 0}]}
UNIGRAM = {"model": {"vocab": [["a", 0.0], ["b", -1.0]]}, "added_tokens": [{"content": "<s>"}]}


def documents(**files: Any) -> dict[str, bytes]:
    return {name.replace("__", "."): json.dumps(value).encode() for name, value in files.items()}


@pytest.mark.parametrize(
    ("files", "count"),
    [
        (documents(tokenizer__json=BPE), 3),
        (documents(tokenizer__json=UNIGRAM), 3),
        (documents(vocab__json={"a": 0, "b": 1}, added_tokens__json={"b": 1, "c": 2}), 3),
        (documents(tokenizer__json={"model": {"vocab": 5}}, vocab__json={"a": 0}), 1),
        ({}, None),
        ({"tokenizer.json": b"\xff"}, None),
        ({"tokenizer.json": b"[1]"}, None),
        (documents(tokenizer__json={"model": {"vocab": [["a"], [], 5, [6]]}, "added_tokens": [1, {"content": 2}]}), 1),
    ],
)
def test_the_size_of_the_vocabulary(files: dict[str, bytes], count: int | None) -> None:
    assert vocabulary_size(files) == count


def test_the_chat_template_as_transformers_looks_for_it() -> None:
    in_config = documents(tokenizer_config__json={"chat_template": "old"})
    assert chat_template(in_config) == "old"
    assert chat_template({**in_config, **documents(chat_template__json={"chat_template": "json"})}) == "json"
    assert chat_template({**in_config, "chat_template.jinja": b"new"}) == "new"
    assert chat_template(documents(tokenizer_config__json={"chat_template": None})) is None
    named = documents(tokenizer_config__json={"chat_template": [{"name": "default", "template": "x"}]})
    assert "default" in str(chat_template(named))


def test_which_files_are_the_tokenizers() -> None:
    assert all(map(is_tokenizer_file, ("tokenizer.json", "merges.txt", "tokenizer.model.v3", "qwen.tiktoken")))
    assert not any(map(is_tokenizer_file, ("config.json", "components/tokenizer/tokenizer.json", "model.safetensors")))
