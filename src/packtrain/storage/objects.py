"""A store in a bucket, over obstore.

obstore streams, signs, retries and sends conditional puts. What is added here is what its callers must be able to
rely on: a creation that is never repeated blindly, the exception of a body as it was raised, and errors that say what
to check. Every request fails when the server is silent for ``stall`` seconds. What S3, GCS and Azure each do in their
own way is a `Provider`'s.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias, TypeVar

import obstore
from obstore.store import AzureStore, GCSStore, S3Store

from packtrain.errors import AlreadyExists, NotFound, PacktrainError, Unavailable
from packtrain.ports import Multipart, ObjectInfo
from packtrain.storage.failures import RAISED, Failure
from packtrain.storage.threads import hand_over, interruptible
from packtrain.storage.wire import Link, Wire, exactly

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore.store import ClientConfig, RetryConfig

T = TypeVar("T")
Connection: TypeAlias = S3Store | GCSStore | AzureStore

MIB = 1 << 20
PART = 8 * MIB  # an object up to this size is one request
MAX_PARTS = 10_000  # of one object, on S3 and GCS; Azure takes more
PARTS_AT_ONCE = 4  # with PART: the memory an upload takes
PIECE = 128 << 10  # bytes that `read` gives at once, at least

STALL = 30.0  # seconds without a byte after which a request has failed; for twice that long it is repeated
SENDING = 4  # an answer comes only after a part was sent, so a sender waits this many times longer
PAUSES = (0.1, 0.4, 1.6)  # seconds before each repetition of a creation or of what is left of a read


# Names whose signed URLs obstore 0.12 writes as GCS and Azure read them.
PLAIN = re.compile(r"[A-Za-z0-9._~/-]+")


class Provider(Protocol):
    """What S3, GCS and Azure each do in their own way, for one bucket: packtrain.storage.s3, gcs and azure."""

    @property
    def url(self) -> str:
        """Of the bucket: s3://bucket."""
        ...

    @property
    def endpoint(self) -> str:
        """Where it is, for people and for the wire."""
        ...

    @property
    def address(self) -> str:
        """The variable that says where it is, for hints."""
        ...

    @property
    def copies(self) -> int:
        """Bytes of an object that the server copies in one call, at most."""
        ...

    def connect(self, prefix: str | None, client: ClientConfig, retry: RetryConfig) -> Connection:
        """Raises UsageError for settings that make no sense. Asks nobody yet."""
        ...

    def multipart(self, prefix: str, silence: float, errors: Errors) -> Multipart | None:
        """How objects under a prefix are made of parts; None: only by obstore, whole. An answer may take ``silence``
        seconds; ``errors(key)`` turns what is raised inside into our errors."""
        ...

    def link(self, connection: Connection, key: str, path: str) -> Link | None:
        """What the wire needs to read an object, valid for a request that begins at once; None: only obstore can. Under
        the connection's prefix it is ``key``, in the bucket ``path``."""
        ...

    def is_taken(self, failure: Failure) -> bool:
        """Whether a creation failed because the key is there."""
        ...

    def is_undone(self, failure: Failure) -> bool:
        """Whether the server says that a creation was not done, so that it may be repeated."""
        ...

    def explain(self, failure: Failure, place: str) -> PacktrainError | None:
        """What only this provider says, and what to do about it. None for what is the same everywhere."""
        ...


Errors = Callable[[str], AbstractContextManager[None]]


