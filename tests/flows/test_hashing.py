"""All digests in one read, however many files and processors there are."""

from __future__ import annotations

import hashlib
import os
import random
import zlib
from pathlib import Path

import pytest
from blake3 import blake3

from packtrain.flows.hashing import crc32_of, hash_and_check
from packtrain.flows.sources import LocalFile, NewFile
from tests.flows.conftest import Notes

MIB = 1 << 20


@pytest.mark.parametrize("processors", [1, 2, 8])
@pytest.mark.parametrize("count", [1, 3])
def test_every_digest_is_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processors: int, count: int) -> None:
    """One large file with idle processors, and more files than processors, are hashed in different ways."""
    monkeypatch.setattr(os, "cpu_count", lambda: processors)
    contents = {f"{number}.bin": random.Random(number).randbytes(9 * MIB + number) for number in range(count)}
    contents |= {"small.json": b"{}", "empty": b""}
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    notes = Notes()
    hashed = hash_and_check([NewFile(name, LocalFile(tmp_path / name)) for name in contents], notes)
    assert [entry.path for entry in hashed.entries] == list(contents)
    assert notes.advanced == sum(map(len, contents.values()))
    for entry in hashed.entries:
        data = contents[entry.path]
        assert entry.sha256 == hashlib.sha256(data).hexdigest()
        assert crc32_of(entry, hashed.checksums[entry.path]) == zlib.crc32(data)
        assert sum(chunk.length for chunk in entry.chunks) == len(data)
        start = 0
        for chunk in entry.chunks:
            assert chunk.blake3 == blake3(data[start : start + chunk.length]).hexdigest()
            start += chunk.length
