"""Packtrain carries fine-tuned models from LLaMA-Factory to vLLM.

from packtrain import Client
Client(store="s3://models/prod").pull("llama-finetuned@production").path
"""

from packtrain._version import __version__
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
    "Unavailable",
    "UsageError",
    "__version__",
]
