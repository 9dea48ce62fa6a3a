"""What training left behind about how a model was made.

Sources: the configurations that the user gives (LLaMA-Factory does not copy them into its output), the records in the
training's directory, its model card. What a run wrote about itself wins over what a configuration asked for, because
values can be overridden on LLaMA-Factory's command line; where they differ, the lineage says so. A record that is
missing or broken makes its facts unknown; only a configuration that was asked for and cannot be read is an error.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from packtrain.errors import LocalDiskError, NotFound, UsageError
from packtrain.model.lineage import Curve, Dataset, Lineage, Parent, thin
from packtrain.training import datasets
from packtrain.training.checkpoint import ADAPTER_CONFIG
from packtrain.training.documents import (
    MAX_DOCUMENT,
    Malformed,
    is_file,
    is_folder,
    printable,
    read_bytes,
    read_config,
    read_object,
)
from packtrain.training.modelcard import read_card
from packtrain.training.revision import git_revision

MAX_CURVE = 2000  # points of a curve
MAX_DEPTH = 20  # of values in values
REDACTED = "(redacted)"

# Keys of a training configuration that the lineage tells elsewhere, and those that change nothing in the model: where
# output goes, what is logged, saved, measured and cached. All others count as hyperparameters: LLaMA-Factory has
# hundreds, and one that changed must not be missed.
_ELSEWHERE = {
    "model_name_or_path", "model_revision", "adapter_name_or_path", "dataset", "eval_dataset", "dataset_dir",
    "media_dir", "template", "stage", "finetuning_type", "do_train", "do_eval", "do_predict",
}  # fmt: skip
_NO_MATTER = re.compile(
    r"(output|logging|log|cache|hub|run|swanlab|trackio|ray|overwrite|save|plot|print|preprocessing|tokenized|ddp"
    r"|eval|per_device_eval|batch_eval|compute|predict|disable|include)_\w+|report_to|push_to_hub|use_swanlab|project"
    r"|trust_remote_code|dataloader_(num_workers|pin_memory|persistent_workers|prefetch_factor)"
)
_LORA = {  # ours: (adapter_config.json's, the training YAML's)
    "rank": ("r", "lora_rank"),
    "alpha": ("lora_alpha", "lora_alpha"),
    "dropout": ("lora_dropout", "lora_dropout"),
    "targets": ("target_modules", "lora_target"),
    "rslora": ("use_rslora", "use_rslora"),
    "dora": ("use_dora", "use_dora"),
    "modules_to_save": ("modules_to_save", "additional_target"),
}
_SECRET_KEY = re.compile(
    r"(^|[_-])(token|api_?key|access_?key|private_?key|password|passwd|secret|credentials?|webhook(_url)?)$", re.I
)
_SECRET_VALUE = re.compile(r"\bhf_[A-Za-z0-9]{20,}|\bsk-[A-Za-z0-9_-]{20,}|(?<=://)[^/\s@]+(?=@)")


def read_lineage(
    checkpoint_dir: Path,
    *,
    training_config: Path | None,
    export_config: Path | None,
    training_dir: Path | None,
    exported_with: str | None = None,
) -> Lineage:
    """The lineage of what ``checkpoint_dir`` holds; ``exported_with`` is the version of the LLaMA-Factory that did.

    Without ``training_dir`` it is the (last) adapter that the export configuration names, else the training
    configuration's output_dir, else the trained model that was exported, else the checkpoint's own directory (an
    adapter, or a full fine-tuning). Raises UsageError and NotFound for configurations and a training directory that
    were given and cannot be read.
    """
    if training_dir is not None and not is_folder(training_dir):
        raise NotFound(f"the training directory {printable(str(training_dir))} does not exist")
    merge = redact(read_config(export_config)) if export_config else {}
    training = redact(read_config(training_config)) if training_config else {}
    adapters = _names(merge.get("adapter_name_or_path"))
    source = (
        training_dir
        or _folder(adapters[-1] if adapters else None, export_config)
        or _folder(training.get("output_dir"), training_config)
        or _trained(_folder(merge.get("model_name_or_path"), export_config))
        or checkpoint_dir
    )
    board = source / "training_args.yaml"  # LLaMA Board's copy of the configuration
    config = training_config or board
    training = training or redact(_board_config(board))
    adapter_config = _json(source / ADAPTER_CONFIG)
    state = _json(source / "trainer_state.json")
    results = _json(source / "train_results.json") | _json(source / "eval_results.json")
    results |= _json(source / "all_results.json")
    card = read_card(redact(_text(source / "README.md")))
    history = [entry for entry in _list(state.get("log_history")) if isinstance(entry, dict)]
    steps = state.get("global_step")
    base = _string(
        merge.get("model_name_or_path") if adapters else None,
        training.get("model_name_or_path"),
        adapter_config.get("base_model_name_or_path"),
        card.base,
        merge.get("model_name_or_path"),
    )
    revision, dirty = git_revision(training_config.absolute().parent) if training_config else (None, None)
    saved_by = {"transformers": _json(checkpoint_dir / "config.json").get("transformers_version")}
    trained_here = is_file(checkpoint_dir / "trainer_state.json")  # else it was exported from what was trained
    return Lineage(
        base=Parent(base, _string(merge.get("model_revision"), training.get("model_revision"))) if base else None,
        adapters=tuple(Parent(adapter) for adapter in map(_string, adapters) if adapter),
        datasets=_datasets(_names(training.get("dataset")) or card.datasets, training, config),
        eval_datasets=_datasets(_names(training.get("eval_dataset")), training, config),
        template=_string(training.get("template"), merge.get("template")),
        stage=_string(training.get("stage")),
        finetuning_type=_string(
            training.get("finetuning_type"), "lora" if adapter_config else None, merge.get("finetuning_type")
        ),
        lora=_lora(adapter_config, training),
        hyperparameters=_hyperparameters(training | card.hyperparameters),
        metrics=_metrics(history, results),
        curves=_curves(history) or _curves(_jsonl(source / "trainer_log.jsonl")),
        steps=steps if type(steps) is int else None,
        epochs=_finite(state.get("epoch", results.get("epoch"))),
        tools=_versions(saved_by if trained_here else {}, {"peft": adapter_config.get("peft_version")}, card.tools),
        export_tools=_versions({} if trained_here else saved_by, {"llamafactory": exported_with}),
        git_revision=revision,
        git_dirty=dirty,
        contradictions=tuple(_contradictions(training, adapter_config, card.hyperparameters)),
        training_config=training,
        export_config=merge,
    )


def redact(value: Any) -> Any:
    """The value without its secrets: under keys that name one, and where a string looks like one."""
    if isinstance(value, dict):
        return {
            key: REDACTED if _SECRET_KEY.search(key) and entry not in (None, "") else redact(entry)
            for key, entry in value.items()
        }
    if isinstance(value, list):
        return [redact(entry) for entry in value]
    if isinstance(value, str):
        return _SECRET_VALUE.sub(REDACTED, value)
    return value


def _hyperparameters(settings: Mapping[str, Any]) -> dict[str, Any]:
    elsewhere = _ELSEWHERE | {training_key for _, training_key in _LORA.values()}
    return {
        key: value
        for key, value in settings.items()
        if key not in elsewhere and not _NO_MATTER.fullmatch(key) and value not in (None, "", REDACTED)
    }


def _lora(adapter_config: Mapping[str, Any], training: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for name, (adapter_key, training_key) in _LORA.items():
        value = adapter_config.get(adapter_key)
        value = _plain(training.get(training_key)) if value is None else _plain(value)
        if value not in (None, False, [], ""):
            found[name] = value
    return found


def _plain(value: Any) -> Any:
    """A scalar or a sorted list of strings: PEFT writes its sets in any order. None for anything else."""
    if isinstance(value, list):
        return sorted(entry for entry in value if isinstance(entry, str))
    return value if isinstance(value, str | bool | int) else _finite(value)


def _contradictions(
    training: Mapping[str, Any], adapter_config: Mapping[str, Any], used: Mapping[str, Any]
) -> Iterator[str]:
    """Where the run's own records say otherwise than its configuration: a value that was overridden on the command
    line, or the configuration of another training."""
    recorded = {
        **used,
        **{_LORA[name][1]: adapter_config.get(_LORA[name][0]) for name in ("rank", "alpha")},
    }
    for key, value in sorted(recorded.items()):
        asked = training.get(key)
        if None not in (asked, value) and asked != value:
            yield f"{key}: the configuration says {asked}, the training's own records say {value}"


def _metrics(history: list[dict[str, Any]], results: Mapping[str, Any]) -> dict[str, float]:
    """train_*, eval_* and the like; the results of the whole run win over what was logged on the way."""
    metrics = {}
    for record in (*history, results):
        for key, value in record.items():
            if key.startswith(("train_", "eval_", "predict_")) and (number := _finite(value)) is not None:
                metrics[key] = number
    return metrics


def _curves(entries: list[dict[str, Any]]) -> dict[str, Curve]:
    """``loss`` and each ``eval_*loss`` of a trainer_state.json's log_history or of a trainer_log.jsonl. Where a
    training was resumed and repeated steps, the last value of a step counts."""
    found: dict[str, dict[int, float]] = {}
    for entry in entries:
        step = entry.get("step", entry.get("current_steps"))
        for key, value in entry.items():
            is_loss = key == "loss" or (key.startswith("eval_") and key.endswith("loss"))
            if is_loss and type(step) is int and (number := _finite(value)) is not None:
                found.setdefault(key, {})[step] = number
    return {key: thin(tuple(sorted(points.items())), MAX_CURVE) for key, points in found.items()}


def _versions(*sources: Mapping[str, Any]) -> dict[str, str]:
    """Tools and their versions; a later source wins."""
    return {name: found for source in sources for name, found in source.items() if isinstance(found, str)}


def _datasets(names: Iterable[str], training: Mapping[str, Any], config: Path) -> tuple[Dataset, ...]:
    folder = _folder(training.get("dataset_dir", "data"), config) if training else None
    info = _json(folder / "dataset_info.json") if folder else {}
    found = datasets.describe(names, folder, info)
    return tuple(replace(each, info=redact(each.info)) for each in found)


def _folder(value: Any, config: Path | None) -> Path | None:
    """The folder that a path in a configuration means: LLaMA-Factory takes it from the working directory; else it is
    taken from the configuration's own folder. None where there is none."""
    if not isinstance(value, str) or not value or config is None:
        return None
    for start in (Path.cwd(), config.absolute().parent):
        if is_folder(start / value):
            return start / value
    return None