class ObjectStore:
    """A `Store` under a prefix of a bucket, without slashes at its ends, or empty. ``stall`` in seconds;
    ``authorities`` is a PEM file with those to believe beside the system's."""

    def __init__(
        self, provider: Provider, prefix: str, *, stall: float = STALL, authorities: Path | None = None
    ) -> None:
        self._provider = provider
        self._url = f"{provider.url}/{prefix}".rstrip("/")
        self._wire = Wire(stall=stall, authorities=authorities)
        self._trust = authorities.read_bytes() if authorities else None
        self._multipart = provider.multipart(prefix, stall * SENDING, self._errors)
        self._stall = stall
        self._prefix = prefix
        self._reader = self._connect(stall, retries=5)

    @cached_property
    def _writer(self) -> Connection:
        return self._connect(self._stall * SENDING, retries=5)

    @cached_property
    def _creator(self) -> Connection:
        """A put-if-absent whose answer was lost, sent again, would be told that somebody else was first."""
        return self._connect(self._stall, retries=0)

    @cached_property
    def _copier(self) -> Connection:
        """Of the whole bucket."""
        return self._connect(self._stall * SENDING, retries=5, below="")

    def _connect(self, silence: float, *, retries: int, below: str | None = None) -> Connection:
        """Asks nobody yet, but takes some milliseconds."""
        client: ClientConfig = {
            "allow_http": self._provider.endpoint.startswith("http://"),
            "connect_timeout": timedelta(seconds=min(5.0, silence)),
            "read_timeout": timedelta(seconds=silence),
            "timeout": timedelta(hours=24),  # of a whole answer: a stall ends it, not its length
        }
        if self._trust is not None:
            client["root_certificate"] = self._trust
        retry: RetryConfig = {"max_retries": retries, "retry_timeout": timedelta(seconds=2 * self._stall)}
        return self._provider.connect((self._prefix if below is None else below) or None, client, retry)

    @property
    def url(self) -> str:
        return self._url

    @property
    def directory(self) -> None:
        return None

    @property
    def multipart(self) -> Multipart | None:
        return self._multipart

    def get(self, key: str) -> bytes:
        return self._ask(key, lambda: bytes(obstore.get(self._reader, key).bytes()))

    def prepare(self, key: str, reads: int) -> None:
        with suppress(PacktrainError), self._errors(key):  # whoever reads is told
            if (link := self._link(key)) is not None:
                self._wire.open(link, reads)

    def read(self, key: str, start: int, length: int, buffer: memoryview) -> Iterator[memoryview]:
        if length == 0:
            if self.head(key) is None:
                raise NotFound(f"there is no {self.locate(key)}")
            return
        pauses = iter(PAUSES)
        while length:
            try:
                for piece in self._piecewise(key, start, length, buffer):
                    start, length = start + len(piece), length - len(piece)
                    yield piece
            except Unavailable as error:
                pause = next(pauses, None)
                broken = error.__cause__ is not None and _failure(error).passing  # else the bytes ended early
                if pause is None or error.busy or not broken:
                    raise
                time.sleep(pause)

    def _piecewise(self, key: str, start: int, length: int, buffer: memoryview) -> Iterator[memoryview]:
        """One request."""
        pieces = self._pieces(key, start, length, buffer)
        piece = self._ask(key, lambda: next(pieces, None))  # this one waits for names, connections and the answer
        left = length
        with self._errors(key):
            while piece is not None:
                left -= len(piece)
                yield piece
                piece = next(pieces, None)
        if left:
            raise Unavailable(
                f"{self.locate(key)} gave {length - left} of {length} bytes from {start}",
                hint="Try again. If it stays, something other than Packtrain changed it: `packtrain verify --bytes` "
                "finds the damage.",
            )

    def _pieces(self, key: str, start: int, length: int, buffer: memoryview) -> Iterator[memoryview]:
        """Linked anew for each request, so nothing that expires is ever used when old. What the wire cannot read, such
        as a public bucket without credentials, goes the slower way."""
        link = self._link(key)
        return self._stream(key, start, length) if link is None else self._wire.read(link, start, length, buffer)

    def _link(self, key: str) -> Link | None:
        return self._ask(key, lambda: self._provider.link(self._reader, key, self._path(self.locate(key))))

    def _stream(self, key: str, start: int, length: int) -> Iterator[memoryview]:
        answer = obstore.get(self._reader, key, options={"range": (start, start + length)})
        stream = iter(answer.stream(min_chunk_size=PIECE))
        while (piece := interruptible(lambda: next(stream, None))) is not None:
            yield memoryview(piece)

    def create(self, key: str, data: bytes) -> None:
        for pause in (*PAUSES, None):
            try:
                self._ask(key, lambda: obstore.put(self._creator, key, data, mode="create", use_multipart=False))
                return
            except Unavailable as error:
                failure = _failure(error)
                if pause is None or not (failure.unconnected or self._provider.is_undone(failure)):
                    raise
                time.sleep(pause)

    def upload(self, key: str, body: Iterable[bytes], size: int) -> None:
        # a copy only of what its owner may change, because it is sent later
        pieces = (bytes(piece) for piece in exactly(body, size, key))
        if size <= PART:
            data = b"".join(pieces)
            self._ask(key, lambda: obstore.put(self._writer, key, data, use_multipart=False))
            return
        part = max(PART, -(-size // MAX_PARTS))

        def send(handed: Iterator[bytes]) -> None:
            try:
                with self._errors(key):
                    obstore.put(self._writer, key, handed, chunk_size=part, max_concurrency=PARTS_AT_ONCE)
            except NotFound as error:
                raise Unavailable(
                    f"{self.locate(key)}: its upload is over: an answer was lost, or somebody else ended it",
                    hint="Run the same command again: it continues with what is there.",
                ) from error

        hand_over(pieces, send)

    def copy_from(
        self,
        url: str,
        key: str,
        size: int,
        advance: Callable[[int], None],
        *,
        fixed: bool = False,  # noqa: ARG002 - a copy in any case
    ) -> bool:
        """Within the bucket, by one call. An object that is too large for that is the caller's to stream."""
        if not url.startswith(f"{self._provider.url}/") or size > self._provider.copies:
            return False
        source, target = self._path(url), self._path(self.locate(key))
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

    def _path(self, url: str) -> str:
        """In the bucket."""
        return url.removeprefix(f"{self._provider.url}/")

    def _ask(self, key: str, call: Callable[[], T]) -> T:
        with self._errors(key):
            return interruptible(call)

    @contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        """Turns what obstore and the wire raise into our errors."""
        try:
            yield
        except RAISED as error:
            raise self._explained(Failure.of(error), self.locate(key)) from error

    def _explained(self, failure: Failure, place: str) -> PacktrainError:
        if self._provider.is_taken(failure):
            return AlreadyExists(f"{place} is there already")
        own = self._provider.explain(failure, place)
        return own or failure.explained(place, self._provider.endpoint, self._provider.address)


def _info(meta: ObjectMeta, key: str) -> ObjectInfo:
    entity = (meta["e_tag"] or "").strip('"')  # Azure quotes it here and there
    tag = f"{entity} {meta['last_modified']:%FT%T}" if entity else ""
    return ObjectInfo(key, meta["size"], tag, meta["last_modified"])


def _failure(error: Unavailable) -> Failure:
    """What it was made of."""
    return Failure.of(error.__cause__ if isinstance(error.__cause__, Exception) else error)
