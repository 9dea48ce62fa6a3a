"""A LLaMA-Factory output directory: which of its files are the model, and which are the training's own.

Unknown ordinary files are taken, because a model may need a file that no list foresees (a new tokenizer's, a
licence, a prompt). What the training leaves behind is known by name and stays.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from packtrain.errors import IntegrityError, NotFound, Refused, UsageError
from packtrain.model import manifest
from packtrain.model.finding import Finding
from packtrain.training.documents import Malformed, disk_error, is_file, printable, read_bytes, read_object

INDEX = "model.safetensors.index.json"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
MAX_FILES = 10_000  # a 70B model has about 50

# The JSON files that an engine reads before the weights: parsed once, here.
DOCUMENTS = (
    "config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "preprocessor_config.json", "processor_config.json", ADAPTER_CONFIG, INDEX,
)  # fmt: skip

_MODEL_WEIGHTS = re.compile(r"(model|pytorch_model)(\.fp16|\.bf16)?(-\d{5}-of-\d{5})?\.(safetensors|bin)")
_ADAPTER_WEIGHTS = re.compile(r"adapter_model\.(safetensors|bin)")

# What the training leaves behind, by name: folders, then files. The first match tells why.
_LEFT_FOLDERS: tuple[tuple[str, str], ...] = (
    (r"(tmp-)?checkpoint-\d+", "an intermediate checkpoint of the training"),
    (r"global_step\d+", "DeepSpeed's optimizer state"),
    (r"pytorch_model_fsdp_\d+|optimizer_\d+", "FSDP's training state"),
    (r"runs|tensorboard|wandb|mlruns|swanlog|trackio", "logs of the training"),
    (r"__pycache__", "compiled Python"),
)
_LEFT_FILES: tuple[tuple[str, str], ...] = (
    (r"training_args\.(bin|yaml)|llamaboard_config\.yaml|swanlab_public_config\.json", "the training's settings"),
    (r"optimizer(_\d+)?\.(pt|bin)|scheduler\.(pt|bin)|scaler\.pt|zero_to_fp32\.py|latest", "the training's state"),
    (r"rng_state(_\d+)?\.pth|random_states_\d+\.pkl", "the training's random state"),
    (r"trainer_state\.json|trainer_log\.jsonl|running_log\.txt|.*\.log|events\.out\.tfevents\..*", "a log"),
    (r"(all|train|eval|predict|test)_results\.json|generated_predictions\.jsonl", "results of the training"),
    (r"training_.*\.(png|svg)", "a plot of the training"),
    (r"registered_model_meta", "a note of MLflow's client"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Left:
    """A file or folder (with a slash at its end) that does not belong to the model. ``path`` is for display."""

    path: str
    why: str


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A directory before it is published.

    ``taken`` are relative POSIX paths of regular files, sorted. ``documents`` are those of `DOCUMENTS` that are
    there and parse. ``findings`` are what stopped files from being either taken or left; `preflight` repeats them.
    """

    directory: Path
    kind: str  # "merged" or "adapter"
    taken: tuple[str, ...]
    left: tuple[Left, ...]
    findings: tuple[Finding, ...] = ()
    documents: Mapping[str, dict[str, Any]] = field(default_factory=dict)

    def document(self, name: str) -> dict[str, Any]:
        """A parsed document, or an empty one."""
        return self.documents.get(name, {})


def inspect(directory: Path) -> Checkpoint:
    """Reads a directory that LLaMA-Factory wrote (or any Hugging Face model or LoRA adapter).

    Raises NotFound, UsageError, LocalDiskError, and Refused for a directory that is not one model.
    """
    try:
        mode = directory.stat().st_mode
    except FileNotFoundError as error:
        raise NotFound(f"the directory {printable(str(directory))} does not exist") from error
    except OSError as error:
        raise disk_error(directory, error) from error
    if not stat.S_ISDIR(mode):
        raise UsageError(
            f"{printable(str(directory))} is not a directory", hint="Give the folder that holds the model."
        )
    directory = directory.resolve()
    kind = _kind_of(directory)
    taken, left, findings = _Walk(directory).sort()
    documents = {}
    for name in sorted(taken.intersection(DOCUMENTS)):
        try:
            documents[name] = read_object(directory / name)
        except Malformed as error:
            fix = "Export again; if it comes from the base model, repair or download it there."
            findings.append(Finding("refuse", "json-invalid", name, str(error), fix))
    return Checkpoint(directory, kind, tuple(sorted(taken)), tuple(left), tuple(findings), documents)


