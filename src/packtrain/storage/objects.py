"""A store in a bucket, over obstore.

obstore streams, signs, retries and sends conditional puts. What is added here is what its callers must be able to
rely on: a creation that is never repeated blindly, the exception of a body as it was raised, and errors that say what
to check. Every request fails when the server is silent for ``stall`` seconds.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from http.client import HTTPException
from socket import gaierror
from typing import TYPE_CHECKING, TypeVar

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import S3Store

from packtrain.errors import AlreadyExists, NotFound, PacktrainError, Refused, Unavailable, UsageError
from packtrain.ports import ObjectInfo
from packtrain.storage.aws import s3_config
from packtrain.storage.threads import hand_over, interruptible
from packtrain.storage.wire import Rejected, Wire

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore.store import ClientConfig, RetryConfig

T = TypeVar("T")

MIB = 1 << 20
PART = 8 * MIB  # an object up to this size is one request
MAX_PARTS = 10_000  # S3's limit for one object
PARTS_AT_ONCE = 4  # with PART: the memory an upload takes
PIECE = 128 << 10  # bytes that `read` gives at once, at least
COPY = 5 * 10**9  # bytes that S3 copies in one call, at most

STALL = 30.0  # seconds without a byte after which a request has failed; for twice that long it is repeated
_SIGNED_FOR = timedelta(hours=1)  # of a URL: for one request, which begins at once
SENDING = 4  # an answer comes only after a part was sent, so a sender waits this many times longer

# A creation may be repeated only after a failure that says that it was not done.
_NOT_DONE = ("ConditionalRequestConflict", "<Code>SlowDown</Code>", "kind: Connect")
PAUSES = (0.1, 0.4, 1.6)  # seconds before each repetition of a creation or of what is left of a read


class ObjectStore:
    """A `Store` under a prefix of a bucket. `open_s3` makes it.

    ``reader`` and ``writer`` repeat what fails; ``creator`` does not: a put-if-absent whose answer was lost, sent
    again, would be told that somebody else was first. ``copier`` is on the whole bucket.
    """

    def __init__(
        self,
        url: str,
        endpoint: str,
        *,
        reader: S3Store,
        writer: S3Store,
        creator: S3Store,
        copier: S3Store,
        wire: Wire,
        signs: bool,
    ) -> None:
        self._url = url
        self._endpoint = endpoint
        self._wire = wire
        self._signs = signs
        self._reader = reader
        self._writer = writer
        self._creator = creator
        self._copier = copier

    @property
    def url(self) -> str:
        return self._url

    @property
    def directory(self) -> None:
        return None

    def get(self, key: str) -> bytes:
        return self._ask(key, lambda: bytes(obstore.get(self._reader, key).bytes()))

    def read(self, key: str, start: int, length: int, buffer: memoryview) -> Iterator[memoryview]:
        if length == 0:
            if self.head(key) is None:
                raise self._not_found(key)
            return
        pauses = iter(PAUSES)
        while length:
            try:
                for piece in self._piecewise(key, start, length, buffer):
                    start, length = start + len(piece), length - len(piece)
                    yield piece
            except Unavailable as error:
                pause = next(pauses, None)
                if pause is None or error.busy or not _may_pass(error):
                    raise
                time.sleep(pause)

    def _piecewise(self, key: str, start: int, length: int, buffer: memoryview) -> Iterator[memoryview]:
        """One request."""
        pieces = self._pieces(key, start, length, buffer)
        left = length
        while (piece := self._ask(key, lambda: next(pieces, None))) is not None:
            left -= len(piece)
            yield piece
        if left:
            raise Unavailable(
                f"{self.locate(key)} gave {length - left} of {length} bytes from {start}",
                hint="Try again. If it stays, something other than Packtrain changed it: `packtrain verify --bytes` "
                "finds the damage.",
            )

    def _pieces(self, key: str, start: int, length: int, buffer: memoryview) -> Iterator[memoryview]:
        """Signed anew for each request, so neither a URL nor the session token behind it is ever used when old.
        What cannot be signed (a public bucket, read without credentials) goes the slower way."""
        if self._signs:
            url = self._ask(key, lambda: obstore.sign(self._reader, "GET", key, expires_in=_SIGNED_FOR))
            return self._wire.read(url, start, length, buffer)
        answer = self._ask(key, lambda: obstore.get(self._reader, key, options={"range": (start, start + length)}))
        return map(memoryview, answer.stream(min_chunk_size=PIECE))

    def create(self, key: str, data: bytes) -> None:
        for pause in (*PAUSES, None):
            try:
                self._ask(key, lambda: obstore.put(self._creator, key, data, mode="create", use_multipart=False))
                return
            except PacktrainError as error:
                if pause is None or not any(sign in str(error.__cause__) for sign in _NOT_DONE):
                    raise
                time.sleep(pause)

    def upload(self, key: str, body: Iterable[bytes], size: int) -> None:
        pieces = _exactly(key, body, size)
        if size <= PART:
            data = b"".join(pieces)
            self._ask(key, lambda: obstore.put(self._writer, key, data, use_multipart=False))
            return
        part = max(PART, -(-size // MAX_PARTS))

        def send(handed: Iterator[bytes]) -> None:
            with self._errors(key):
                obstore.put(self._writer, key, handed, chunk_size=part, max_concurrency=PARTS_AT_ONCE)

        hand_over(pieces, send)

    def copy_from(self, url: str, key: str, size: int, advance: Callable[[int], None]) -> bool:
        """By CopyObject, within the bucket. An object that is too large for that is the caller's to stream."""
        bucket = "/".join(self._url.split("/")[:3]) + "/"
        if not url.startswith(bucket) or size > COPY:
            return False
        source, target = (place.removeprefix(bucket) for place in (url, self.locate(key)))
        try:
            self._ask(key, lambda: obstore.copy(self._copier, source, target))
        except NotFound:
            raise NotFound(f"there is no {url}") from None
        advance(size)
        return True

    def delete(self, key: str) -> None:
        with suppress(NotFound):
            self._ask(key, lambda: obstore.delete(self._writer, key))

    def head(self, key: str) -> ObjectInfo | None:
        try:
            return _info(self._ask(key, lambda: obstore.head(self._reader, key)), key)
        except NotFound:
            return None

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        pages = obstore.list(self._reader, prefix)
        while (page := self._ask(prefix, lambda: next(pages, None))) is not None:
            for entry in page:
                yield _info(entry, entry["path"])

    def children(self, prefix: str) -> Iterator[str]:
        found = self._ask(prefix, lambda: obstore.list_with_delimiter(self._reader, prefix))
        for folder in found["common_prefixes"]:
            yield folder.rpartition("/")[2]

    def locate(self, key: str) -> str:
        return f"{self._url}/{key}".rstrip("/")

    def _not_found(self, key: str) -> NotFound:
        return NotFound(f"there is no {self.locate(key)}")

    def _ask(self, key: str, call: Callable[[], T]) -> T:
        with self._errors(key):
            return interruptible(call)

    @contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        """Turns obstore's errors, which include FileNotFoundError, into ours."""
        try:
            yield
        except (BaseError, OSError, HTTPException, Rejected) as error:
            raise self._explain(error, key) from error

    def _explain(self, error: Exception, key: str) -> PacktrainError:
        """Our error for one of obstore's, whose text carries the server's answer and the kind of a failure."""
        text = str(error)
        place = self.locate(key)
        status = _first(r"non-2xx status code: (\d+ [A-Za-z ]+)", text)
        code = _first(r"<Code>(\w+)</Code>", text)
        answer = " ".join(part for part in (status, code) if part)
        if code == "NoSuchBucket":
            return Unavailable(
                f"there is no bucket for {self._url} at {self._endpoint}",
                hint="Create the bucket, or correct its name, AWS_ENDPOINT_URL or AWS_REGION.",
            )
        if isinstance(error, FileNotFoundError) or (isinstance(error, Rejected) and error.status == 404):
            return self._not_found(key)
        if isinstance(error, AlreadyExistsError) and code != "ConditionalRequestConflict":
            return AlreadyExists(f"{place} is there already")
        if "/latest/api/token" in text or "/latest/meta-data" in text:
            return Refused(
                f"no credentials for {self._url} were found",
                hint="Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; for a public bucket "
                "AWS_SKIP_SIGNATURE=true.",
            )
        if code == "RequestTimeTooSkewed":
            return Refused(f"{place}: {answer}", hint="This machine's clock is wrong. Set it (chrony, ntpd).")
        if code in ("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"):
            return Refused(
                f"{place}: the credentials have expired: {answer}",
                hint="Get new ones from where these came from: sign in again (aws sso login), assume the role again, "
                "or have the token renewed.",
            )
        if code == "NotImplemented" or status.startswith("501"):
            return Refused(
                f"{place}: {self._endpoint} does not support what was asked: {answer}",
                hint="Packtrain needs an S3 server with conditional puts (If-None-Match: *), which AWS S3 and "
                "SeaweedFS are. Update the server, or use another one.",
            )
        if status.startswith(("401", "403")):
            signed = code == "SignatureDoesNotMatch"
            proxy = " Or a proxy on the way changes what was signed, such as If-None-Match." if signed else ""
            return Refused(
                f"{place}: the server refuses: {answer}",
                hint=f"Check the credentials (AWS_ACCESS_KEY_ID, AWS_SESSION_TOKEN, AWS_PROFILE), that they belong to "
                f"{self._endpoint}, and what they may do in this bucket.{proxy}",
            )
        if "redirect without LOCATION" in text or code == "AuthorizationHeaderMalformed":
            return Unavailable(
                f"{place}: the server sends us elsewhere", hint="The bucket is in another region. Set AWS_REGION to it."
            )
        late = "kind: Timeout" in text or isinstance(error, TimeoutError)
        if late or "kind: Connect" in text or "dns error" in text or isinstance(error, (ConnectionError, gaierror)):
            did = "did not answer in time" if late else "cannot be reached"
            return Unavailable(
                f"{place}: {self._endpoint} {did}",
                hint="Check AWS_ENDPOINT_URL, the network and proxies, and that the server runs; then try again.",
            )
        return Unavailable(
            f"{place}: {answer or text.partition('Debug source')[0].strip()}",
            hint=f"Try again. If it stays, look at the logs of {self._endpoint}.",
            busy=status.startswith(("429", "503")) or code == "SlowDown",
            retry_after=error.retry_after if isinstance(error, Rejected) else None,
        )


