"""What MLflow is told about a version: a few small tags, and the training run that it came from.

The run is LLaMA-Factory's own, if it reported to this MLflow (``report_to: mlflow``): the one whose runtime and loss
are those that the training wrote down, to the last digit. Otherwise one is made of the lineage record: parameters,
metrics, curves, datasets as inputs, the configuration and a plot of the losses as artifacts. A training has one run,
however often and from wherever its version is published.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

from packtrain._version import __version__
from packtrain.errors import NotFound, PacktrainError
from packtrain.flows.mirroring import DIGEST, Describe, Entry
from packtrain.model.digest import Digest
from packtrain.model.ledger import State
from packtrain.model.lineage import Dataset, Lineage, record_key
from packtrain.model.mirror import Intent
from packtrain.model.run import TrainingRun
from packtrain.model.version import ModelVersion, version_prefix
from packtrain.ports import Clock, Reporter, Store
from packtrain.registry.mlflow import Mlflow, Run

LONGEST_PARAM = 6000  # characters, MLflow's limit
LONGEST_TAG = 200  # every look at an alias in MLflow gives all tags of its version: they stay small
PROXIED = "mlflow-artifacts:/"  # artifacts that the server keeps

OpenStore = Callable[[str], Store]


def describing(mlflow: Mlflow, store: Store, open_store: OpenStore, reporter: Reporter, clock: Clock) -> Describe:
    """`Describe` for versions of a store. Where a run's artifacts are in a bucket, ``open_store`` opens that."""

    def describe(state: State, intent: Intent) -> Entry:
        lineage = _lineage(store, state, intent)
        run_id = None
        if lineage is not None and lineage.known and intent.version is None:  # what is adopted has its run, or none
            writer = _Writer(mlflow, open_store, reporter, clock.now())
            run_id = writer.run_of(lineage, state.name, intent).id
        return Entry(tags=dict(_tags(store, state.name, intent, lineage)), run_id=run_id)

    return describe


def _lineage(store: Store, state: State, intent: Intent) -> Lineage | None:
    record = state.records.get(Digest(intent.digest), {}).get("lineage")
    return Lineage.decode(store.get(record_key(state.name, record)), expect=record) if record else None


def _tags(store: Store, name: str, intent: Intent, lineage: Lineage | None) -> Iterator[tuple[str, str]]:
    yield "packtrain.kind", str(intent.details["kind"])
    yield "packtrain.size", str(intent.details["size"])
    yield "packtrain.actor", intent.actor[:LONGEST_TAG]
    yield "packtrain.version", __version__
    if base := intent.details.get("base"):
        yield "packtrain.base", f"{base['name']}/{base['version']}"
    if dtype := _dtype(store, name, intent):
        yield "packtrain.dtype", dtype
    if lineage is not None:
        if lineage.base is not None:
            yield "packtrain.base_model", str(lineage.base)[:LONGEST_TAG]
        tools = {**lineage.tools, **lineage.export_tools}
        if tools:
            yield "packtrain.tools", ", ".join(f"{tool} {tools[tool]}" for tool in sorted(tools))[:LONGEST_TAG]


def _dtype(store: Store, name: str, intent: Intent) -> str | None:
    try:
        config = json.loads(store.get(version_prefix(name, Digest(intent.digest)) + "config.json"))
    except (NotFound, ValueError):
        return None
    found = config.get("dtype") or config.get("torch_dtype") if isinstance(config, dict) else None
    return found if isinstance(found, str) else None


def follow(mlflow: Mlflow | None, version: ModelVersion, reporter: Reporter) -> TrainingRun | None:
    """The training run that MLflow links a version to. None, and a note, if MLflow cannot be asked."""
    if mlflow is None:
        return None
    try:
        run_id = mlflow.version(version.name, version.number).run_id
        if not run_id:
            return None
        run = mlflow.run(run_id)
        losses = [key for key in run.metrics if key == "loss" or (key.startswith("eval_") and key.endswith("loss"))]
        return TrainingRun(
            id=run.id,
            url=mlflow.page(run),
            status=run.status,
            metrics=run.metrics,
            curves={key: tuple(mlflow.metric(run.id, key)) for key in sorted(losses)},
            datasets=run.datasets,
            artifacts=tuple(mlflow.artifacts(run.id)),
        )
    except NotFound:
        return None  # deleted there
    except PacktrainError as error:
        reporter.note(f"warning: the training run of {version} is not known: {error}")
        return None


