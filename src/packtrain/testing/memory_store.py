"""A store in memory."""

from __future__ import annotations

import hashlib
import itertools
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from packtrain.errors import AlreadyExists, IntegrityError, NotFound, Unavailable
from packtrain.ports import Body, ObjectInfo, OpenUpload, PartInfo, PartLimits


class MemoryStore:
    """A `Store` whose objects are the ``objects`` of a dictionary, for tests to look at and to damage. Two of them
    that exist at once have different names."""

    def __init__(self, name: str = "store") -> None:
        self._name = name
        self.objects: dict[str, bytes] = {}
        self.lock = threading.Lock()
        self.multipart: MemoryMultipart | None = None  # `MemoryMultipart(store)` puts itself there

    def copy(self) -> MemoryStore:
        """Another one that holds the same."""
        other = MemoryStore(self._name)
        other.objects = dict(self.objects)
        return other

    @property
    def url(self) -> str:
        return f"memory://{self._name}"

    @property
    def directory(self) -> Path | None:
        return None

    def get(self, key: str) -> bytes:
        try:
            return self.objects[key]
        except KeyError:
            raise NotFound(f"there is no {self.locate(key)}") from None

    def prepare(self, key: str, reads: int) -> None:
        pass

    def read(self, key: str, start: int, length: int, buffer: memoryview) -> Iterator[memoryview]:
        data = memoryview(self.get(key))[start : start + length]
        for offset in range(0, len(data), len(buffer)):
            piece = data[offset : offset + len(buffer)]
            buffer[: len(piece)] = piece
            yield buffer[: len(piece)]
        if len(data) != length:
            raise Unavailable(f"{self.locate(key)} ends early")

    def create(self, key: str, data: bytes) -> None:
        with self.lock:
            if key in self.objects:
                raise AlreadyExists(f"{self.locate(key)} is there already")
            self.objects[key] = bytes(data)

    def upload(self, key: str, body: Iterable[bytes], size: int) -> None:
        data = b"".join(bytes(piece) for piece in body)  # a piece may be reused for the next
        if len(data) != size:
            raise ValueError(f"the body of {key} does not give the {size} bytes that were announced")
        with self.lock:
            self.objects[key] = data

    def copy_from(
        self,
        url: str,
        key: str,
        size: int,
        advance: Callable[[int], None],
        *,
        fixed: bool = False,  # noqa: ARG002 - bytes never change
    ) -> bool:
        if not url.startswith(f"{self.url}/"):
            return False
        data = self.get(url.removeprefix(f"{self.url}/"))
        advance(size)
        with self.lock:
            self.objects[key] = data
        return True

    def delete(self, key: str) -> None:
        with self.lock:
            self.objects.pop(key, None)

    def head(self, key: str) -> ObjectInfo | None:
        data = self.objects.get(key)
        return None if data is None else _info(key, data)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        with self.lock:
            found = [_info(key, data) for key, data in self.objects.items() if key.startswith(prefix)]
        yield from found

    def children(self, prefix: str) -> Iterator[str]:
        below = (info.key.removeprefix(prefix) for info in self.list(prefix))
        yield from {key.partition("/")[0] for key in below if "/" in key}

    def locate(self, key: str) -> str:
        return f"{self.url}/{key}".rstrip("/")


