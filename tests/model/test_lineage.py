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
from packtrain.model.lineage import Dataset, Lineage, Parent, record_key, thin
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
maybe_text = st.none() | unicode_text
parents = st.builds(Parent, unicode_text, maybe_text, maybe_text, maybe_text, maybe_text)
datasets = st.lists(
    st.builds(Dataset, unicode_text, st.dictionaries(unicode_text, unicode_text, max_size=2), json_objects), max_size=2
).map(tuple)
curves = st.lists(st.tuples(st.integers(0, 10**6), numbers), max_size=3).map(tuple)
lineages = st.builds(
    Lineage,
    base=st.none() | parents,
    adapters=st.lists(parents, max_size=2).map(tuple),
    datasets=datasets,
    eval_datasets=datasets,
    lora=json_objects,
    hyperparameters=json_objects,
    metrics=st.dictionaries(unicode_text, numbers, max_size=3),
    curves=st.dictionaries(unicode_text, curves, max_size=2),
    steps=st.none() | st.integers(0, 10**9),
    epochs=st.none() | st.floats(0, 1e6),
    tools=st.dictionaries(unicode_text, unicode_text, max_size=2),
    git_revision=maybe_text,
    git_dirty=st.none() | st.booleans(),
    contradictions=st.lists(unicode_text, max_size=2).map(tuple),
    training_config=json_objects,
)
BLANK: dict[str, Any] = json.loads(Lineage().encode())
PARENT: dict[str, Any] = {"name": "b", "revision": None, "version": None, "digest": None, "payload": None}


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


def test_the_blank_record_is_good_before_it_is_broken() -> None:
    whole = {**BLANK, "base": PARENT, "datasets": [{"name": "d", "files": {}, "info": {}}]}
    assert decode(json.dumps(whole).encode()) == Lineage(base=Parent("b"), datasets=(Dataset("d"),))


@pytest.mark.parametrize(
    "change",
    [
        {"datasets": 5}, {"datasets": ["x"]}, {"datasets": [{}]}, {"datasets": [{"name": "d", "files": {}}]},
        {"datasets": [{"name": "d", "files": {}, "info": {}, "new": 1}]},
        {"datasets": [{"name": 1, "files": {}, "info": {}}]},
        {"datasets": [{"name": "d", "files": {"a": 1}, "info": {}}]},
        {"base": "org/name"}, {"base": {}}, {"base": {**PARENT, "name": None}}, {"base": {**PARENT, "size": 1}},
        {"base": {**PARENT, "digest": 5}}, {"adapters": [5]}, {"adapters": PARENT},
        {"curves": {"loss": [[1, 2, 3]]}}, {"curves": 1}, {"curves": {"loss": [["1", 2]]}},
        {"curves": {"loss": [[1, "2"]]}}, {"metrics": []}, {"metrics": {"loss": "low"}},
        {"metrics": {"loss": None}}, {"metrics": {"loss": True}}, {"metrics": {"loss": float("nan")}},
        {"metrics": {"loss": 10**400}}, {"epochs": -(10**400)},
        {"lora": {"alpha": float("inf")}}, {"lora": {"alpha": "\ud800"}}, {"template": 1}, {"steps": 1.5},
        {"steps": True}, {"epochs": "3"}, {"tools": {"torch": 2}}, {"git_dirty": 0}, {"contradictions": "a"},
        {"moon_phase": "full"}, {"training_config": []},
    ],
    ids=repr,
)  # fmt: skip
def test_a_record_of_another_shape_is_an_integrity_error(change: dict[str, Any]) -> None:
    with pytest.raises(IntegrityError, match="is not valid"):
        decode(json.dumps({**BLANK, **change}).encode())


@pytest.mark.parametrize("number", ["1e999", "-1e999", "NaN"])
def test_a_number_that_is_none_is_an_integrity_error(number: str) -> None:
    data = Lineage(metrics={"loss": 0.25}).encode().replace(b"0.25", number.encode())
    with pytest.raises(IntegrityError, match="is not valid"):
        decode(data)


@pytest.mark.parametrize("field", BLANK)
def test_a_record_that_lacks_a_field_is_an_integrity_error(field: str) -> None:
    data = json.dumps({key: value for key, value in BLANK.items() if key != field}).encode()
    with pytest.raises(IntegrityError, match="is not valid" if field != "schema" else "does not read"):
        decode(data)


@pytest.mark.parametrize("value", [[], None, 5, "x"])
def test_a_record_that_is_no_object_is_an_integrity_error(value: Any) -> None:
    with pytest.raises(IntegrityError, match="is not valid"):
        decode(json.dumps(value).encode())


def test_a_mutated_record_is_a_lineage_or_an_integrity_error() -> None:
    full = Lineage(
        base=Parent("b"),
        datasets=(Dataset("d", {"d.json": "0" * 64}, {"file_name": "d.json"}),),
        metrics={"loss": 0.5},
        curves={"loss": ((1, 0.5),)},
    )
    for _, mutated in mutations(json.loads(full.encode())):
        data = json.dumps(mutated).encode()
        with suppress(IntegrityError):
            decode(data).encode()


@pytest.mark.parametrize("schema", ["packtrain.lineage/2", None])
def test_another_schema_says_so(schema: str | None) -> None:
    with pytest.raises(IntegrityError, match="a schema this Packtrain does not read") as caught:
        decode(json.dumps({"schema": schema}).encode())
    assert "upgrade" in caught.value.hint


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_what_json_cannot_hold_is_a_value_error(number: float) -> None:
    with pytest.raises(ValueError):
        Lineage(metrics={"loss": number}).encode()


def test_the_loss_to_show() -> None:
    assert Lineage().loss is None
    assert Lineage(metrics={"train_loss": 2.0}).loss == 2.0
    assert Lineage(metrics={"train_loss": 2.0, "eval_loss": 0.0}).loss == 0.0
    assert Lineage(metrics={"eval_accuracy": 0.9}).accuracy == 0.9


def test_how_a_parent_is_called() -> None:
    assert str(Parent("org/name")) == "org/name"
    assert str(Parent("org/name", revision="main")) == "org/name@main"
    assert str(Parent("/models/a", version="a/1", digest="d")) == "a/1"


@given(st.integers(0, 50), st.integers(2, 10))
def test_a_thinned_curve_keeps_its_ends_and_its_order(length: int, points: int) -> None:
    curve = tuple((step, 1.0) for step in range(length))
    thinned = thin(curve, points)
    assert len(thinned) == min(length, points)
    assert thinned[:1] + thinned[-1:] == curve[:1] + curve[-1:]
    assert list(thinned) == sorted(set(thinned)) and set(thinned) <= set(curve)


def test_where_a_record_is() -> None:
    assert record_key("llama", Digest("a" * 64)) == f"records/llama/{'a' * 64}.json"
