"""The tokens that a tokenizer knows, by number."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from packtrain.training.checkpoint import Checkpoint
from packtrain.training.documents import MAX_DOCUMENT, Malformed, parse_object, read_bytes

_NUMBER = re.compile(r"[0-9]{1,9}")
_LFS = b"version https://git-lfs.github.com/spec/"


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The numbers of all tokens, and the file that most of them are in."""

    file: str
    ids: frozenset[int]


class BadVocabulary(ValueError):
    """A vocabulary that does not parse. The message completes "FILE: ..."."""

    def __init__(self, file: str, problem: str) -> None:
        super().__init__(problem)
        self.file = file


def read_vocabulary(checkpoint: Checkpoint) -> Vocabulary | None:
    """None for a kind of tokenizer that is not read here. Raises BadVocabulary, NotFound, LocalDiskError."""
    name = next((name for name in _READERS if name in checkpoint.taken), None)
    if name is None:
        return None
    try:
        ids = _ids(name, read_bytes(checkpoint.directory / name, limit=MAX_DOCUMENT))
    except Malformed as error:
        raise BadVocabulary(name, str(error)) from error
    return Vocabulary(name, frozenset([*ids, *_added(checkpoint)])) if ids else None


def _ids(name: str, data: bytes) -> list[int]:
    if data.startswith(_LFS):
        raise Malformed("is a Git LFS pointer, not the file")
    return _READERS[name](data) if data else []


def _added(checkpoint: Checkpoint) -> list[int]:
    """The tokens that were added beside the vocabulary."""
    decoder = checkpoint.document("tokenizer_config.json").get("added_tokens_decoder")
    numbers = [int(key) for key in decoder if _NUMBER.fullmatch(key)] if isinstance(decoder, dict) else []
    return numbers + _integers(checkpoint.document("added_tokens.json").values())


def _fast(data: bytes) -> list[int]:
    document = parse_object(data)
    model, added = document.get("model"), document.get("added_tokens")
    tokens = model.get("vocab") if isinstance(model, dict) else None
    more = [token.get("id") for token in added if isinstance(token, dict)] if isinstance(added, list) else []
    if isinstance(tokens, dict):
        return _integers([*tokens.values(), *more])
    return [*range(len(tokens)), *_integers(more)] if isinstance(tokens, list) else []  # Unigram: in order


def _byte_level(data: bytes) -> list[int]:
    return _integers(parse_object(data).values())


def _integers(values: Iterable[Any]) -> list[int]:
    return [value for value in values if type(value) is int]


def _sentencepiece(data: bytes) -> list[int]:
    """One number for each piece. A model is a protobuf message (sentencepiece_model.proto) that begins with its
    pieces: field 1, each with its length. Other files of this name (tiktoken's) hold none."""
    count = position = 0
    while position < len(data) and data[position] == 0x0A:
        length, position = _varint(data, position + 1)
        position += length
        count += 1
    return list(range(count)) if position <= len(data) else []


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """A number of protobuf and where the next begins: seven bits a byte, the lowest first."""
    value = shift = 0
    while position < len(data) and shift < 64:
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            break
    return value, position


_READERS = {
    "tokenizer.json": _fast,
    "vocab.json": _byte_level,
    "tokenizer.model": _sentencepiece,
    "spiece.model": _sentencepiece,
}
