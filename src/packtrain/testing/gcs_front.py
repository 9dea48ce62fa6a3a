"""GCS's XML API in front of an emulator that speaks its JSON API, for tests.

obstore speaks the XML API (https://cloud.google.com/storage/docs/xml-api/overview); fake-gcs-server reads it, but does
not write it. The front turns each XML call into the JSON call of the same meaning, so what is stored, listed, copied
and refused, preconditions included, is the emulator's doing. Only the parts of unfinished multipart uploads are kept
here (packtrain.testing.gcs_uploads).

Whoever asks must be known to the `Doorkeeper` (packtrain.testing.google).
"""

from __future__ import annotations

import json
import secrets
import socketserver
import sys
from base64 import b64decode
from collections.abc import Iterator, Mapping
from http.client import HTTPConnection, HTTPResponse
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

from packtrain.testing.gcs_uploads import PAGE, Refusal, Upload, Uploads, xml
from packtrain.testing.google import READ, WRITE, Doorkeeper, Stranger

_BUFFER = 256 << 10
_PASSED = ("Content-Range", "Content-Type", "Last-Modified", "x-goog-generation", "x-goog-hash")


class Front(socketserver.ThreadingTCPServer):
    """On a free port of this machine; ``directory`` is for the parts of uploads."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, emulator: str, directory: Path, doorkeeper: Doorkeeper) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.emulator = urlsplit(emulator).netloc
        self.doorkeeper = doorkeeper
        self.uploads = Uploads(directory)
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client that went away is what some tests are about
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Front

    def setup(self) -> None:
        super().setup()
        self.emulator = HTTPConnection(self.server.emulator, timeout=60)

    def finish(self) -> None:
        self.emulator.close()
        super().finish()

    def log_message(self, *_: object) -> None:
        """Nobody reads it."""

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length)
        if len(self.body) < length:
            raise ConnectionError("the client went away in the middle of its request")
        url = urlsplit(self.path)
        self.query = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
        bucket, _, key = url.path.lstrip("/").partition("/")
        self.bucket, self.key = unquote(bucket), unquote(key)
        try:
            if (
                said := self.server.doorkeeper.service(self.command, self.path, dict(self.headers), self.body)
            ) is not None:
                self._send(said.status, said.body, {"Content-Type": "application/json", **said.headers})
                return
            self._admit()
            self._act()
        except Refusal as refusal:
            self._send(refusal.status, refusal.body, {"Content-Type": "application/xml; charset=UTF-8"})

    def _admit(self) -> None:
        needed = READ if self.command in ("GET", "HEAD") else WRITE
        try:
            caller = self.server.doorkeeper.caller(self.command, self.path, dict(self.headers))
        except Stranger as error:
            raise Refusal(error.status, error.code, str(error)) from error
        if needed not in caller.may:
            verb = {"GET": "get" if self.key else "list", "HEAD": "get", "DELETE": "delete"}.get(self.command, "create")
            kind = "object" if self.key else "bucket"
            raise Refusal(
                403,
                "AccessDenied",
                "Access denied.",
                f"{caller.email} does not have storage.objects.{verb} access to the Google Cloud Storage {kind}. "
                f"Permission 'storage.objects.{verb}' denied on resource (or it may not exist).",
            )

    def _act(self) -> None:
        if self.path.startswith("/storage/v1/"):
            self._pass_on()
            return
        match self.command, self.query:
            case "GET", _ if not self.key:
                self._list_uploads() if "uploads" in self.query else self._list()
            case "POST", {"uploads": _}:
                self._initiate()
            case "POST", {"uploadId": _}:
                self._complete()
            case "PUT", {"uploadId": _, "partNumber": _}:
                self._put_part()
            case "GET", {"uploadId": _}:
                self._list_parts()
            case "DELETE", {"uploadId": _}:
                self._abort()
            case "PUT", _ if "x-goog-copy-source" in self.headers:
                self._copy()
            case "PUT", _:
                self._put(iter([self.body]), len(self.body))
                self._send(200, b"", self._written)
            case (("GET" | "HEAD"), _):
                self._get()
            case "DELETE", _:
                self._ask("DELETE", self._object())
                self._send(204)
            case _:
                raise Refusal(405, "MethodNotAllowed", "The specified method is not allowed.")

    # Objects

    def _object(self, key: str = "", bucket: str = "") -> str:
        return f"/storage/v1/b/{quote(bucket or self.bucket, safe='')}/o/{quote(key or self.key, safe='')}"

    def _put(self, pieces: Iterator[bytes], size: int) -> None:
        """By a multipart/related upload: the one that the emulator checks preconditions for."""
        boundary = secrets.token_hex(16)
        content_type = self.headers.get("Content-Type", "application/octet-stream")
        about = json.dumps({"name": self.key, "contentType": content_type})
        head = f"--{boundary}\r\nContent-Type: application/json\r\n\r\n{about}\r\n--{boundary}\r\n".encode()
        head += b"Content-Type: application/octet-stream\r\n\r\n"
        tail = f"\r\n--{boundary}--\r\n".encode()
        query = {"uploadType": "multipart"}
        if (generation := self.headers.get("x-goog-if-generation-match")) is not None:
            query["ifGenerationMatch"] = generation

        def body() -> Iterator[bytes]:
            yield head
            yield from pieces
            yield tail

        answer = self._ask(
            "POST",
            f"/upload/storage/v1/b/{quote(self.bucket, safe='')}/o?{urlencode(query)}",
            body(),
            {
                "Content-Type": f"multipart/related; boundary={boundary}",
                "Content-Length": str(len(head) + size + len(tail)),
            },
        )
        self._written = _headers(json.loads(answer))

    def _get(self) -> None:
        """Passed through as it comes, in pieces."""
        headers = {"Range": span} if (span := self.headers.get("Range")) else {}
        answer = self._send_on(self.command, f"{self._object()}?alt=media", None, headers)
        if answer.status not in (200, 206):
            answer.read()
            if answer.status == 416:
                raise Refusal(416, "InvalidRange", "The requested range cannot be satisfied.")
            self._refuse(answer.status, b"")
        passed = {name: value for name in _PASSED if (value := answer.getheader(name))}
        tag = answer.getheader("ETag", "").strip('"')
        self._send_head(
            answer.status, {**passed, "ETag": _tag(tag), "Content-Length": answer.getheader("Content-Length", "0")}
        )
        while piece := answer.read(_BUFFER):
            self.wfile.write(piece)

    def _copy(self) -> None:
        bucket, _, key = unquote(self.headers["x-goog-copy-source"]).lstrip("/").partition("/")
        token = ""
        while True:
            query = urlencode({"rewriteToken": token}) if token else ""
            path = f"{self._object(key, bucket)}/rewriteTo{self._object().removeprefix('/storage/v1')}"
            answer = json.loads(self._ask("POST", f"{path}?{query}", iter([b""]), {"Content-Length": "0"}))
            token = answer.get("rewriteToken", "")
            if answer["done"]:
                break
        about = answer["resource"]
        self._send_xml(
            "CopyObjectResult", {"LastModified": about["updated"], "ETag": _tag(about["etag"])}, _headers(about)
        )

    def _pass_on(self) -> None:
        """A call of the JSON API, which the emulator speaks itself."""
        headers = {"Content-Type": "application/json", "Content-Length": str(len(self.body))}
        answer = self._send_on(self.command, self.path, iter([self.body]), headers)
        self._send(answer.status, answer.read(), {"Content-Type": "application/json"})

    # Listings

    def _list(self) -> None:
        query = {"maxResults": str(min(PAGE, int(self.query.get("max-keys", PAGE))))}
        for ours, theirs in (("prefix", "prefix"), ("delimiter", "delimiter"), ("continuation-token", "pageToken")):
            if value := self.query.get(ours):
                query[theirs] = value
        page = json.loads(self._ask("GET", f"/storage/v1/b/{quote(self.bucket, safe='')}/o?{urlencode(query)}"))
        after = self.query.get("start-after", "")
        contents: list[object] = [
            {
                "Key": each["name"],
                "Generation": each["generation"],
                "MetaGeneration": each["metageneration"],
                "LastModified": each["updated"],
                "ETag": _tag(each["etag"]),
                "Size": each["size"],
            }
            for each in page.get("items") or []
            if each["name"] > after
        ]
        following = page.get("nextPageToken")
        self._send_xml(
            "ListBucketResult",
            {
                "Name": self.bucket,
                "Prefix": self.query.get("prefix", ""),
                "IsTruncated": "true" if following else "false",
                **({"NextContinuationToken": following} if following else {}),
                "Contents": contents,
                "CommonPrefixes": [{"Prefix": prefix} for prefix in page.get("prefixes") or []],
            },
        )

    # Multipart uploads

    @property
    def _upload(self) -> Upload:
        return self.server.uploads.find(self.bucket, self.key, self.query["uploadId"])

    def _initiate(self) -> None:
        self._require_bucket()
        self._send_xml("InitiateMultipartUploadResult", self.server.uploads.begin(self.bucket, self.key).names)

    def _put_part(self) -> None:
        tag = self.server.uploads.put(self._upload, int(self.query["partNumber"]), self.body)
        self._send(200, b"", {"ETag": tag})

    def _list_parts(self) -> None:
        self._send_xml("ListPartsResult", self.server.uploads.page_of_parts(self._upload, self.query))

    def _complete(self) -> None:
        upload = self._upload
        paths = self.server.uploads.chosen(upload, self.body)
        self._put(_bytes(paths), sum(path.stat().st_size for path in paths))
        self.server.uploads.end(upload)
        self._send_xml(
            "CompleteMultipartUploadResult",
            {"Bucket": self.bucket, "Key": self.key, "ETag": self._written["ETag"]},
            {"x-goog-generation": self._written["x-goog-generation"]},
        )

    def _abort(self) -> None:
        self.server.uploads.end(self._upload)
        self._send(204)

    def _list_uploads(self) -> None:
        self._require_bucket()
        self._send_xml("ListMultipartUploadsResult", self.server.uploads.page(self.bucket, self.query))

    # To the emulator, and back

    def _send_on(
        self, method: str, path: str, body: Iterator[bytes] | None, headers: Mapping[str, str]
    ) -> HTTPResponse:
        self.emulator.request(method, path, body, dict(headers))
        return self.emulator.getresponse()

    def _ask(
        self, method: str, path: str, body: Iterator[bytes] | None = None, headers: Mapping[str, str] | None = None
    ) -> bytes:
        answer = self._send_on(method, path, body, headers or {})
        content = answer.read()
        if answer.status >= 300:
            self._refuse(answer.status, content)
        return content

    def _refuse(self, status: int, content: bytes) -> None:
        if status == 404:
            self._require_bucket()
            raise Refusal(
                404, "NoSuchKey", "The specified key does not exist.", f"No such object: {self.bucket}/{self.key}"
            )
        if status == 412:
            raise Refusal(412, "PreconditionFailed", "At least one of the pre-conditions you specified did not hold.")
        raise Refusal(status, "EmulatorSays", content.decode(errors="replace"))

    def _require_bucket(self) -> None:
        answer = self._send_on("GET", f"/storage/v1/b/{quote(self.bucket, safe='')}", None, {})
        answer.read()
        if answer.status == 404:
            raise Refusal(404, "NoSuchBucket", "The specified bucket does not exist.")

    def _send_xml(self, root: str, content: Mapping[str, object], headers: Mapping[str, str] | None = None) -> None:
        self._send(200, xml(root, content), {"Content-Type": "application/xml; charset=UTF-8", **(headers or {})})

    def _send(self, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
        self._send_head(status, {**(headers or {}), "Content-Length": str(len(body))})
        if self.command != "HEAD":
            self.wfile.write(body)

    def _send_head(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


def _headers(about: Mapping[str, Any]) -> dict[str, str]:
    """What GCS says of an object that was just written."""
    return {
        "ETag": _tag(about["etag"]),
        "x-goog-generation": about["generation"],
        "x-goog-metageneration": about["metageneration"],
        "x-goog-hash": f"crc32c={about['crc32c']},md5={about['md5Hash']}",
        "x-goog-stored-content-length": about["size"],
    }


def _tag(tag: str) -> str:
    """The emulator's is the MD5 in base64; the XML API shows it in hexadecimal."""
    return f'"{b64decode(tag).hex()}"'


def _bytes(paths: list[Path]) -> Iterator[bytes]:
    for path in paths:
        with path.open("rb") as file:
            while piece := file.read(_BUFFER):
                yield piece
