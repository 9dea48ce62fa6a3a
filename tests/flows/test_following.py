"""What keeps a version from being fetched, and whether the version is to blame."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import pytest

from packtrain.errors import IntegrityError, PacktrainError, Refused, Unavailable
from packtrain.flows.following import Progress, Unservable, fetch
from packtrain.model.manifest import refuse_unsafe
from packtrain.model.version import ModelVersion
from packtrain.serving import Arguments
from packtrain.testing.memory_store import MemoryStore
from tests.model.examples import MERGED
from tests.registry.machines import machine, publish


class Failing:
    """A `Supply` that has nothing."""

    pins: list[int] = []  # noqa: RUF012

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.left = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.left += 1

    def open(self, version: ModelVersion) -> Path:
        raise self.error

    def leave(self) -> None: ...


def unsafe() -> Exception:
    with pytest.raises(Refused) as caught:
        refuse_unsafe(["pytorch_model.bin"], allow_code=False, what="m/1")
    return caught.value


def fetched(error: Exception, home: Path) -> Any:
    registry = machine(MemoryStore(), home)
    publish(registry)
    version = registry.read("m").state.versions[1]
    assert version.digest == MERGED.digest
    supply = Failing(error)
    try:
        return fetch(registry, supply, version, Arguments(), Progress(lambda _: None))
    finally:
        assert supply.left == 1


def test_what_the_version_holds_is_its_own_fault(tmp_path: Path) -> None:
    with pytest.raises(Unservable, match=r"pytorch_model\.bin, a pickle format"):
        fetched(unsafe(), tmp_path)


@pytest.mark.parametrize(
    "error",
    [Unavailable("the network is down"), Refused("403 Forbidden: ExpiredToken"), IntegrityError("a chunk is wrong")],
    ids=lambda error: type(error).__name__,
)
def test_what_keeps_it_away_is_not(tmp_path: Path, error: PacktrainError) -> None:
    with pytest.raises(type(error)) as caught:
        fetched(error, tmp_path)
    assert caught.value is error
