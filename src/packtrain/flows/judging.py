"""The gate of a node: before an engine takes traffic, it must answer as the version's golden outputs say."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import structlog

from packtrain.errors import IntegrityError, PacktrainError
from packtrain.flows.catalog import golden_of
from packtrain.model.digest import Digest
from packtrain.model.golden import Golden
from packtrain.model.lineage import record_key
from packtrain.model.version import ModelVersion
from packtrain.ports import Registry, Store
from packtrain.serving.gate import Answering, Verdict, gate


class Judge:
    """``folder``: where this node keeps golden records, so that the store may be away when an engine starts again."""

    def __init__(self, store: Store, registry: Registry, folder: Path) -> None:
        self._store, self._registry, self._folder = store, registry, folder
        self._log: Any = structlog.get_logger("packtrain.serve")

    def __call__(self, engine: Answering, version: ModelVersion) -> Verdict:
        try:
            golden = self._golden(version)
        except IntegrityError as error:
            return Verdict(str(error))
        except PacktrainError as error:  # what serves keeps serving, and so does what starts again
            self._log.warning("golden_unreachable", version=version.number, because=str(error))
            golden = None
        return gate(engine, golden)

    def _golden(self, version: ModelVersion) -> Golden | None:
        """Of what this node saw of the ledger."""
        state = self._registry.remembered(version.name).state
        return golden_of(state, version, lambda record: self._load(version, record))

    def _load(self, version: ModelVersion, name: Digest) -> Golden:
        kept = self._folder / f"{name.hex}.json"
        try:
            return Golden.decode(kept.read_bytes(), expect=name)
        except (OSError, IntegrityError):
            return self._fetch(version, name, kept)

    def _fetch(self, version: ModelVersion, name: Digest, kept: Path) -> Golden:
        data = self._store.get(record_key(version.name, name))
        golden = Golden.decode(data, expect=name)
        with suppress(OSError):  # a full disk must not keep an engine from being asked
            kept.parent.mkdir(parents=True, exist_ok=True)
            beside = kept.with_suffix(".new")
            beside.write_bytes(data)
            beside.rename(kept)
        return golden
