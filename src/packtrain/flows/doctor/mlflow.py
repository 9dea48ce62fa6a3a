"""The MLflow server: whether it answers, what is allowed there, whether it takes our sources, and what it shows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from packtrain.errors import PacktrainError, Refused
from packtrain.flows.doctor.check import Check, failure, ok, warning
from packtrain.model.digest import Digest
from packtrain.model.version import version_prefix
from packtrain.ports import Registry, Store
from packtrain.registry.mlflow import Mlflow

PROBE = "packtrain-doctor-"


def examine(mlflow: Mlflow, store: Store, registry: Registry, nonce: str) -> Iterator[Check]:
    """Ends after the first step that fails. ``nonce`` names the probe."""
    try:
        found = mlflow.server_version()
        sum(1 for _ in mlflow.models())
        yield ok("mlflow", f"{mlflow.url} answers, version {found}")
    except PacktrainError as error:
        yield failure("mlflow", error)
        return
    try:
        yield _try_out(mlflow, store, f"{PROBE}{nonce}")
    except PacktrainError as error:
        yield failure("mlflow sources", error)
        return
    try:
        yield from _shown(registry)
    except PacktrainError as error:
        yield failure("mlflow models", error)


def _try_out(mlflow: Mlflow, store: Store, name: str) -> Check:
    """Registers a version that lies where real ones do, sets an alias, and deletes all of it: the server looks at the
    path of a source as if it were one of its own disk, and refuses some."""
    source = store.locate(version_prefix(name, Digest.of(name.encode()))).rstrip("/")
    try:
        mlflow.create_model(name, "A probe of packtrain doctor; it may be deleted.")
    except Refused as error:
        return warning(
            "mlflow sources",
            f"not allowed to register: {error.message}",
            f"A machine that only pulls and serves needs no more. To publish and promote from here: {error.hint}",
        )
    try:
        number = mlflow.create_version(name, source, run_id=None, tags={})
        mlflow.set_alias(name, "probe", number)
    except Refused as error:
        error.hint = (
            "If it is about the source: the server refuses a path that is a link on its own disk (/lib, /var/run) "
            "and what its operator's MLFLOW_CREATE_MODEL_VERSION_SOURCE_VALIDATION_REGEX does not allow. "
            f"{store.url} must be a prefix that it takes."
        )
        raise
    finally:
        with suppress(PacktrainError):
            mlflow.delete_model(name)
    return ok("mlflow sources", f"it takes versions and aliases under {store.url}")


def _shown(registry: Registry) -> Iterator[Check]:
    """Whether MLflow shows what the ledgers say; what was begun and not finished was finished by reading it."""
    names = registry.names()
    wrong = list[Check]()
    for name in names:
        mirror = registry.read(name).state.mirror
        if mirror.created is None:
            wrong.append(warning("mlflow models", f"{name} is not in MLflow", f"packtrain register {name}"))
        elif mirror.unsettled or mirror.intents:
            waits = [*(f"@{alias}" for alias in mirror.unsettled), *(i.digest[:12] for i in mirror.intents.values())]
            wrong.append(
                warning(
                    "mlflow models",
                    f"{name}: MLflow does not show {', '.join(waits)} as the ledger has it",
                    f"If this stays: packtrain history {name}, and the notes of packtrain show {name}.",
                )
            )
    yield from wrong or [
        ok("mlflow models", f"{len(names)}, as the ledgers say" if names else "nothing is published yet")
    ]
