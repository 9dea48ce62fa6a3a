"""An S3 server of one version whose weights it makes as they are asked for: no disk holds them."""

from __future__ import annotations

import random
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from blake3 import blake3

from packtrain.model.digest import Digest
from packtrain.model.ledger import timestamp
from packtrain.model.manifest import FILE_NAME, Chunks, FileEntry, Manifest
from packtrain.model.version import version_prefix
from packtrain.registry.ledger import LedgerRegistry
from packtrain.registry.memory import SeenLedgers
from packtrain.testing.memory_store import MemoryStore
from packtrain.wiring import SystemClock

CHUNK = 4 << 20
_FILE = 2400 * CHUNK  # 10 GB
_BLOCK = random.Random(1).randbytes(CHUNK - 8)  # what all chunks begin with; at the end each has its number
_NAME = re.compile(r"model-(\d{5})\.safetensors$")


@dataclass(frozen=True)
class Endless:
    endpoint: str
    manifest_bytes: int
    size: int


@contextmanager
def endless(gigabytes: int, work: Path, *, chunks: int = 0) -> Iterator[Endless]:
    """A version ``m/1`` of about this size, or of so many chunks, in the bucket ``bench``."""
    manifest = _manifest(chunks or gigabytes * 1_000_000_000 // CHUNK)
    store = MemoryStore()
    clock = SystemClock()
    registry = LedgerRegistry(store, SeenLedgers(work / "seen"), actor="bench", clock=clock, nonce=lambda: "0" * 32)
    digest, until = manifest.digest, timestamp(clock.now())
    registry.change("m", lambda state: state.begin_publish(digest, "1" * 32, until))
    registry.change(
        "m", lambda state: state.create_version(manifest, digest, "1" * 32, code=False, base=None, force=False)
    )
    store.objects[version_prefix("m", digest) + FILE_NAME] = manifest.encode()
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    threading.Thread(target=_accept, args=(listener, store.objects), daemon=True).start()
    try:
        endpoint = f"http://127.0.0.1:{listener.getsockname()[1]}"
        yield Endless(endpoint, len(manifest.encode()), manifest.size)
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def _manifest(chunks: int) -> Manifest:
    begun = blake3(_BLOCK)
    files: list[FileEntry] = []
    for start in range(0, chunks, _FILE // CHUNK):
        numbers = range(start, min(chunks, start + _FILE // CHUNK))
        digests = []
        for number in numbers:
            digest = begun.copy()
            digest.update(number.to_bytes(8, "little"))
            digests.append(digest.hexdigest())
        name = f"model-{len(files):05}.safetensors"
        # Nobody reads these files back, so their SHA-256, by which others name them, is made up.
        chunks_of_it = Chunks([CHUNK] * len(numbers), digests)
        files.append(FileEntry(name, len(numbers) * CHUNK, Digest.of(name.encode()).hex, chunks_of_it))
    return Manifest.of("merged", files)


def _accept(listener: socket.socket, objects: dict[str, bytes]) -> None:
    while True:
        try:
            client, _ = listener.accept()
        except OSError:  # it was closed
            return
        threading.Thread(target=_serve, args=(client, objects), daemon=True).start()


def _serve(client: socket.socket, objects: dict[str, bytes]) -> None:
    with client, suppress(OSError), client.makefile("rb") as requests:
        while line := requests.readline():
            fields = {}
            while (field := requests.readline()) not in (b"\r\n", b""):
                name, _, value = field.decode().partition(":")
                fields[name.lower()] = value.strip()
            _answer(client, line.split()[1].decode(), fields.get("range", ""), objects)


def _answer(client: socket.socket, target: str, span: str, objects: dict[str, bytes]) -> None:
    url = urlsplit(target)
    key = unquote(url.path).removeprefix("/bench").removeprefix("/")
    if weights := _NAME.search(key):
        start, end = (int(each) for each in span.removeprefix("bytes=").split("-"))
        head = f"HTTP/1.1 206 Partial Content\r\nContent-Length: {end - start + 1}\r\n"
        client.sendall(f"{head}Content-Range: bytes {start}-{end}/*\r\n\r\n".encode())
        _send(client, int(weights[1]) * _FILE + start, end - start + 1)
        return
    if not key:
        body = _listing(objects, parse_qs(url.query)["prefix"][0]).encode()
    elif key in objects:
        body = objects[key]
    else:
        client.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
        return
    modified = "Last-Modified: Thu, 01 Jan 2026 00:00:00 GMT"
    client.sendall(f'HTTP/1.1 200 OK\r\nETag: "1"\r\n{modified}\r\nContent-Length: {len(body)}\r\n\r\n'.encode() + body)


def _send(client: socket.socket, position: int, length: int) -> None:
    """Bytes of all files, one after the other."""
    block = memoryview(_BLOCK)
    while length:
        number, within = divmod(position, CHUNK)
        part = block[within : within + length] or number.to_bytes(8, "little")[within - len(block) :][:length]
        client.sendall(part)
        position += len(part)
        length -= len(part)


def _listing(objects: dict[str, bytes], prefix: str) -> str:
    entries = "".join(
        f"<Contents><Key>{escape(key)}</Key><Size>{len(data)}</Size><ETag>1</ETag>"
        "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
        for key, data in sorted(objects.items())
        if key.startswith(prefix)
    )
    return f"<ListBucketResult><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>"
