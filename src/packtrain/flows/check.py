"""Whether a directory could be served, without publishing it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from packtrain.flows import bases
from packtrain.model.finding import Finding
from packtrain.ports import Registry, Reporter, Store
from packtrain.training.checkpoint import ADAPTER_CONFIG, Checkpoint, inspect
from packtrain.training.documents import file_size, is_folder
from packtrain.training.preflight import in_order, preflight
from packtrain.training.preflight.scan import scan


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a check found. ``files`` are those that a publish would take, ``size`` their bytes, ``left`` the paths that
    it would leave behind. ``scanned``: every number of the weights was looked at."""

    directory: Path
    kind: str
    files: int
    size: int
    left: tuple[str, ...]
    scanned: bool
    findings: tuple[Finding, ...]

    @property
    def refused(self) -> bool:
        return any(finding.level == "refuse" for finding in self.findings)


def check(
    store: Store,
    registry: Registry,
    directory: Path,
    *,
    base: str | None,
    allow_code: bool,
    every_number: bool,
    reporter: Reporter,
) -> Verdict:
    """Reads what preflight reads, and the weights only for ``every_number``. The store and the registry are asked for
    nothing but a published base."""
    checkpoint = inspect(directory)
    modules = bases.modules(checkpoint, base, store, registry)
    findings = [*preflight(checkpoint, allow_code=allow_code, base=modules, whole=every_number)]
    if every_number:
        findings += scan(checkpoint, reporter)
    if every_number or not _would_be_read(checkpoint, base):
        unpublished = bases.resolve(checkpoint, base, registry, reporter).finding(checkpoint.kind)
        findings += [unpublished] if unpublished else []
    return Verdict(
        directory=directory,
        kind=checkpoint.kind,
        files=len(checkpoint.taken),
        size=sum(file_size(checkpoint.directory / path) for path in checkpoint.taken),
        left=tuple(left.path for left in checkpoint.left),
        scanned=every_number,
        findings=in_order(findings),
    )


def _would_be_read(checkpoint: Checkpoint, given: str | None) -> bool:
    """Whether one must read a folder of weights to know if it is published."""
    named = given or checkpoint.document(ADAPTER_CONFIG).get("base_model_name_or_path")
    return isinstance(named, str) and is_folder(Path(named))
