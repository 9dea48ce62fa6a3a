"""Lineage records."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packtrain.errors import IntegrityError
from packtrain.model.digest import Digest
from packtrain.model.lineage import SCHEMA, Dataset, Lineage, record_key
from tests.model.strategies import mutations, unicode_text

numbers = st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False)
json_objects = st.dictionaries(
    unicode_text,
    st.recursive(
        st.none() | st.booleans() | numbers | unicode_text,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(unicode_text, inner, max_size=3),
        max_leaves=5,
    ),
    max_size=3,
)
lineages = st.builds(
    Lineage,
    base_model=st.none() | unicode_text,
    datasets=st.lists(st.builds(Dataset, unicode_text, st.dictionaries(unicode_text, unicode_text)), max_size=2).map(
        tuple
    ),
    lora=json_objects,
    hyperparameters=json_objects,
    metrics=st.dictionaries(unicode_text, numbers, max_size=3),
    loss_curve=st.lists(st.tuples(st.integers(0, 10**6), numbers), max_size=3).map(tuple),
    steps=st.none() | st.integers(0, 10**9),
    epochs=st.none() | st.floats(0, 1e6),
    training_config=json_objects,
)


def decode(data: bytes) -> Lineage:
    return Lineage.decode(data, expect=Digest.of(data))


@given(lineages)
def test_reads_back(lineage: Lineage) -> None:
    data = lineage.encode()
    assert decode(data) == lineage
    assert decode(data).encode() == data


@given(lineages, st.data())
def test_a_flipped_bit_is_refused(lineage: Lineage, data: st.DataObject) -> None:
    good = lineage.encode()
    place, bit = data.draw(st.integers(0, len(good) - 1)), data.draw(st.integers(0, 7))
    bad = good[:place] + bytes([good[place] ^ (1 << bit)]) + good[place + 1 :]
    with pytest.raises(IntegrityError, match="does not hash to its name"):
        Lineage.decode(bad, expect=Digest.of(good))


@given(st.binary() | st.text().map(str.encode))
def test_an_attached_record_of_nonsense_is_an_integrity_error(data: bytes) -> None:
    with pytest.raises(IntegrityError):
        decode(data)


@pytest.mark.parametrize(
    "value",
    [
        [], None, 5, {"datasets": 5}, {"datasets": ["x"]}, {"datasets": [{}]}, {"datasets": [{"name": "d", "new": 1}]},
        {"loss_curve": [[1, 2, 3]]}, {"loss_curve": 1}, {"metrics": []}, {"metrics": {"loss": "low"}},
        {"metrics": {"loss": None}}, {"metrics": {"loss": True}},
    ],
    ids=repr,
)  # fmt: skip
def test_an_attached_record_of_another_shape_is_an_integrity_error(value: Any) -> None:
    data = json.dumps({"schema": SCHEMA, **value} if isinstance(value, dict) else value).encode()
    with pytest.raises(IntegrityError, match="is not valid"):
        decode(data)


def test_a_mutated_record_is_a_lineage_or_an_integrity_error() -> None:
    full = Lineage(datasets=(Dataset("d", {"d.json": "0" * 64}),), metrics={"loss": 0.5}, loss_curve=((1, 0.5),))
    for _, mutated in mutations(json.loads(full.encode())):
        data = json.dumps(mutated).encode()
        with suppress(IntegrityError):
            decode(data).encode()


@pytest.mark.parametrize("schema", ["packtrain.lineage/2", None])
def test_another_schema_says_so(schema: str | None) -> None:
    with pytest.raises(IntegrityError, match="a schema this Packtrain does not read") as caught:
        decode(json.dumps({"schema": schema}).encode())
    assert "upgrade" in caught.value.hint


def test_fields_that_a_later_packtrain_adds_are_left_out() -> None:
    assert decode(json.dumps({"schema": SCHEMA, "stage": "sft", "moon_phase": "full"}).encode()) == Lineage(stage="sft")


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_what_json_cannot_hold_is_a_value_error(number: float) -> None:
    with pytest.raises(ValueError):
        Lineage(metrics={"loss": number}).encode()


def test_the_loss_to_show() -> None:
    assert Lineage().loss is None
    assert Lineage(metrics={"train_loss": 2.0}).loss == 2.0
    assert Lineage(metrics={"train_loss": 2.0, "eval_loss": 0.0}).loss == 0.0
    assert Lineage(metrics={"eval_accuracy": 0.9}).accuracy == 0.9


def test_where_a_record_is() -> None:
    assert record_key("llama", Digest("a" * 64)) == f"records/llama/{'a' * 64}.json"
