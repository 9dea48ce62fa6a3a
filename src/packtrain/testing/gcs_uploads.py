"""The parts of unfinished multipart uploads, as GCS keeps them; and how GCS says things in XML. For tests.

Rules: parts of 5 MiB at least but for the last, ETags that are the MD5 of what was sent, an upload that is over once it
is completed or aborted (https://cloud.google.com/storage/docs/multipart-uploads).
"""

from __future__ import annotations

import hashlib
import secrets
import shutil
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import formatdate
from pathlib import Path
from xml.etree import ElementTree
from xml.sax.saxutils import escape

MIN_PART = 5 << 20  # of every part but the last
PAGE = 1000  # entries of a listing, at most
Query = Mapping[str, str]
Content = dict[str, object]


class Refusal(Exception):
    """An answer that says no, in GCS' words."""

    def __init__(self, status: int, code: str, message: str, details: str = "") -> None:
        super().__init__(code)
        self.status = status
        self.body = xml("Error", {"Code": code, "Message": message, **({"Details": details} if details else {})})


@dataclass(order=True)
class Upload:
    """A multipart upload that is neither completed nor aborted. ``parts``: the ETag of each number."""

    bucket: str
    key: str
    id: str
    folder: Path = field(compare=False)
    begun: str = field(default_factory=lambda: datetime.now(UTC).isoformat(), compare=False)
    parts: dict[int, str] = field(default_factory=dict, compare=False)

    @property
    def names(self) -> Content:
        return {"Bucket": self.bucket, "Key": self.key, "UploadId": self.id}


class Uploads:
    """All of them, with their parts as files in a directory. A request says the bucket, the key and the upload's id."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._open: dict[str, Upload] = {}
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[Upload]:
        with self._lock:
            return iter(sorted(self._open.values()))

    def begin(self, bucket: str, key: str) -> Upload:
        name = secrets.token_urlsafe(24)
        upload = Upload(bucket, key, name, self._directory / name)
        upload.folder.mkdir(parents=True)
        with self._lock:
            self._open[name] = upload
        return upload

    def put(self, upload: Upload, number: int, body: bytes) -> str:
        """Returns the ETag."""
        if not 1 <= number <= 10_000:
            raise Refusal(400, "InvalidArgument", "Part number must be an integer between 1 and 10000.")
        tag = f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"'
        with self._lock:
            if upload.id not in self._open:  # it was ended meanwhile
                raise _gone()
            (upload.folder / str(number)).write_bytes(body)
            upload.parts[number] = tag
        return tag

    def find(self, bucket: str, key: str, name: str) -> Upload:
        upload = self._open.get(name)
        if upload is None or (upload.bucket, upload.key) != (bucket, key):
            raise _gone()
        return upload

    def chosen(self, upload: Upload, document: bytes) -> list[Path]:
        """The files of the parts that a request to complete names."""
        wanted = [(int(text(part, "PartNumber")), text(part, "ETag")) for part in children(document, "Part")]
        if not wanted or wanted != sorted(wanted):
            raise Refusal(400, "InvalidPartOrder" if wanted else "MalformedCompleteMultipartUploadRequest", "Parts.")
        if any(upload.parts.get(number, "").strip('"') != tag.strip('"') for number, tag in wanted):
            raise Refusal(400, "InvalidPart", "One or more of the specified parts could not be found.")
        paths = [upload.folder / str(number) for number, _ in wanted]
        if any(path.stat().st_size < MIN_PART for path in paths[:-1]):
            raise Refusal(400, "EntityTooSmall", "A part other than the last one is smaller than the minimum.")
        return paths

    def end(self, upload: Upload) -> None:
        with self._lock:
            if self._open.pop(upload.id, None) is not None:
                shutil.rmtree(upload.folder)

    def page_of_parts(self, upload: Upload, query: Query) -> Content:
        after, most = int(query.get("part-number-marker", 0)), min(PAGE, int(query.get("max-parts", PAGE)))
        with self._lock:
            parts = sorted((number, tag) for number, tag in upload.parts.items() if number > after)
        shown = [(number, tag, (upload.folder / str(number)).stat()) for number, tag in parts[:most]]
        return {
            **upload.names,
            "IsTruncated": _said(len(parts) > most),
            **({"NextPartNumberMarker": shown[-1][0]} if shown else {}),
            "Part": [
                {
                    "PartNumber": number,
                    "LastModified": formatdate(file.st_mtime, usegmt=True),
                    "ETag": tag,
                    "Size": file.st_size,
                }
                for number, tag, file in shown
            ],
        }

    def page(self, bucket: str, query: Query) -> Content:
        prefix = query.get("prefix", "")
        after = (query.get("key-marker", ""), query.get("upload-id-marker", ""))
        found = [
            each
            for each in self
            if each.bucket == bucket and each.key.startswith(prefix) and (each.key, each.id) > after
        ]
        shown = found[:PAGE]
        return {
            "Bucket": bucket,
            "IsTruncated": _said(len(found) > PAGE),
            **({"NextKeyMarker": shown[-1].key, "NextUploadIdMarker": shown[-1].id} if shown else {}),
            "Upload": [{"Key": each.key, "UploadId": each.id, "Initiated": each.begun} for each in shown],
        }


def _gone() -> Refusal:
    return Refusal(404, "NoSuchUpload", "The requested upload was not found.")


def _said(value: bool) -> str:
    return "true" if value else "false"


# XML


def xml(root: str, content: Mapping[str, object]) -> bytes:
    return f"<?xml version='1.0' encoding='UTF-8'?>{_element(root, content)}".encode()


def _element(name: str, content: object) -> str:
    if isinstance(content, list):
        return "".join(_element(name, each) for each in content)
    if isinstance(content, Mapping):
        return f"<{name}>{''.join(_element(inner, each) for inner, each in content.items())}</{name}>"
    return f"<{name}>{escape(str(content))}</{name}>"


def children(document: bytes, name: str) -> Iterator[ElementTree.Element]:
    try:
        root = ElementTree.fromstring(document)  # noqa: S314 - our own client's
    except ElementTree.ParseError:
        raise Refusal(400, "MalformedCompleteMultipartUploadRequest", "The XML could not be parsed.") from None
    return (each for each in root if each.tag.rpartition("}")[2] == name)


def text(element: ElementTree.Element, name: str) -> str:
    return next((each.text or "" for each in element if each.tag.rpartition("}")[2] == name), "")