class _Writer:
    """Finds or makes the run of a training."""

    def __init__(self, mlflow: Mlflow, open_store: OpenStore, reporter: Reporter, now: datetime) -> None:
        self._mlflow = mlflow
        self._open_store = open_store
        self._reporter = reporter
        self._now = int(now.timestamp() * 1000)

    def run_of(self, lineage: Lineage, name: str, intent: Intent) -> Run:
        digest = f"sha256:{intent.digest}"
        everywhere = self._mlflow.experiments()
        if ours := self._mlflow.runs(everywhere, f"tags.`{DIGEST}` = '{digest}'"):
            return ours[0]
        runtime, loss = lineage.metrics.get("train_runtime"), lineage.metrics.get("train_loss")
        if runtime is not None and loss is not None:
            query = f"metrics.train_runtime = {runtime!r} and metrics.train_loss = {loss!r}"
            if theirs := self._mlflow.runs(everywhere, query):
                self._reporter.note(f"its training run in MLflow: {self._mlflow.page(theirs[0])}")
                return theirs[0]
        return self._make(lineage, name, intent, digest)

    def _make(self, lineage: Lineage, name: str, intent: Intent, digest: str) -> Run:
        run = self._mlflow.create_run(
            self._mlflow.experiment(name),
            f"training of {name} {intent.digest[:12]}",
            start=self._now - int(1000 * lineage.metrics.get("train_runtime", 0)),
            user=intent.actor,
            tags={DIGEST: digest, "mlflow.source.name": "packtrain", "mlflow.source.type": "LOCAL"},
        )
        self._mlflow.log(run.id, params=dict(_params(lineage)), metrics=list(self._metrics(lineage)))
        if datasets := list(_inputs(lineage)):
            self._mlflow.log_inputs(run.id, datasets)
        try:
            for file, data in _artifacts(lineage):
                self._put(run, file, data)
        except PacktrainError as error:
            self._reporter.note(f"warning: the run {run.id} in MLflow lacks artifacts: {error}")
        self._mlflow.finish_run(run.id, self._now)
        self._reporter.note(f"its training run in MLflow: {self._mlflow.page(run)}")
        return run

    def _metrics(self, lineage: Lineage) -> Iterator[tuple[str, float, int, int]]:
        for key, curve in sorted(lineage.curves.items()):
            yield from ((key, value, self._now, step) for step, value in curve)
        for key, value in sorted(lineage.metrics.items()):
            if key not in lineage.curves:
                yield key, value, self._now, lineage.steps or 0

    def _put(self, run: Run, file: str, data: bytes) -> None:
        if run.artifacts.startswith(PROXIED):
            self._mlflow.put_artifact(f"{run.artifacts.removeprefix(PROXIED).strip('/')}/{file}", data)
            return
        self._open_store(run.artifacts).upload(file, [data], len(data))


def _params(lineage: Lineage) -> Iterator[tuple[str, str]]:
    facts: dict[str, Any] = {
        "base_model": str(lineage.base) if lineage.base else None,
        "stage": lineage.stage,
        "finetuning_type": lineage.finetuning_type,
        "template": lineage.template,
        "dataset": ",".join(each.name for each in lineage.datasets),
        "git_revision": lineage.git_revision,
        **{f"lora_{key}": value for key, value in lineage.lora.items()},
        **lineage.hyperparameters,
    }
    for key, value in sorted(facts.items()):
        if value not in (None, ""):
            yield key, (value if isinstance(value, str) else json.dumps(value))[:LONGEST_PARAM]


def _inputs(lineage: Lineage) -> Iterator[dict[str, Any]]:
    """Datasets as MLflow's dataset inputs: each with the digest of its files, as far as they were at hand."""
    for context, datasets in (("training", lineage.datasets), ("evaluation", lineage.eval_datasets)):
        for each in datasets:
            yield {
                "tags": [{"key": "mlflow.data.context", "value": context}],
                "dataset": {
                    "name": each.name,
                    "digest": _dataset_digest(each)[:36],  # MLflow's limit
                    "source_type": "hugging_face" if "hf_hub_url" in each.info else "local",
                    "source": json.dumps(_dataset_source(each)),
                    "profile": json.dumps({"files": each.files}),
                },
            }


def _dataset_digest(dataset: Dataset) -> str:
    if len(dataset.files) == 1:
        return next(iter(dataset.files.values()))
    return Digest.of(json.dumps([dataset.files, dataset.info], sort_keys=True).encode()).hex


def _dataset_source(dataset: Dataset) -> dict[str, Any]:
    if path := dataset.info.get("hf_hub_url"):
        return {"path": path}
    return {"uri": ", ".join(sorted(dataset.files)) or dataset.name}


def _artifacts(lineage: Lineage) -> Iterator[tuple[str, bytes]]:
    import yaml

    for file, config in (("training.yaml", lineage.training_config), ("export.yaml", lineage.export_config)):
        if config:
            yield file, yaml.safe_dump(config, sort_keys=False, allow_unicode=True).encode()
    if lineage.curves:
        from packtrain.pictures.svg import plot

        yield "loss.svg", plot(lineage).encode()
