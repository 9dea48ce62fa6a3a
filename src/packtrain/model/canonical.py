"""One byte form for each JSON value: RFC 8785 (JSON Canonicalization Scheme), restricted to what we use.

The restriction makes the standard library's encoder exact: object keys are ASCII (so that its sorting equals
RFC 8785's sorting by UTF-16 code units), numbers are integers of at most 2**53 - 1 (so that no float formatting
is involved), and strings hold no lone surrogates.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from packtrain.errors import IntegrityError

MAX_INTEGER = 2**53 - 1


def encode(value: Any) -> bytes:
    """The canonical bytes of a value of dicts, lists, strings, integers, booleans and None.

    Raises ValueError or TypeError for anything else: it is a bug in the caller, not in somebody's data.
    """
    data = encode_known(value)
    load(data)  # refuses floats, huge integers and foreign keys
    return data


def encode_known(value: Any) -> bytes:
    """As `encode`, for a value whose keys and numbers the caller has checked: a manifest of 200,000 chunks is not
    parsed again to be written."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8")  # a lone surrogate raises UnicodeEncodeError, a ValueError


def decode(data: bytes, *, what: str) -> Any:
    """The value of canonical bytes. ``what`` names them in the error.

    Bytes that are JSON but not canonical are refused, so that one value has one digest.
    """
    try:
        value = load(data)
        written = encode_known(value)
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{what} is not canonical JSON: {error}") from error
    require_equal([written], data, what=what)
    return value


def require_equal(written: Iterable[bytes], data: bytes, *, what: str) -> None:
    """``written``, the canonical pieces of what ``data`` says, must be ``data``. Raises IntegrityError."""
    position = 0
    for piece in written:
        if not data.startswith(piece, position):
            break
        position += len(piece)
    else:
        if position == len(data):
            return
    raise IntegrityError(f"{what} is JSON, but not in canonical form (RFC 8785)")


@contextmanager
def uncollected() -> Iterator[None]:
    """Makes many small values without Python's collector, which would walk all of them again and again, for several
    times the cost of making them. They hold no cycles."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def load(data: bytes) -> Any:
    """The value of JSON bytes, canonical or not. Raises ValueError for what canonical JSON cannot say."""
    return json.loads(
        data.decode("utf-8"),
        parse_float=_refuse_number,
        parse_constant=_refuse_number,
        parse_int=_integer,
        object_pairs_hook=_object,
    )


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key appears twice")
    for key in value:
        if not key.isascii():
            raise ValueError(f"the key {key!r} is not ASCII")
    return value


def _integer(text: str) -> int:
    if len(text) > 17 or abs(value := int(text)) > MAX_INTEGER:
        raise ValueError(f"the integer {text[:40]} is beyond 2**53 - 1")
    return value


def _refuse_number(text: str) -> NoReturn:
    raise ValueError(f"the number {text} is not an integer")
