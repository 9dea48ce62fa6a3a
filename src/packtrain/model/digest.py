"""The identity of a version: SHA-256 of its canonical manifest."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from packtrain.errors import UsageError

_HEX = re.compile(r"[0-9a-f]{64}")


def is_hex256(text: object) -> bool:
    """Whether this is 64 lower-case hexadecimal digits: how SHA-256 and BLAKE3 digests are written everywhere."""
    return isinstance(text, str) and _HEX.fullmatch(text) is not None


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """A SHA-256 digest. ``str()`` gives ``sha256:<64 hex>``, which `parse` reads back."""

    hex: str

    def __post_init__(self) -> None:
        if not is_hex256(self.hex):
            raise UsageError(
                f"{self.hex!r} is not a SHA-256 digest",
                hint="A digest is 64 hexadecimal digits in lower case, as in sha256:9f86d0...",
            )

    @classmethod
    def of(cls, data: bytes) -> Digest:
        return cls(hashlib.sha256(data).hexdigest())

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Reads ``sha256:<64 hex>``. Raises UsageError."""
        scheme, colon, hex_digits = text.partition(":")
        if not colon or scheme != "sha256":
            raise UsageError(f"{text!r} is not a digest", hint="A digest is written sha256: and 64 hexadecimal digits.")
        return cls(hex_digits)

    @property
    def short(self) -> str:
        """Twelve digits, for people. Never parsed."""
        return self.hex[:12]

    def __str__(self) -> str:
        return f"sha256:{self.hex}"
