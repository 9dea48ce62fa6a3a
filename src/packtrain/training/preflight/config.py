"""config.json: whether an engine can tell what the model is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from packtrain.model.finding import Finding
from packtrain.training.preflight.view import View, refuse


def check_config(view: View) -> Iterator[Finding]:
    if view.checkpoint.kind != "merged":
        return
    if "config.json" not in view.there:
        fix = "Give the export_dir of a merge, or copy config.json from the base model."
        yield refuse("no-config", "", "there is no config.json, so no engine knows the architecture", fix)
    elif "config.json" in view.checkpoint.documents and not _names_architecture(
        view.checkpoint.document("config.json")
    ):
        fix = "Copy config.json from the base model, or export again."
        yield refuse("no-config", "config.json", "names neither architectures nor a model_type", fix)


def _names_architecture(config: dict[str, Any]) -> bool:
    names = config.get("architectures")
    return isinstance(config.get("model_type"), str) or (
        isinstance(names, list) and bool(names) and all(isinstance(name, str) for name in names)
    )