class MemoryMultipart:
    """The `Multipart` of a store in memory. ``limits`` as small as a test wants them. ``silent``: a store that computes
    no checksums. ``copies``: whether it copies ranges. ``sent`` and ``copied`` count bytes."""

    def __init__(
        self,
        store: MemoryStore,
        limits: PartLimits = PartLimits(smallest=5 << 20, largest=5 << 30, most=10_000),  # noqa: B008 - frozen
        *,
        silent: bool = False,
        copies: bool = True,
    ) -> None:
        store.multipart = self
        self.limits = limits
        self.sent = self.copied = 0
        self.classes: dict[str, str] = {}  # by keys
        self._store = store
        self._silent = silent
        self._copies = copies
        self._open: dict[OpenUpload, dict[int, bytes]] = {}
        self._ids = map(str, itertools.count())
        self._lock = store.lock

    def warm(self) -> None:
        pass

    def put(self, key: str, body: Body, size: int, crc32: int) -> None:
        data = self._taken(key, body, size, crc32)
        with self._lock:
            self._store.objects[key] = data

    def crc32(self, key: str) -> int | None:
        data = self._store.get(key)
        return None if self._silent else zlib.crc32(data)

    def reclass(self, key: str, size: int, storage_class: str) -> None:
        if len(self._store.get(key)) != size:
            raise Unavailable(f"{key} is not of {size} bytes")
        self.classes[key] = storage_class

    def begin(self, key: str) -> OpenUpload:
        with self._lock:
            upload = OpenUpload(key, next(self._ids), datetime.now(UTC))
            self._open[upload] = {}
        return upload

    def open_uploads(self, prefix: str) -> Iterator[OpenUpload]:
        with self._lock:
            found = [upload for upload in self._open if upload.key.startswith(prefix)]
        yield from found

    def parts(self, upload: OpenUpload) -> list[PartInfo]:
        with self._lock:
            return [self._info(number, data) for number, data in sorted(self._held(upload).items())]

    def send(self, upload: OpenUpload, number: int, body: Body, size: int, crc32: int) -> PartInfo:
        data = self._taken(upload.key, body, size, crc32)
        return self._hold(upload, number, data)

    def copy(self, upload: OpenUpload, number: int, url: str, start: int, length: int) -> PartInfo | None:
        if not self._copies or not url.startswith(f"{self._store.url}/"):
            return None
        data = self._store.get(url.removeprefix(f"{self._store.url}/"))[start : start + length]
        self.copied += length
        return self._hold(upload, number, data)

    def complete(self, upload: OpenUpload, parts: Sequence[PartInfo], crc32: int) -> None:
        with self._lock:
            held = self._held(upload)
            for part in parts[:-1]:
                if part.size < self.limits.smallest:
                    raise Unavailable(f"part {part.number} is too small")
            if any(self._info(part.number, held.get(part.number, b"")).tag != part.tag for part in parts):
                raise Unavailable("a part is not what it was")
            data = b"".join(held[part.number] for part in parts)
            if not self._silent and zlib.crc32(data) != crc32:
                raise IntegrityError(f"{upload.key}: what arrived there is not what was hashed")
            self._store.objects[upload.key] = data
            del self._open[upload]

    def abort(self, upload: OpenUpload) -> None:
        with self._lock:
            self._open.pop(upload, None)

    def _taken(self, key: str, body: Body, size: int, crc32: int) -> bytes:
        data = b"".join(bytes(piece) for piece in body())
        if len(data) != size:
            raise ValueError(f"the body of {key} does not give the {size} bytes that were announced")
        self.sent += size
        if not self._silent and zlib.crc32(data) != crc32:
            raise IntegrityError(f"{key}: what arrived there is not what was hashed")
        return data

    def _hold(self, upload: OpenUpload, number: int, data: bytes) -> PartInfo:
        with self._lock:
            self._held(upload)[number] = data
        return self._info(number, data)

    def _held(self, upload: OpenUpload) -> dict[int, bytes]:
        try:
            return self._open[upload]
        except KeyError:
            raise NotFound(f"there is no open upload {upload.id} of {upload.key}") from None

    def _info(self, number: int, data: bytes) -> PartInfo:
        crc32 = None if self._silent else zlib.crc32(data)
        return PartInfo(number, len(data), hashlib.sha256(data).hexdigest(), crc32)


def _info(key: str, data: bytes) -> ObjectInfo:
    return ObjectInfo(key, len(data), hashlib.sha256(data).hexdigest())
