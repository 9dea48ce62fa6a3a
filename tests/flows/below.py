"""A part of a store as a store of its own: a prefix of a bucket, in memory."""

from __future__ import annotations

from collections.abc import Iterator

from packtrain.ports import ObjectInfo
from packtrain.testing.memory_store import MemoryStore


class Below(MemoryStore):
    """Everything under ``prefix`` of ``outer``, to be read. What it locates, ``outer`` can copy by itself."""

    def __init__(self, outer: MemoryStore, prefix: str) -> None:
        super().__init__()
        self.outer = outer
        self.prefix = prefix

    @property
    def url(self) -> str:
        return self.outer.locate(self.prefix.removesuffix("/"))

    def get(self, key: str) -> bytes:
        return self.outer.get(self.prefix + key)

    def head(self, key: str) -> ObjectInfo | None:
        return next((info for info in self.list("") if info.key == key), None)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        for info in self.outer.list(self.prefix + prefix):
            yield ObjectInfo(info.key.removeprefix(self.prefix), info.size, info.tag)
