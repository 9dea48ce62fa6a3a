"""A store in memory."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator

from packtrain.errors import AlreadyExists, NotFound, Unavailable
from packtrain.ports import ObjectInfo


class MemoryStore:
    """A `Store` whose objects are the ``objects`` of a dictionary, for tests to look at and to damage. Two of them
    that exist at once have different names."""

    def __init__(self, name: str = "store") -> None:
        self._name = name
        self.objects: dict[str, bytes] = {}
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"memory://{self._name}"

    @property
    def directory(self) -> None:
        return None

    def get(self, key: str) -> bytes:
        try:
            return self.objects[key]
        except KeyError:
            raise NotFound(f"there is no {self.locate(key)}") from None

    def read(self, key: str, start: int, length: int, buffer: memoryview) -> Iterator[memoryview]:
        data = memoryview(self.get(key))[start : start + length]
        for offset in range(0, len(data), len(buffer)):
            piece = data[offset : offset + len(buffer)]
            buffer[: len(piece)] = piece
            yield buffer[: len(piece)]
        if len(data) != length:
            raise Unavailable(f"{self.locate(key)} ends early")

    def create(self, key: str, data: bytes) -> None:
        with self._lock:
            if key in self.objects:
                raise AlreadyExists(f"{self.locate(key)} is there already")
            self.objects[key] = bytes(data)

    def upload(self, key: str, body: Iterable[bytes], size: int) -> None:
        data = b"".join(bytes(piece) for piece in body)  # a piece may be reused for the next
        if len(data) != size:
            raise ValueError(f"the body of {key} does not give the {size} bytes that were announced")
        with self._lock:
            self.objects[key] = data

    def copy_from(self, url: str, key: str, size: int, advance: Callable[[int], None]) -> bool:
        if not url.startswith(f"{self.url}/"):
            return False
        data = self.get(url.removeprefix(f"{self.url}/"))
        advance(size)
        with self._lock:
            self.objects[key] = data
        return True

    def delete(self, key: str) -> None:
        with self._lock:
            self.objects.pop(key, None)

    def head(self, key: str) -> ObjectInfo | None:
        data = self.objects.get(key)
        return None if data is None else _info(key, data)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        with self._lock:
            found = [_info(key, data) for key, data in self.objects.items() if key.startswith(prefix)]
        yield from found

    def children(self, prefix: str) -> Iterator[str]:
        below = (info.key.removeprefix(prefix) for info in self.list(prefix))
        yield from {key.partition("/")[0] for key in below if "/" in key}

    def locate(self, key: str) -> str:
        return f"{self.url}/{key}".rstrip("/")


def _info(key: str, data: bytes) -> ObjectInfo:
    return ObjectInfo(key, len(data), hashlib.sha256(data).hexdigest())
