"""Objects made of parts on an S3 server.

botocore speaks S3's calls; the bytes of parts go over the wire's own connections, straight from the caller's buffer.
Each request is signed when it begins, so neither a URL nor the session token behind it is ever used when it is old.

The checksum is CRC-32: Python has it, S3 combines those of parts into that of the object, and every server that knows
checksums knows it. Servers that know none leave it out of their answers; then `PartInfo.crc32` is None.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from packtrain.errors import IntegrityError, NotFound, PacktrainError, Refused, Unavailable, UsageError
from packtrain.ports import Body, OpenUpload, PartInfo, PartLimits
from packtrain.storage.boto import Boto, translated
from packtrain.storage.wire import Rejected, Wire

if TYPE_CHECKING:
    from packtrain.storage.objects import Errors

PAUSES = (0.0, 0.1, 0.4, 1.6, 5.0)  # seconds before a body is sent again
COPY = 5 * 10**9  # bytes that S3 copies in one call, at most
STEP = 1 << 30  # and of a part of what is larger
_MISMATCHES = ("BadDigest", "XAmzContentChecksumMismatch")
_NOT_COPIED = ("NotImplemented", "MethodNotAllowed", "InvalidRequest", "InvalidArgument", "InvalidObjectState")
_HEADERS = {  # of CreateMultipartUpload's attributes, for PutObject
    "ServerSideEncryption": "x-amz-server-side-encryption",
    "SSEKMSKeyId": "x-amz-server-side-encryption-aws-kms-key-id",
    "BucketKeyEnabled": "x-amz-server-side-encryption-bucket-key-enabled",
    "StorageClass": "x-amz-storage-class",
}


class S3Multipart:
    """The `Multipart` of keys under a prefix. ``attributes``: what new objects are given (encryption and the like)."""

    limits = PartLimits(smallest=5 << 20, largest=5 << 30, most=10_000)

    def __init__(
        self, boto: Boto, wire: Wire, prefix: str, attributes: Mapping[str, str | bool], errors: Errors
    ) -> None:
        self._boto = boto
        self._wire = wire
        self._prefix = f"{prefix}/" if prefix else ""
        self._attributes = attributes
        self._explained = errors
        self._composite: set[str] = set()  # uploads whose object has a checksum of its parts' checksums

    def warm(self) -> None:
        self._boto.warm()

    def put(self, key: str, body: Body, size: int, crc32: int) -> None:
        self._put(
            key, {}, body, size, crc32, {_HEADERS[name]: _text(value) for name, value in self._attributes.items()}
        )

    def crc32(self, key: str) -> int | None:
        with self._errors(key):
            answer = self._boto.s3.head_object(**self._object(key), ChecksumMode="ENABLED")
        return None if answer.get("ChecksumType") == "COMPOSITE" else _decoded(answer.get("ChecksumCRC32"))

    def reclass(self, key: str, size: int, storage_class: str) -> None:
        if size > COPY:
            self._reclass_by_parts(key, size, storage_class)
            return
        attributes = {**self._attributes, "StorageClass": storage_class}
        with self._errors(key), self._class_errors(storage_class):
            self._boto.s3.copy_object(
                **self._object(key),
                CopySource=self._object(key),
                MetadataDirective="REPLACE",  # SeaweedFS takes a copy onto itself for a mistake without it
                **attributes,
            )

    def _reclass_by_parts(self, key: str, size: int, storage_class: str) -> None:
        upload = self._begin(key, {**self._attributes, "StorageClass": storage_class})
        url = f"s3://{self._boto.bucket}/{self._prefix}{key}"
        try:
            parts = [
                self.copy(upload, number, url, start, min(STEP, size - start))
                for number, start in enumerate(range(0, size, STEP), start=1)
            ]
            if not all(parts):
                raise Refused(f"{url}: the server does not copy ranges", hint="Objects of more than 5 GB need that.")  # noqa: TRY301
            with self._errors(key):
                listed = [{"PartNumber": part.number, "ETag": part.tag} for part in parts if part]
                self._boto.s3.complete_multipart_upload(**self._upload(upload), MultipartUpload={"Parts": listed})
        except BaseException:
            self.abort(upload)
            raise

    def begin(self, key: str) -> OpenUpload:
        return self._begin(key, self._attributes)

    def _begin(self, key: str, attributes: Mapping[str, str | bool]) -> OpenUpload:
        wanted = {"ChecksumAlgorithm": "CRC32", "ChecksumType": "FULL_OBJECT"}
        with self._errors(key), self._class_errors(str(attributes.get("StorageClass", ""))):
            answer = self._boto.s3.create_multipart_upload(**self._object(key), **wanted, **attributes)
        self._note_type(answer["UploadId"], answer)
        return OpenUpload(key, answer["UploadId"])

    def open_uploads(self, prefix: str) -> Iterator[OpenUpload]:
        following: Mapping[str, str] | None = {}
        while following is not None:
            with self._errors(prefix):
                asked = {"Bucket": self._boto.bucket, "Prefix": f"{self._prefix}{prefix}", **following}
                page = self._boto.s3.list_multipart_uploads(**asked)
            found = page.get("Uploads", [])
            for each in found:
                yield OpenUpload(each["Key"].removeprefix(self._prefix), each["UploadId"], each.get("Initiated"))
            following = None
            if page.get("IsTruncated") and found:
                last = found[-1]
                following = {
                    "KeyMarker": page.get("NextKeyMarker") or last["Key"],
                    "UploadIdMarker": page.get("NextUploadIdMarker") or last["UploadId"],
                }

    def parts(self, upload: OpenUpload) -> list[PartInfo]:
        found: dict[int, set[PartInfo]] = {}
        following: Mapping[str, int] | None = {}
        while following is not None:
            with self._errors(upload.key):
                page = self._boto.s3.list_parts(**self._upload(upload), **following)
            for part in page.get("Parts", []):
                info = PartInfo(part["PartNumber"], part["Size"], part["ETag"], _decoded(part.get("ChecksumCRC32")))
                found.setdefault(info.number, set()).add(info)
            following = {"PartNumberMarker": page["NextPartNumberMarker"]} if page.get("IsTruncated") else None
        self._note_type(upload.id, page)
        # SeaweedFS goes on listing what was sent under a number before; which of several counts it does not say
        return [info for _, (info, *others) in sorted(found.items()) if not others]

    def send(self, upload: OpenUpload, number: int, body: Body, size: int, crc32: int) -> PartInfo:
        query = {"partNumber": str(number), "uploadId": upload.id}
        answer = self._put(upload.key, query, body, size, crc32, {})
        return PartInfo(number, size, answer["etag"], _decoded(answer.get("x-amz-checksum-crc32")))

    def copy(self, upload: OpenUpload, number: int, url: str, start: int, length: int) -> PartInfo | None:
        bucket = f"s3://{self._boto.bucket}/"
        if not url.startswith(bucket):
            return None
        source = {"Bucket": self._boto.bucket, "Key": url.removeprefix(bucket)}
        asked = {"PartNumber": number, "CopySource": source, "CopySourceRange": f"bytes={start}-{start + length - 1}"}
        with self._errors(upload.key):
            try:
                answer = self._boto.s3.upload_part_copy(**self._upload(upload), **asked)["CopyPartResult"]
            except Exception as error:
                if getattr(error, "response", {}).get("Error", {}).get("Code") in _NOT_COPIED:
                    return None
                raise
        return PartInfo(number, length, answer["ETag"], _decoded(answer.get("ChecksumCRC32")))

    def complete(self, upload: OpenUpload, parts: Sequence[PartInfo], crc32: int) -> None:
        listed: list[dict[str, Any]] = [
            {"PartNumber": part.number, "ETag": part.tag}
            | ({"ChecksumCRC32": _encoded(part.crc32)} if part.crc32 is not None else {})
            for part in parts
        ]
        whole = {} if upload.id in self._composite else {"ChecksumCRC32": _encoded(crc32)}
        with self._errors(upload.key):
            self._boto.s3.complete_multipart_upload(**self._upload(upload), MultipartUpload={"Parts": listed}, **whole)

    def abort(self, upload: OpenUpload) -> None:
        with suppress(NotFound), self._errors(upload.key):
            self._boto.s3.abort_multipart_upload(**self._upload(upload))

    def _object(self, key: str) -> dict[str, str]:
        return {"Bucket": self._boto.bucket, "Key": f"{self._prefix}{key}"}

    def _upload(self, upload: OpenUpload) -> dict[str, str]:
        return {**self._object(upload.key), "UploadId": upload.id}

    def _note_type(self, upload_id: str, answer: Mapping[str, Any]) -> None:
        if answer.get("ChecksumType") == "COMPOSITE":
            self._composite.add(upload_id)

    def _put(
        self, key: str, query: Mapping[str, str], body: Body, size: int, crc32: int, headers: Mapping[str, str]
    ) -> Mapping[str, str]:
        """The headers of the answer. After what may pass the body is sent again, from its first byte."""
        headers = {**headers, "x-amz-checksum-crc32": _encoded(crc32)}
        for pause in (*PAUSES, None):
            pieces = _Pieces(body())
            try:
                with self._errors(key):
                    link = self._boto.link(f"{self._prefix}{key}", query, headers)
                    return self._wire.write(link, pieces, size)
            except PacktrainError as error:
                if pieces.error is not None:
                    raise pieces.error from None
                if pause is None or not isinstance(error, Unavailable):
                    raise
                time.sleep(max(pause, error.retry_after or 0.0))
        raise AssertionError

    @contextmanager
    def _class_errors(self, storage_class: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if getattr(error, "response", {}).get("Error", {}).get("Code") == "InvalidStorageClass":
                raise UsageError(
                    f"s3://{self._boto.bucket} has no storage class {storage_class!r}",
                    hint="For AWS: STANDARD_IA, INTELLIGENT_TIERING, GLACIER_IR, GLACIER, DEEP_ARCHIVE and others.",
                ) from error
            raise

    @contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        """Turns what botocore and the wire raise into our errors; what a body raises may be among it."""
        place = f"s3://{self._boto.bucket}/{self._prefix}{key}"
        with self._explained(key):
            try:
                yield
            except Exception as raised:
                error = translated(raised, place)
                if isinstance(error, Rejected) and any(f"<Code>{code}</Code>" in str(error) for code in _MISMATCHES):
                    raise IntegrityError(
                        f"{place}: what arrived there is not what was hashed",
                        hint="Something on the way changes bytes, or the file is still being written. "
                        "Run the command again.",
                    ) from raised
                if error is raised:
                    raise
                raise error from raised


class _Pieces:
    """A body, and what taking a piece of it raised."""

    def __init__(self, body: Iterable[bytes | memoryview]) -> None:
        self._body = body
        self.error: Exception | None = None

    def __iter__(self) -> Iterator[bytes | memoryview]:
        try:
            yield from self._body
        except Exception as error:
            self.error = error
            raise


def _text(value: str | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else value


def _encoded(crc32: int) -> str:
    return base64.b64encode(crc32.to_bytes(4, "big")).decode()


def _decoded(text: str | None) -> int | None:
    """None for what is not the checksum of bytes: nothing, or one of checksums (``…-3``)."""
    return int.from_bytes(base64.b64decode(text), "big") if text and "-" not in text else None
