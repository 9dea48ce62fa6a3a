"""Objects made of parts on Google Cloud Storage (https://cloud.google.com/storage/docs/multipart-uploads).

GCS knows MD5 and CRC-32C of what it got, not CRC-32. So a part counts as right when the MD5 that GCS says is that of
the bytes as they passed here, whose CRC-32 is the one announced. Of parts that somebody else sent, and of whole
objects, it says nothing that can be compared. It copies no ranges.
"""

from __future__ import annotations

import hashlib
import json
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from types import MappingProxyType
from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from packtrain.errors import IntegrityError, NotFound, PacktrainError, Unavailable, UsageError
from packtrain.model.crc32 import combined
from packtrain.ports import Body, OpenUpload, PartInfo, PartLimits
from packtrain.storage.multipart import PAUSES
from packtrain.storage.wire import Link, Wire

if TYPE_CHECKING:
    from packtrain.storage.objects import Errors

CLASSES = ("STANDARD", "NEARLINE", "COLDLINE", "ARCHIVE")


class GcsMultipart:
    """The `Multipart` of keys under a prefix of a bucket. ``headers`` says who asks, anew for each request;
    ``attributes`` are headers that new objects are made with."""

    limits = PartLimits(smallest=5 << 20, largest=5 << 30, most=10_000)

    def __init__(
        self,
        endpoint: str,
        bucket: str,
        prefix: str,
        headers: Callable[[], dict[str, str]],
        wire: Wire,
        errors: Errors,
        attributes: Mapping[str, str],
    ) -> None:
        self._attributes = attributes
        self._endpoint = endpoint
        self._bucket = bucket
        self._root = f"{endpoint}/{bucket}"
        self._prefix = f"{prefix}/" if prefix else ""
        self._headers = headers
        self._wire = wire
        self._errors = errors

    def warm(self) -> None:
        """Nothing waits."""

    def put(self, key: str, body: Body, size: int, crc32: int) -> None:
        self._put(key, {}, body, size, crc32, self._attributes)

    def crc32(self, key: str) -> None:
        """Raises NotFound."""
        self._ask("HEAD", key, {})

    def reclass(self, key: str, size: int, storage_class: str) -> None:  # noqa: ARG002
        """By the JSON API's rewrite onto itself, which says how often it wants to be asked for a large object."""
        require_class(storage_class)
        name = f"b/{self._bucket}/o/{quote(self._prefix + key, safe='')}"
        headers = {"Content-Type": "application/json"}
        body = json.dumps({"storageClass": storage_class}).encode()
        token = ""
        while True:
            query = f"?{urlencode({'rewriteToken': token})}" if token else ""
            link = Link(f"{self._endpoint}/storage/v1/{name}/rewriteTo/{name}{query}", {**self._headers(), **headers})
            with self._errors(key):
                answer = json.loads(self._wire.call("POST", link, body))
            if answer["done"]:
                return
            token = answer["rewriteToken"]

    def begin(self, key: str) -> OpenUpload:
        return OpenUpload(key, _text(self._ask("POST", key, {"uploads": ""}, headers=self._attributes), "UploadId"))

    def open_uploads(self, prefix: str) -> Iterator[OpenUpload]:
        following: Mapping[str, str] | None = {}
        while following is not None:
            page = self._ask("GET", "", {"uploads": "", "prefix": f"{self._prefix}{prefix}", **following})
            for each in _all(page, "Upload"):
                begun = datetime.fromisoformat(_text(each, "Initiated"))
                yield OpenUpload(_text(each, "Key").removeprefix(self._prefix), _text(each, "UploadId"), begun)
            following = None
            if _text(page, "IsTruncated") == "true":
                following = {
                    "key-marker": _text(page, "NextKeyMarker"),
                    "upload-id-marker": _text(page, "NextUploadIdMarker"),
                }

    def parts(self, upload: OpenUpload) -> list[PartInfo]:
        found: list[PartInfo] = []
        following: Mapping[str, str] | None = {}
        while following is not None:
            page = self._ask("GET", upload.key, {"uploadId": upload.id, **following})
            found += [
                PartInfo(int(_text(part, "PartNumber")), int(_text(part, "Size")), _text(part, "ETag"))
                for part in _all(page, "Part")
            ]
            truncated = _text(page, "IsTruncated") == "true"
            following = {"part-number-marker": _text(page, "NextPartNumberMarker")} if truncated else None
        return sorted(found, key=lambda part: part.number)

    def send(self, upload: OpenUpload, number: int, body: Body, size: int, crc32: int) -> PartInfo:
        tag = self._put(upload.key, {"partNumber": str(number), "uploadId": upload.id}, body, size, crc32, {})
        return PartInfo(number, size, tag, crc32)

    def copy(self, upload: OpenUpload, number: int, url: str, start: int, length: int) -> None:
        """GCS copies whole objects only."""

    def complete(self, upload: OpenUpload, parts: Sequence[PartInfo], crc32: int) -> None:
        known = [(part.crc32, part.size) for part in parts if part.crc32 is not None]
        if len(known) == len(parts) and combined(known) != crc32:
            raise self._mismatch(upload.key)
        listed = "".join(
            f"<Part><PartNumber>{part.number}</PartNumber><ETag>{escape(part.tag)}</ETag></Part>" for part in parts
        )
        document = f"<CompleteMultipartUpload>{listed}</CompleteMultipartUpload>"
        self._ask("POST", upload.key, {"uploadId": upload.id}, document.encode())

    def abort(self, upload: OpenUpload) -> None:
        with suppress(NotFound):
            self._ask("DELETE", upload.key, {"uploadId": upload.id})

    def _ask(
        self,
        method: str,
        key: str,
        query: Mapping[str, str],
        body: bytes = b"",
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> ElementTree.Element | None:
        """What the server says. After what may pass it is asked again."""
        for pause in (*PAUSES, None):
            try:
                with self._errors(key):
                    answer = self._wire.call(method, self._link(key, query, headers), body)
                return ElementTree.fromstring(answer) if answer else None  # noqa: S314 - over TLS, of our own server
            except Unavailable as error:
                if pause is None:
                    raise
                time.sleep(max(pause, error.retry_after or 0.0))
        raise AssertionError

    def _put(
        self, key: str, query: Mapping[str, str], body: Body, size: int, crc32: int, headers: Mapping[str, str]
    ) -> str:
        """The ETag of what is held. After what may pass the body is sent again, from its first byte."""
        for pause in (*PAUSES, None):
            passing = _Passing(body(), size, crc32)
            try:
                with self._errors(key):
                    answer = self._wire.write(self._link(key, query, headers), passing, size)
            except PacktrainError as error:
                if passing.error is not None:
                    raise passing.error from None
                if pause is None or not isinstance(error, Unavailable):
                    raise
                time.sleep(max(pause, error.retry_after or 0.0))
            except _Mismatch:
                raise self._mismatch(key) from None
            else:
                if answer["etag"].strip('"') != passing.md5.hexdigest():
                    raise self._mismatch(key)
                return answer["etag"]
        raise AssertionError

    def _link(self, key: str, query: Mapping[str, str], headers: Mapping[str, str]) -> Link:
        """Of the bucket itself for an empty key with a query for its uploads."""
        path = quote(f"/{self._prefix}{key}", safe="/~") if key else ""
        return Link(f"{self._root}{path}" + (f"?{urlencode(query)}" if query else ""), {**self._headers(), **headers})

    def _mismatch(self, key: str) -> IntegrityError:
        return IntegrityError(
            f"{self._root}/{self._prefix}{key}: what arrived there is not what was hashed",
            hint="Something on the way changes bytes, or the file is still being written. Run the command again.",
        )


def require_class(storage_class: str) -> None:
    """Raises UsageError for a class that GCS does not have."""
    if storage_class not in CLASSES:
        raise UsageError(
            f"GCS has no storage class {storage_class!r}", hint=f"It has {', '.join(CLASSES)}: choose one of them."
        )


class _Mismatch(Exception):
    """The bytes are not those that were announced; the last of them were not sent."""


class _Passing:
    """A body on its way: what its bytes are, and what taking a piece of it raised."""

    def __init__(self, body: Iterable[bytes | memoryview], size: int, crc32: int) -> None:
        self._body = body
        self._size = size
        self._announced = crc32
        self.md5 = hashlib.md5(usedforsecurity=False)
        self.error: Exception | None = None

    def __iter__(self) -> Iterator[bytes | memoryview]:
        passed = crc32 = 0
        pieces = iter(self._body)
        while (piece := self._next(pieces)) is not None:
            passed, crc32 = passed + len(piece), zlib.crc32(piece, crc32)
            self.md5.update(piece)
            if passed == self._size and crc32 != self._announced:
                raise _Mismatch
            yield piece

    def _next(self, pieces: Iterator[bytes | memoryview]) -> bytes | memoryview | None:
        try:
            return next(pieces, None)
        except Exception as error:
            self.error = error
            raise


def _all(element: ElementTree.Element | None, name: str) -> list[ElementTree.Element]:
    """Its children of a name, in whatever namespace."""
    return [each for each in ([] if element is None else element) if each.tag.rpartition("}")[2] == name]


def _text(element: ElementTree.Element | None, name: str) -> str:
    return next((each.text or "" for each in _all(element, name)), "")
