"""What training left behind about how a model was made.

Sources, in falling order of trust: the configurations that the user gives (LLaMA-Factory does not copy them into its
output), then the records in the training's directory, then its model card. A record that is missing or broken makes
its facts unknown; only a configuration that was asked for and cannot be read is an error.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from hashlib import file_digest
from pathlib import Path
from typing import Any

from packtrain.errors import LocalDiskError, NotFound, UsageError
from packtrain.model.lineage import Dataset, Lineage
from packtrain.training.checkpoint import ADAPTER_CONFIG
from packtrain.training.documents import (
    MAX_DOCUMENT,
    Malformed,
    is_file,
    is_folder,
    open_regular,
    printable,
    read_bytes,
    read_config,
    read_object,
)

MAX_CURVE = 2000  # points of a loss curve
REDACTED = "(redacted)"

_HYPERPARAMETERS = (
    "learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps",
    "lr_scheduler_type", "warmup_ratio", "warmup_steps", "weight_decay", "max_grad_norm", "optim", "seed", "bf16",
    "fp16", "pure_bf16", "cutoff_len", "packing", "neat_packing", "mask_history", "train_on_prompt", "max_samples",
    "val_size", "quantization_bit", "flash_attn", "rope_scaling", "deepspeed", "neftune_noise_alpha", "pref_beta",
    "pref_loss", "pref_ftx",
)  # fmt: skip
_LORA = {  # ours: (adapter_config.json's, the training YAML's)
    "rank": ("r", "lora_rank"),
    "alpha": ("lora_alpha", "lora_alpha"),
    "dropout": ("lora_dropout", "lora_dropout"),
    "targets": ("target_modules", "lora_target"),
    "rslora": ("use_rslora", "use_rslora"),
    "dora": ("use_dora", "use_dora"),
    "modules_to_save": ("modules_to_save", "additional_target"),
}
_TOOLS = {"PEFT": "peft", "Transformers": "transformers", "Pytorch": "torch", "Datasets": "datasets",
          "Tokenizers": "tokenizers"}  # fmt: skip
_TOOL_LINE = re.compile(rf"^- ({'|'.join(_TOOLS)}):? (\d[\w.+-]*)\s*$", re.MULTILINE)
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
) -> Lineage:
    """The lineage of what ``checkpoint_dir`` holds.

    Without ``training_dir`` it is the (last) adapter that the export configuration names, else the training
    configuration's output_dir, else the trained model that was exported, else the checkpoint's own directory (an
    adapter, or a full fine-tuning). Raises UsageError and
    NotFound for configurations and a training directory that were given and cannot be read.
    """
    if training_dir is not None and not is_folder(training_dir):
        raise NotFound(f"the training directory {printable(str(training_dir))} does not exist")
    merge = read_config(export_config) if export_config else {}
    training = read_config(training_config) if training_config else {}
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
    training = training or _board_config(board)
    adapter_config = _json(source / ADAPTER_CONFIG)
    state = _json(source / "trainer_state.json")
    results = _json(source / "train_results.json") | _json(source / "eval_results.json")
    results |= _json(source / "all_results.json")
    card = _text(source / "README.md")
    history = [entry for entry in _list(state.get("log_history")) if isinstance(entry, dict)]
    steps = state.get("global_step")
    return Lineage(
        base_model=_string(
            merge.get("model_name_or_path") if adapters else None,
            training.get("model_name_or_path"),
            adapter_config.get("base_model_name_or_path"),
            _card_base(card),
            merge.get("model_name_or_path"),
        ),
        adapter=_string(", ".join(adapters)),
        datasets=_datasets(training, config, card),
        template=_string(training.get("template"), merge.get("template")),
        stage=_string(training.get("stage")),
        finetuning_type=_string(
            training.get("finetuning_type"), "lora" if adapter_config else None, merge.get("finetuning_type")
        ),
        lora=_lora(adapter_config, training),
        hyperparameters={key: redact(training[key]) for key in _HYPERPARAMETERS if training.get(key) is not None},
        metrics=_metrics(history, results),
        loss_curve=_thin(list(_curve(history)) or list(_curve(_jsonl(source / "trainer_log.jsonl")))),
        steps=steps if type(steps) is int else None,
        epochs=_finite(state.get("epoch", results.get("epoch"))),
        tools=_tools(card, adapter_config, _json(checkpoint_dir / "config.json")),
        git_revision=_git_revision(training_config.parent) if training_config else None,
        training_config=redact(training),
        export_config=redact(merge),
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
        return sorted(_clean(entry) for entry in value if isinstance(entry, str))
    if isinstance(value, str):
        return _clean(value)
    return value if isinstance(value, bool | int) else _finite(value)


def _metrics(history: list[dict[str, Any]], results: Mapping[str, Any]) -> dict[str, float]:
    """train_*, eval_* and the like; the results of the whole run win over what was logged on the way."""
    metrics = {}
    for record in (*history, results):
        for key, value in record.items():
            if key.startswith(("train_", "eval_", "predict_")) and (number := _finite(value)) is not None:
                metrics[_clean(key)] = number
    return metrics


def _curve(entries: list[dict[str, Any]]) -> Iterator[tuple[int, float]]:
    """(step, training loss) of a trainer_state.json's log_history or of a trainer_log.jsonl."""
    for entry in entries:
        step, loss = entry.get("step", entry.get("current_steps")), _finite(entry.get("loss"))
        if type(step) is int and loss is not None:
            yield step, loss


