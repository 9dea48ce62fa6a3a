"""Text in pictures: whatever others wrote, it stays in its place and is only text."""

from __future__ import annotations

import unicodedata
from xml.sax.saxutils import escape


def cut(text: str, columns: int) -> str:
    """At most so many columns: paths and names keep their end, which tells them apart."""
    text = printable(text)
    if columns_of(text) <= columns:
        return text
    head = text[: columns // 3]
    tail = text[-(columns - len(head) - 1) :]
    while columns_of(f"{head}…{tail}") > columns and tail:
        tail = tail[1:]
    return f"{head}…{tail}"


def columns_of(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def xml(text: str) -> str:
    return escape("\n".join(map(printable, text.split("\n"))))


def printable(text: str) -> str:
    """Control characters cannot stand in XML, and those that turn the direction of writing must not in a picture."""
    return "".join(c if c.isprintable() else "�" for c in text)