def open_s3(bucket: str, prefix: str, *, stall: float = STALL) -> ObjectStore:
    """A store in an S3 bucket, by AWS's environment variables and profiles. Asks nobody yet.

    ``prefix`` without slashes at its ends, or empty; ``stall`` in seconds. Raises UsageError for bad settings.
    """
    config = s3_config()
    endpoint = config.get("endpoint") or f"https://s3.{config.get('region', 'us-east-1')}.amazonaws.com"

    def connect(silence: float, retries: int, below: str = prefix) -> S3Store:
        client: ClientConfig = {
            "allow_http": endpoint.startswith("http://"),
            "connect_timeout": timedelta(seconds=min(5.0, silence)),
            "read_timeout": timedelta(seconds=silence),
            "timeout": timedelta(hours=24),  # of a whole answer: a stall ends it, not its length
        }
        retry: RetryConfig = {"max_retries": retries, "retry_timeout": timedelta(seconds=2 * stall)}
        try:
            return S3Store(bucket, prefix=below or None, config=config, client_options=client, retry_config=retry)
        except (BaseError, ValueError) as error:
            what = _first(r"(.*)", str(error))
            raise UsageError(f"the settings for S3 make no sense: {what}", hint="Check the AWS_* variables.") from error

    return ObjectStore(
        f"s3://{bucket}/{prefix}".rstrip("/"),
        endpoint,
        reader=connect(stall, retries=5),
        writer=connect(stall * SENDING, retries=5),
        creator=connect(stall, retries=0),
        copier=connect(stall * SENDING, retries=5, below=""),
        wire=Wire(stall=stall),
        signs=os.environ.get("AWS_SKIP_SIGNATURE", "").lower() not in ("1", "true", "yes", "on", "y", "t"),
    )


def _info(meta: ObjectMeta, key: str) -> ObjectInfo:
    tag = f"{meta['e_tag']} {meta['last_modified']:%FT%T}" if meta["e_tag"] else ""
    return ObjectInfo(key, meta["size"], tag, meta["last_modified"])


def _exactly(key: str, body: Iterable[bytes], size: int) -> Iterator[bytes]:
    """The pieces of a body. Raises ValueError unless they are ``size`` bytes in all."""
    given = 0
    for piece in body:
        given += len(piece)
        if given > size:
            break
        yield bytes(piece)  # a copy only of what its owner may change, because it is sent later
    if given != size:
        raise ValueError(f"the body of {key} does not give the {size} bytes that were announced")


def _may_pass(error: Unavailable) -> bool:
    """Whether what failed to be read may be there a moment later: the server or the connection was at fault."""
    cause = error.__cause__
    return cause is not None and not (isinstance(cause, Rejected) and cause.status < 500)


def _first(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    return found[1] if found else ""
