"""Whether an engine could serve a checkpoint: small checks over what was read once.

Each check takes the `View` and yields findings. docs/preflight.md documents every code, and a test keeps it so.

view          what the checks look at
files         pickles, custom code, large strangers
shards        the files of weights and their index
config        config.json
tensors       names, shapes and types against config.json, by the tables of `architecture` and `quantisation`
tokenizer     the tokenizer and what else an answer needs
adapter       a LoRA against its configuration (`lora`), its `base` and what vLLM takes
scan          numbers that are none, in every byte of the weights
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from packtrain.model.finding import Finding
from packtrain.training.checkpoint import Checkpoint
from packtrain.training.preflight.adapter import check_adapter, check_adapter_config
from packtrain.training.preflight.base import Base
from packtrain.training.preflight.config import check_config
from packtrain.training.preflight.files import check_custom_code, check_large_unknown, check_pickle
from packtrain.training.preflight.shards import (
    check_headers,
    check_index,
    check_one_set_of_weights,
    check_total_size,
    check_weights_are_there,
)
from packtrain.training.preflight.tensors import (
    check_dtype,
    check_quantisation,
    check_tensors,
    check_tied,
    check_vocabulary,
)
from packtrain.training.preflight.tokenizer import (
    check_chat_template,
    check_generation_config,
    check_processor,
    check_stop_tokens,
    check_tokenizer,
    check_tokenizer_files,
)
from packtrain.training.preflight.view import View, look

Check = Callable[[View], Iterator[Finding]]

FILES: tuple[Check, ...] = (
    check_pickle,
    check_custom_code,
    check_large_unknown,
    check_config,
    check_adapter_config,
    check_tokenizer,
    check_tokenizer_files,
    check_chat_template,
    check_generation_config,
    check_stop_tokens,
    check_processor,
)
WEIGHTS: tuple[Check, ...] = (
    check_weights_are_there,
    check_headers,
    check_one_set_of_weights,
    check_index,
    check_total_size,
)
TENSORS: tuple[Check, ...] = (
    check_quantisation,
    check_tensors,
    check_vocabulary,
    check_dtype,
    check_tied,
    check_adapter,
)


def preflight(
    checkpoint: Checkpoint, *, allow_code: bool, base: Base | None = None, whole: bool = False
) -> tuple[Finding, ...]:
    """All findings, refusals first. None that refuses means that the checkpoint may be published.

    Reads documents and the headers of the safetensors files; of tensors that must be equal 4 MiB, or all of them for
    ``whole``. ``base`` is what an adapter was trained on, where it is known. Raises NotFound if a file vanished
    meanwhile, LocalDiskError.
    """
    view = look(checkpoint, allow_code=allow_code, base=base, whole=whole)
    weights = _run(WEIGHTS, view)
    complete = not any(finding.level == "refuse" for finding in [*checkpoint.findings, *weights])
    tensors = _run(TENSORS, view) if complete else []  # against part of the weights they would say what is not so
    return in_order([*checkpoint.findings, *_run(FILES, view), *weights, *tensors])


def in_order(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Refusals first, then by file."""
    return tuple(sorted(findings, key=lambda finding: (finding.level != "refuse", finding.where, finding.code)))


def _run(checks: Iterable[Check], view: View) -> list[Finding]:
    return [finding for check in checks for finding in check(view)]
