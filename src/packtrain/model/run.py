"""A run of MLflow's tracking that a version came from, as far as people want to see it beside the version."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from packtrain.model.lineage import Curve


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """``url`` is its page; ``curves`` are the histories of its losses."""

    id: str
    url: str
    status: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    curves: Mapping[str, Curve] = field(default_factory=dict)
    datasets: tuple[str, ...] = ()
    artifacts: tuple[str, ...] = ()
