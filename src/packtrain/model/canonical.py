"""One byte form for each JSON value: RFC 8785 (JSON Canonicalization Scheme), restricted to what we use.

The restriction makes the standard library's encoder exact: object keys are ASCII (so that its sorting equals
RFC 8785's sorting by UTF-16 code units), numbers are integers of at most 2**53 - 1 (so that no float formatting
is involved), and strings hold no lone surrogates.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn

from packtrain.errors import IntegrityError

MAX_INTEGER = 2**53 - 1


def encode(value: Any) -> bytes:
    """The canonical bytes of a value of dicts, lists, strings, integers, booleans and None.

    Raises ValueError or TypeError for anything else: it is a bug in the caller, not in somebody's data.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    data = text.encode("utf-8")  # a lone surrogate raises UnicodeEncodeError, a ValueError
    _load(text)  # refuses floats, huge integers and foreign keys
    return data


def decode(data: bytes, *, what: str) -> Any:
    """The value of canonical bytes. ``what`` names them in the error.

    Bytes that are JSON but not canonical are refused, so that one value has one digest.
    """
    try:
        value = _load(data.decode("utf-8"))
        canonical = encode(value) == data
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{what} is not canonical JSON: {error}") from error
    if not canonical:
        raise IntegrityError(f"{what} is JSON, but not in canonical form (RFC 8785)")
    return value


def _load(text: str) -> Any:
    return json.loads(
        text,
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
