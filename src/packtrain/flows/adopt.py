"""What a team already has, in a folder or in a bucket, becomes a version. The source is only read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from packtrain.errors import AlreadyExists, UsageError
from packtrain.flows.foreign import source_of
from packtrain.flows.mirroring import MirroringRegistry
from packtrain.flows.publish import Published, Request, publish, publish_checkpoint
from packtrain.flows.staging import staged
from packtrain.model.lineage import Lineage
from packtrain.model.reference import Reference
from packtrain.ports import Clock, Registry, Reporter, Store
from packtrain.registry.mlflow import Mlflow
from packtrain.training.checkpoint import inspect


def adopt(
    store: Store,
    registry: Registry,
    source: Path | Store,
    request: Request,
    *,
    scratch: Path,
    reporter: Reporter,
    clock: Clock,
) -> Published:
    """`publish`, from a folder or from everything that another store (a bucket's prefix) holds.

    ``request.directory`` is not looked at. The source is hashed, copied (by the store itself where it can), and must
    be what it was when it was listed before the copy gets a name. ``scratch`` is a folder of this machine for the
    headers and small files of a prefix.
    """
    if isinstance(source, Path):
        request = replace(request, directory=source)
        published = publish(store, registry, request, reporter=reporter, clock=clock)
    else:
        with staged(source, scratch, reporter, clock) as (directory, origin):
            request = replace(request, directory=directory)
            published = publish_checkpoint(store, registry, request, inspect(directory), origin, reporter, clock)
    if (published.created or published.version is None) and _is_unknown(published.lineage):
        reporter.note(
            "its lineage is unknown: no records of the training lie there (--training-config, --training-dir)"
        )
    return published


def adopt_registered(
    store: Store,
    registry: Registry,
    mlflow: Mlflow | None,
    open_store: Callable[[str], Store],
    reference: Reference,
    request: Request,
    *,
    scratch: Path,
    reporter: Reporter,
    clock: Clock,
) -> Published:
    """A version that somebody registered in MLflow without Packtrain becomes one of the ledger, under its number.

    Its bytes are read from where MLflow says that they are, checked and copied into the store like any others. Raises
    AlreadyExists if the ledger has that number.
    """
    if mlflow is None or not isinstance(registry, MirroringRegistry):
        raise no_mlflow(reference)
    if registry.read(reference.name).state.versions.get(reference.version or 0):
        raise AlreadyExists(f"{reference} is in the ledger already", hint=f"See: packtrain show {reference}")
    source = source_of(mlflow, reference, open_store)
    request = replace(request, name=reference.name, force=True)  # MLflow may have the same bytes under two numbers
    adopting = registry.adopting(reference.version or 0)
    return adopt(store, adopting, source, request, scratch=scratch, reporter=reporter, clock=clock)


def target(place: str, name: str | None) -> tuple[str, Reference | None]:
    """The registered model that gets the version, and the version in MLflow that ``place`` names, if it is none of this
    machine's folders and no URL."""
    reference = None
    if "://" not in place and not Path(place).exists():
        try:
            reference = Reference.parse(place)
        except UsageError:
            reference = None
    if reference is None or reference.version is None:
        if name is None:
            raise UsageError("the name of the registered model is missing", hint="Give --name NAME.")
        return name, None
    if name not in (None, reference.name):
        raise UsageError(
            f"{reference} keeps its name and its number when it is adopted, so it cannot become a version of {name}",
            hint="Leave out --name. To publish its bytes under another name: packtrain pull "
            f"{reference} --unverified --to DIR, then packtrain publish DIR --name {name}",
        )
    return reference.name, reference


def no_mlflow(reference: Reference) -> UsageError:
    return UsageError(
        f"{reference} is no folder and no bucket, and there is no MLflow server that could have it",
        hint="Name the server: --registry http://mlflow.example.com:5000",
    )


def _is_unknown(lineage: Lineage) -> bool:
    """Whether nothing is known of the training."""
    return not (lineage.base or lineage.datasets or lineage.metrics or lineage.training_config)
