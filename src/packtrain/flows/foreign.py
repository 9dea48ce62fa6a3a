"""Versions that somebody registered in MLflow without Packtrain: where their bytes are, to adopt or to look at them.

Nothing vouches for these bytes: MLflow keeps a location, no digests, and does not look whether anything is there.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NoReturn

from packtrain.errors import NotFound, Refused, disk_error
from packtrain.flows.buffers import page_aligned
from packtrain.flows.workers import Halt, run_all
from packtrain.model.manifest import refuse_unsafe
from packtrain.model.reference import Reference
from packtrain.ports import ObjectInfo, Reporter, Store
from packtrain.registry.mlflow import Mlflow

PROXIED = "mlflow-artifacts:"
MODEL, TOKENIZER = "model/", "components/tokenizer/"  # where MLflow's own transformers flavor puts things
_THREADS = 4
_PIECE = 1 << 20


def source_of(mlflow: Mlflow, reference: Reference, open_store: Callable[[str], Store]) -> Store:
    """Everything that a version in MLflow points at, as a store to read. A directory of MLflow's transformers flavor
    looks like the plain Hugging Face model that it holds. Raises NotFound, and Refused for places it cannot read."""
    if reference.version is None:
        raise NotFound(f"{reference} names no version in MLflow", hint=f"Give its number: {reference.name}/1")
    uri = mlflow.download_uri(reference.name, reference.version)
    if uri.startswith(PROXIED):
        store: Store = _Proxied(mlflow, uri.removeprefix(PROXIED).lstrip("/").rstrip("/"))
    elif uri.partition("://")[0] in ("s3", "gs", "az"):
        store = open_store(uri.rstrip("/"))
    else:
        raise Refused(
            f"{reference} is at {uri} in MLflow, which Packtrain cannot read",
            hint="Download it with MLflow (mlflow artifacts download -u models:/...), then publish that folder.",
        )
    keys = {info.key for info in store.list("")}
    if not keys:
        raise NotFound(
            f"{reference} is at {uri} in MLflow, and there is nothing",
            hint="MLflow does not look whether a version has files. Delete it there, or upload them.",
        )
    if "config.json" not in keys and MODEL + "config.json" in keys:
        return _Flat(store, keys)
    return store


def pull_unverified(source: Store, reference: Reference, target: Path, reporter: Reporter) -> int:
    """Fetches what a version in MLflow points at into a new folder, and checks nothing but names. Returns the bytes."""
    if target.exists():
        raise Refused(f"{target} exists", hint="Give --to a folder that does not exist yet.")
    listed = sorted(source.list(""), key=lambda info: info.key)
    refuse_unsafe((info.key for info in listed), allow_code=False, what=str(reference))
    for info in listed:
        if not {"", ".", ".."}.isdisjoint(info.key.split("/")):
            raise Refused(f"{source.url} holds {info.key!r}, which cannot be the path of a file")
    partial = target.with_name(f".{target.name}.unverified")
    total = sum(info.size for info in listed)
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        reporter.begin("fetching, unverified", total)
        run_all(
            lambda info, halt: _fetch(source, info, partial, reporter, halt), listed, threads=_THREADS, name="fetch"
        )
        reporter.end()
        partial.rename(target)
    except OSError as error:
        raise disk_error(error, f"could not write {target}") from error
    return total


def _fetch(source: Store, info: ObjectInfo, into: Path, reporter: Reporter, halt: Halt) -> None:
    path, buffer = into / info.key, page_aligned(_PIECE)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for piece in source.read(info.key, 0, info.size, buffer) if info.size else ():
            halt.check()
            file.write(piece)
            reporter.advance(len(piece))


class _ReadOnly:
    """What a store that is only read does not do."""

    directory = None
    multipart = None

    def create(self, key: str, data: bytes) -> NoReturn:  # noqa: ARG002
        self._refuse()

    def upload(self, key: str, body: Iterable[bytes], size: int) -> NoReturn:  # noqa: ARG002
        self._refuse()

    def copy_from(self, *_: object, fixed: bool = False) -> bool:  # noqa: ARG002
        return False

    def delete(self, key: str) -> NoReturn:  # noqa: ARG002
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise Refused("a version of MLflow's is only read")


class _Proxied(_ReadOnly):
    """What the MLflow server keeps for others, read through it."""

    def __init__(self, mlflow: Mlflow, path: str) -> None:
        self._mlflow = mlflow
        self._path = path

    @property
    def url(self) -> str:
        return f"{PROXIED}/{self._path}"

    def get(self, key: str) -> bytes:
        if (info := self.head(key)) is None:
            raise NotFound(f"there is no {self.locate(key)}")
        return b"".join(self._mlflow.read_artifact(f"{self._path}/{key}", 0, info.size))

    def prepare(self, key: str, reads: int) -> None:
        pass

    def read(self, key: str, start: int, length: int, buffer: memoryview) -> Iterator[memoryview]:
        for piece in self._mlflow.read_artifact(f"{self._path}/{key}", start, length) if length else ():
            for offset in range(0, len(piece), len(buffer)):
                part = piece[offset : offset + len(buffer)]
                buffer[: len(part)] = part
                yield buffer[: len(part)]

    def head(self, key: str) -> ObjectInfo | None:
        folder, _, _ = key.rpartition("/")
        return next((info for info in self.list(f"{folder}/" if folder else "") if info.key == key), None)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        for path, size in self._mlflow.list_artifacts(f"{self._path}/{prefix}".rstrip("/")):
            yield ObjectInfo(path.removeprefix(f"{self._path}/"), size)

    def children(self, prefix: str) -> Iterator[str]:
        return iter(sorted({info.key.removeprefix(prefix).partition("/")[0] for info in self.list(prefix)}))

    def locate(self, key: str) -> str:
        return f"{self.url}/{key}"


class _Flat(_ReadOnly):
    """The plain model in a directory of MLflow's transformers flavor: the model's files, and the tokenizer's."""

    def __init__(self, inner: Store, keys: Iterable[str]) -> None:
        self._inner = inner
        self._keys = {
            key.removeprefix(folder): key
            for folder in (TOKENIZER, MODEL)  # the model's own win
            for key in keys
            if key.startswith(folder)
        }

    @property
    def url(self) -> str:
        return self._inner.url

    def get(self, key: str) -> bytes:
        return self._inner.get(self._at(key))

    def prepare(self, key: str, reads: int) -> None:
        if key in self._keys:
            self._inner.prepare(self._keys[key], reads)

    def read(self, key: str, start: int, length: int, buffer: memoryview) -> Iterator[memoryview]:
        return self._inner.read(self._at(key), start, length, buffer)

    def head(self, key: str) -> ObjectInfo | None:
        info = self._inner.head(self._keys[key]) if key in self._keys else None
        return info and ObjectInfo(key, info.size, info.tag, info.modified)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        names = {inner: key for key, inner in self._keys.items() if key.startswith(prefix)}
        for info in self._inner.list(""):
            if info.key in names:
                yield ObjectInfo(names[info.key], info.size, info.tag, info.modified)

    def children(self, prefix: str) -> Iterator[str]:
        return iter(sorted({info.key.removeprefix(prefix).partition("/")[0] for info in self.list(prefix)}))

    def locate(self, key: str) -> str:
        return self._inner.locate(self._keys.get(key, key))

    def _at(self, key: str) -> str:
        if key not in self._keys:
            raise NotFound(f"there is no {self.locate(key)}")
        return self._keys[key]