def _thin(curve: list[tuple[int, float]]) -> tuple[tuple[int, float], ...]:
    """At most `MAX_CURVE` points, evenly chosen, the first and the last among them."""
    if len(curve) <= MAX_CURVE:
        return tuple(curve)
    return tuple(curve[round(i * (len(curve) - 1) / (MAX_CURVE - 1))] for i in range(MAX_CURVE))


def _tools(card: str, adapter_config: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, str]:
    tools = {_TOOLS[name]: version for name, version in _TOOL_LINE.findall(card)}
    for name, version in (
        ("peft", adapter_config.get("peft_version")),
        ("transformers", config.get("transformers_version")),
    ):
        if isinstance(version, str):
            tools.setdefault(name, _clean(version))
    return tools


def _card_base(card: str) -> str | None:
    found = re.search(r"^base_model: *[\"']?([^\s\"'\[\]]+)", card, re.MULTILINE)
    return found[1] if found else None


def _card_datasets(card: str) -> list[str]:
    """From the sentence that transformers writes: "... on the a, the b and the c datasets."."""
    found = re.search(r"^This model is a fine-tuned version of .* on (the .+) datasets?\.$", card, re.MULTILINE)
    return re.split(r",? and the |, the ", found[1].removeprefix("the ")) if found else []


def _datasets(training: Mapping[str, Any], config: Path, card: str) -> tuple[Dataset, ...]:
    names = _names(training.get("dataset")) or _card_datasets(card)
    place = training.get("dataset_dir", "data")
    folder = _folder(place, config) if training else None
    info = _json(folder / "dataset_info.json") if folder else {}
    return tuple(Dataset(_clean(name), _digests(folder, info.get(name))) for name in names)


def _digests(folder: Path | None, entry: Any) -> dict[str, str]:
    """SHA-256 of each of a dataset's files that are here, by its name in dataset_info.json."""
    name = entry.get("file_name") if isinstance(entry, dict) else None
    if folder is None or not isinstance(name, str) or not name:
        return {}
    place = folder / name
    files = {name: place}
    if is_folder(place):
        with contextlib.suppress(OSError):
            files = {f"{name}/{path.name}": path for path in sorted(place.iterdir())}
    return {_clean(name): digest for name, path in files.items() if (digest := _sha256(path))}


def _sha256(path: Path) -> str | None:
    try:
        with open_regular(path) as file:
            return file_digest(file, "sha256").hexdigest()
    except (NotFound, LocalDiskError, OSError, ValueError):  # ValueError: a NUL in the name
        return None


def _git_revision(folder: Path) -> str | None:
    """The commit that is checked out there, if git is here and knows."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    try:
        found = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "--verify", "HEAD"],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=10,
            check=True,
        )
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    revision = found.stdout.decode("ascii", "replace").strip()
    return revision if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", revision) else None


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
    return next((_SECRET_VALUE.sub(REDACTED, _clean(v)) for v in values if isinstance(v, str) and v), None)


def _finite(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _clean(text: str) -> str:
    """Without lone surrogates, which JSON can hold and UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _board_config(path: Path) -> dict[str, Any]:
    try:
        return read_config(path)
    except (UsageError, NotFound, LocalDiskError):
        return {}


def _json(path: Path) -> dict[str, Any]:
    """A record of the training, or nothing if it is not there or broken."""
    try:
        return read_object(path)
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
            entries.append(entry)
    return entries
