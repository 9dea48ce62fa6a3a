"""Packtrain carries fine-tuned models from LLaMA-Factory to vLLM.

    from packtrain import Client
    Client(store="s3://models/prod").pull("llama-finetuned@production").path

The names are imported when they are used, so that the command line starts quickly.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from packtrain._version import __version__

if TYPE_CHECKING:
    from packtrain.client import Client
    from packtrain.errors import (
        AlreadyExists,
        Conflict,
        EngineError,
        IntegrityError,
        LocalDiskError,
        NotFound,
        PacktrainError,
        PreflightRefused,
        Refused,
        Unavailable,
        UsageError,
    )
    from packtrain.flows.pull import Snapshot
    from packtrain.model.digest import Digest
    from packtrain.model.reference import Reference
    from packtrain.model.version import ModelVersion

__all__ = [
    "AlreadyExists",
    "Client",
    "Conflict",
    "Digest",
    "EngineError",
    "IntegrityError",
    "LocalDiskError",
    "ModelVersion",
    "NotFound",
    "PacktrainError",
    "PreflightRefused",
    "Reference",
    "Refused",
    "Snapshot",
    "Unavailable",
    "UsageError",
    "__version__",
]

_ELSEWHERE = {
    "Client": "packtrain.client",
    "Snapshot": "packtrain.flows.pull",
    "Digest": "packtrain.model.digest",
    "Reference": "packtrain.model.reference",
    "ModelVersion": "packtrain.model.version",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'packtrain' has no attribute {name!r}")
    return getattr(import_module(_ELSEWHERE.get(name, "packtrain.errors")), name)
