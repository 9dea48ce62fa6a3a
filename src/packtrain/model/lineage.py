"""Where a version came from. What is not known is None or empty, and is shown as unknown.

A lineage record is JSON (UTF-8, sorted keys, finite numbers); the SHA-256 of its bytes is its name in the store,
``records/<model>/<sha256>.json``, and an ``attached`` event names it. Unlike manifests and events, records hold
fractions (losses), so their bytes are hashed as they are stored and never written anew.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, NoReturn

from packtrain.errors import IntegrityError
from packtrain.model.digest import Digest

SCHEMA = "packtrain.lineage/1"

MAX_NUMBER = 1.7976931348623157e308  # what a JSON reader elsewhere can hold

Curve = tuple[tuple[int, float], ...]  # (step, value), by step


@dataclass(frozen=True, slots=True)
class Parent:
    """A model that went into another one: its base, or an adapter that was merged into that."""

    name: str  # as the training wrote it: a path or a Hub repository
    revision: str | None = None  # of the repository, where it was given
    version: str | None = None  # NAME/NUMBER, where it is published
    digest: str | None = None  # sha256:<hex> of its manifest, where it is published
    payload: str | None = None  # sha256:<hex> of its payload, where its files are at hand

    def __str__(self) -> str:
        return self.version or (f"{self.name}@{self.revision}" if self.revision else self.name)


@dataclass(frozen=True, slots=True)
class Dataset:
    """A dataset by its LLaMA-Factory name; ``files`` maps each file at hand to its SHA-256 (hex), and ``info`` is
    its entry in dataset_info.json: where it comes from and how it is read."""

    name: str
    files: dict[str, str] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Lineage:
    """Everything that training left behind about how a version was made."""

    base: Parent | None = None
    adapters: tuple[Parent, ...] = ()  # that were merged into the base, in order
    datasets: tuple[Dataset, ...] = ()
    eval_datasets: tuple[Dataset, ...] = ()
    template: str | None = None
    stage: str | None = None  # sft, dpo, ...
    finetuning_type: str | None = None  # lora, full, freeze, ...
    lora: dict[str, Any] = field(default_factory=dict)  # rank, alpha, targets, ...
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)  # train_loss, eval_loss, eval_accuracy, ...
    curves: dict[str, Curve] = field(default_factory=dict)  # loss, eval_loss, ...
    steps: int | None = None
    epochs: float | None = None
    tools: dict[str, str] = field(default_factory=dict)  # of the training: transformers, torch, peft -> version
    export_tools: dict[str, str] = field(default_factory=dict)  # of the merge: llamafactory, transformers -> version
    git_revision: str | None = None  # of the training repository
    git_dirty: bool | None = None  # whether its tracked files differed from that revision
    contradictions: tuple[str, ...] = ()  # where the configuration and the training's own records differ
    training_config: dict[str, Any] = field(default_factory=dict)  # the training YAML, as it was read
    export_config: dict[str, Any] = field(default_factory=dict)  # the merge YAML

    @property
    def loss(self) -> float | None:
        """The one loss to show in a table: evaluation if there was one, else training."""
        return self.metrics.get("eval_loss", self.metrics.get("train_loss"))

    @property
    def accuracy(self) -> float | None:
        return self.metrics.get("eval_accuracy")

    @property
    def known(self) -> bool:
        """Whether it says anything of a training. What saved the model says nothing of that."""
        return replace(self, export_tools={}) != Lineage()

    def encode(self) -> bytes:
        """The bytes of the record. Raises ValueError for what JSON cannot hold (NaN)."""
        value = {"schema": SCHEMA, **asdict(self)}
        text = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, indent=1)
        return text.encode("utf-8") + b"\n"

    @classmethod
    def decode(cls, data: bytes, *, expect: Digest) -> Lineage:
        """Reads a record whose bytes must have the digest ``expect``. Raises IntegrityError."""
        if Digest.of(data) != expect:
            raise IntegrityError(f"the lineage record {expect} does not hash to its name")
        try:
            value = json.loads(data, parse_float=_float, parse_constant=_refuse_constant)
            json.dumps(value, ensure_ascii=False).encode("utf-8")  # refuses lone surrogates
            if value.get("schema") == SCHEMA:
                return cls._from_json(value)
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise IntegrityError(f"the lineage record {expect} is not valid: {error}") from error
        raise IntegrityError(
            f"the lineage record {expect} has a schema this Packtrain does not read",
            hint="It was written by another version of Packtrain: upgrade this one.",
        )

    @classmethod
    def _from_json(cls, value: dict[str, Any]) -> Lineage:
        found = {key: entry for key, entry in value.items() if key != "schema"}
        if odd := found.keys() ^ _READERS.keys():
            raise ValueError(f"it lacks fields, or has unknown ones: {', '.join(sorted(odd))}")
        return cls(**{key: _READERS[key](entry) for key, entry in found.items()})


def thin(curve: Curve, points: int) -> Curve:
    """At most ``points`` of a curve (2 or more), evenly chosen, the first and the last among them."""
    if len(curve) <= points:
        return curve
    return tuple(curve[round(i * (len(curve) - 1) / (points - 1))] for i in range(points))


def record_key(name: str, digest: Digest) -> str:
    """Where a record of a registered model is in the store."""
    return f"records/{name}/{digest.hex}.json"


# Reading: every value must be of the type that the field declares, so that what shows it can rely on that.


def _is(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise TypeError(f"{str(value)[:40]!r} is not a {kind.__name__}")
    return value


def _number(value: Any) -> float:
    if type(value) not in (int, float) or abs(value) > MAX_NUMBER:
        raise TypeError(f"{str(value)[:40]!r} is not a number")
    return value  # type: ignore[no-any-return]


def _maybe(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else read(value)


def _each(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: tuple(read(entry) for entry in _is(list, value))


def _by_name(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: {key: read(entry) for key, entry in _is(dict, value).items()}


def _text(value: Any) -> str:
    return _is(str, value)  # type: ignore[no-any-return]


def _whole(value: Any) -> int:
    return _is(int, value)  # type: ignore[no-any-return]


def _flag(value: Any) -> bool:
    return _is(bool, value)  # type: ignore[no-any-return]


def _anything(value: Any) -> Any:
    return value


def _point(value: Any) -> tuple[int, float]:
    step, number = _is(list, value)
    return _whole(step), _number(number)


def _fields(kind: type[Parent] | type[Dataset], value: Any) -> dict[str, Any]:
    if _is(dict, value).keys() != {each.name for each in fields(kind)}:
        raise ValueError(f"a {kind.__name__.lower()} has the fields {', '.join(sorted(value))}")
    return value  # type: ignore[no-any-return]


def _parent(value: Any) -> Parent:
    texts = {key: _maybe(_text)(entry) for key, entry in _fields(Parent, value).items()}
    return Parent(**{**texts, "name": _text(value["name"])})


def _dataset(value: Any) -> Dataset:
    found = _fields(Dataset, value)
    return Dataset(_text(found["name"]), _by_name(_text)(found["files"]), _by_name(_anything)(found["info"]))


def _float(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"{text[:40]} is beyond what a number can hold")
    return number


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a number")


_READERS: dict[str, Callable[[Any], Any]] = {
    "base": _maybe(_parent),
    "adapters": _each(_parent),
    "datasets": _each(_dataset),
    "eval_datasets": _each(_dataset),
    "template": _maybe(_text),
    "stage": _maybe(_text),
    "finetuning_type": _maybe(_text),
    "lora": _by_name(_anything),
    "hyperparameters": _by_name(_anything),
    "metrics": _by_name(_number),
    "curves": _by_name(_each(_point)),
    "steps": _maybe(_whole),
    "epochs": _maybe(_number),
    "tools": _by_name(_text),
    "export_tools": _by_name(_text),
    "git_revision": _maybe(_text),
    "git_dirty": _maybe(_flag),
    "contradictions": _each(_text),
    "training_config": _by_name(_anything),
    "export_config": _by_name(_anything),
}
assert _READERS.keys() == {each.name for each in fields(Lineage)}