def _names(value: Any) -> list[str]:
    """LLaMA-Factory's lists: "a,b" or [a, b]."""
    entries = value.split(",") if isinstance(value, str) else _list(value)
    return [name for entry in entries if (name := str(entry).strip())]


def _trained(folder: Path | None) -> Path | None:
    """The folder if a training wrote it: a base model's own card and records say nothing about this training."""
    return folder if folder and is_file(folder / "trainer_state.json") else None


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _string(*values: Any) -> str | None:
    """The first that is a string with something in it."""
    return next((_SECRET_VALUE.sub(REDACTED, v) for v in values if isinstance(v, str) and v), None)


def _finite(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _clean(value: Any, depth: int = 0) -> Any:
    """What JSON read, without what a record cannot hold: lone surrogates; NaN, infinities and what is nested more
    deeply than any record of a training (then None)."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if depth == MAX_DEPTH:
        return None
    if isinstance(value, dict):
        return {_clean(key): _clean(entry, depth + 1) for key, entry in value.items()}
    if isinstance(value, list):
        return [_clean(entry, depth + 1) for entry in value]
    return value if value is None or isinstance(value, bool | int) else _finite(value)


def _board_config(path: Path) -> dict[str, Any]:
    try:
        return read_config(path)
    except (UsageError, NotFound, LocalDiskError):
        return {}


def _json(path: Path) -> dict[str, Any]:
    """A record of the training, or nothing if it is not there or broken."""
    try:
        return _clean(read_object(path))  # type: ignore[no-any-return]
    except (NotFound, LocalDiskError, Malformed):
        return {}


def _text(path: Path) -> str:
    try:
        return read_bytes(path, limit=MAX_DOCUMENT).decode("utf-8", "replace")
    except (NotFound, LocalDiskError, Malformed):
        return ""


def _jsonl(path: Path) -> list[dict[str, Any]]:
    entries = []
    for line in _text(path).splitlines():
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(entry, dict):
            entries.append(_clean(entry))
    return entries