def _kind_of(directory: Path) -> str:
    names = [entry.name for entry in _scan(directory)]
    whole = any(_MODEL_WEIGHTS.fullmatch(name) for name in names) or INDEX in names
    adapter = ADAPTER_CONFIG in names or any(_ADAPTER_WEIGHTS.fullmatch(name) for name in names)
    if whole and adapter:
        raise Refused(
            f"{printable(str(directory))} holds a whole model and an adapter",
            hint=f"Publish them from two directories: move {ADAPTER_CONFIG} and adapter_model.* into their own.",
        )
    if adapter:
        return "adapter"
    if whole or "config.json" in names or any(name.endswith(".safetensors") for name in names):
        return "merged"
    raise Refused(f"{printable(str(directory))} holds no model and no adapter", hint=_elsewhere(directory))


def _elsewhere(directory: Path) -> str:
    """Where the user may have meant: the folders below that do hold a model."""
    below = sorted(
        entry.name
        for entry in _scan(directory)
        if entry.is_dir(follow_symlinks=False)
        and any(is_file(Path(entry.path) / name) for name in ("config.json", ADAPTER_CONFIG))
    )
    if below:
        return f"Did you mean one of its folders: {', '.join(printable(name) for name in below[:5])}?"
    return "Give the export_dir of a merge, or the output_dir of a training."


class _Walk:
    """Sorts what is in a directory into taken, left and findings."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.earlier = _generated_earlier(directory)
        self.taken: set[str] = set()
        self.left: list[Left] = []
        self.findings: list[Finding] = []

    def sort(self) -> tuple[set[str], list[Left], list[Finding]]:
        folders = [""]
        while folders:
            prefix = folders.pop()
            for entry in sorted(_scan(self.directory / prefix), key=lambda entry: entry.name):
                path = prefix + entry.name
                if self._classify(path, entry) == "folder":
                    folders.append(path + "/")
            if len(self.taken) > MAX_FILES:
                raise Refused(
                    f"{printable(str(self.directory))} holds more than {MAX_FILES} files",
                    hint="Give the folder of one model.",
                )
        return self.taken, sorted(self.left, key=lambda left: left.path), self.findings

    def _classify(self, path: str, entry: os.DirEntry[str]) -> str:
        try:
            mode = entry.stat(follow_symlinks=False).st_mode
        except OSError as error:
            raise disk_error(Path(entry.path), error) from error
        folder = stat.S_ISDIR(mode)
        if why := _why_left(entry.name, mode) or self.earlier.get(path):
            self.left.append(Left(printable(path) + "/" * folder, why))
        elif problem := manifest.unsafe_path(path):
            self._refuse("unsafe-path", path, f"its path {problem}", "Rename it, or move it out of the directory.")
        elif folder:
            return "folder"
        elif stat.S_ISREG(mode) or (stat.S_ISLNK(mode) and self._stays_inside(Path(entry.path))):
            self.taken.add(path)
        elif stat.S_ISLNK(mode):
            fix = (
                f"Copy the model with its links followed (cp -rL {printable(str(self.directory))} COPY), publish COPY."
            )
            self._refuse("symlink", path, "is a link that does not lead to a file of this directory", fix)
        else:
            self._refuse("special-file", path, "is a pipe, socket or device", "Remove it from the directory.")
        return "file"

    def _stays_inside(self, link: Path) -> bool:
        try:
            target = link.resolve(strict=True)
        except (OSError, RuntimeError):  # broken, or a loop
            return False
        return is_file(target) and target.is_relative_to(self.directory)

    def _refuse(self, code: str, path: str, what: str, fix: str) -> None:
        self.findings.append(Finding("refuse", code, printable(path), what, fix))


def _why_left(name: str, mode: int) -> str | None:
    if name.startswith("."):
        return "hidden"
    patterns = _LEFT_FOLDERS if stat.S_ISDIR(mode) else _LEFT_FILES
    if stat.S_ISLNK(mode):  # to either; it is not followed to see
        patterns = _LEFT_FOLDERS + _LEFT_FILES
    for pattern, why in patterns:
        if re.fullmatch(pattern, name):
            return why
    return None


def _generated_earlier(directory: Path) -> dict[str, str]:
    """What an earlier publish added, if this directory is a published version (a snapshot, say): the manifest, and
    the files that it says were generated. Without them the payload is the same again."""
    path = directory / manifest.FILE_NAME
    if not is_file(path):
        return {}
    earlier = {manifest.FILE_NAME: "the manifest of an earlier publish"}
    try:
        files = manifest.Manifest.decode(read_bytes(path, limit=manifest.MAX_BYTES)).files
    except (IntegrityError, Malformed):
        return earlier
    return earlier | {file.path: "written by an earlier publish" for file in files if file.generated}


def _scan(directory: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as entries:
            yield from entries
    except OSError as error:
        raise disk_error(directory, error) from error
