"""Files that must not travel, or need not."""

from __future__ import annotations

from collections.abc import Iterator

from packtrain.model.finding import Finding
from packtrain.model.manifest import PICKLE_SUFFIXES
from packtrain.training.preflight.tokenizer import VOCABULARIES
from packtrain.training.preflight.view import REEXPORT, View, refuse, warn

LARGE_UNKNOWN = 32 << 20  # bytes: an unknown file of this size is worth a word


def check_pickle(view: View) -> Iterator[Finding]:
    for path in view.checkpoint.taken:
        if path.lower().endswith(PICKLE_SUFFIXES):
            fix = f"Remove it: the weights are there as safetensors too. {REEXPORT}" if view.headers else REEXPORT
            yield refuse("pickle", path, "is a pickle format: opening it can run code", fix)


def check_custom_code(view: View) -> Iterator[Finding]:
    """A refusal; with ``allow_code`` a warning, by which publish knows that the ledger must say so."""
    find = warn if view.allow_code else refuse
    fix = "If you have read that code and trust it, publish with --allow-code; the ledger records that."
    if view.allow_code:
        fix = "It was allowed, and the ledger records that."
    for path in view.checkpoint.taken:
        if path.lower().endswith(".py"):
            yield find("custom-code", path, "is code that the engine would run", fix)
    for path, document in sorted(view.checkpoint.documents.items()):
        if document.get("auto_map"):
            yield find("custom-code", path, "names code to load (auto_map)", fix)


def check_large_unknown(view: View) -> Iterator[Finding]:
    for path, size in view.sizes.items():
        known = path.endswith(".safetensors") or path in view.checkpoint.documents or VOCABULARIES.fullmatch(path)
        if size >= LARGE_UNKNOWN and not known and not path.lower().endswith(PICKLE_SUFFIXES):
            what = f"is not a file that an engine is known to need, and has {size} bytes"
            fix = "Move it out of the directory unless the model needs it: it would travel with every pull."
            yield warn("large-unknown", path, what, fix)
