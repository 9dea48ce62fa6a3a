"""What a node that has one version gets for another: what is said is what a pull then does, to the byte."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from packtrain.errors import IntegrityError, NotFound
from packtrain.flows.diff import diff
from packtrain.flows.fetch import foresee
from packtrain.model.delta import Delta, stacks
from packtrain.model.manifest import FILE_NAME, Manifest
from packtrain.model.reference import Reference
from packtrain.model.sourcing import Ways
from packtrain.model.tensors import CHANGED, SAME, UNKNOWN, kind_of, tally
from packtrain.testing.memory_store import MemoryStore
from packtrain.testing.merges import Merges, write_merges
from packtrain.testing.tinymodels import LINEAR
from tests.conftest import Models
from tests.flows.conftest import House

Make = Callable[..., House]


class Counting(MemoryStore):
    """Remembers which ranges were asked for, and how many bytes were read of each object."""

    def __init__(self) -> None:
        super().__init__()
        self.ranges: list[tuple[str, int, int]] = []
        self.given: dict[str, int] = {}

    def get(self, key: str) -> bytes:
        data = super().get(key)
        self._count(key, len(data))
        return data

    def read(self, key: str, start: int, length: int, buffer: memoryview) -> Iterator[memoryview]:
        self.ranges.append((key, start, length))
        self._count(key, length)
        yield memoryview(super().get(key)[start : start + length])

    def _count(self, key: str, count: int) -> None:
        self.given[key] = self.given.get(key, 0) + count


def between(house: House, before: str, after: str, *, exact: bool = False) -> Delta:
    return diff(house.store, house.registry, Reference.parse(before), Reference.parse(after), exact=exact)


@pytest.fixture(scope="module")
def merges(tmp_path_factory: pytest.TempPathFactory) -> Merges:
    """Their matrices are large enough to have chunks of their own."""
    shape = {"hidden": 1024, "heads": 8, "kv_heads": 8, "intermediate": 1024, "vocab": 1024}
    return write_merges(tmp_path_factory.mktemp("merges"), shards=2, **shape)


@pytest.fixture
def store(merges: Merges) -> Counting:
    """With base/1, and llama/1 to llama/4: first, second, resharded, everything."""
    return Counting()


@pytest.fixture
def house(make_house: Make, merges: Merges) -> House:
    house = make_house()
    house.publish(merges.base, "base")
    for directory in (merges.first, merges.second, merges.resharded, merges.everything):
        house.publish(directory)
    return house


CASES = {
    "q_proj, v_proj": ("llama/1", "llama/2", {"q_proj", "v_proj"}),
    "re-sharded": ("llama/1", "llama/3", {"q_proj", "v_proj"}),
    "re-sharded alone": ("llama/2", "llama/3", set()),
    "all linear layers": ("llama/2", "llama/4", set(LINEAR)),
    "against the base": ("base/1", "llama/3", {"q_proj", "v_proj"}),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_said_is_what_a_pull_fetches(house: House, store: Counting, case: str) -> None:
    before, after, kinds = CASES[case]
    delta = between(house, before, after)
    assert {kind_of(each.name) for each in delta.tensors if each.state == CHANGED} == kinds

    house.pull(before)
    outlook = foresee(house.parts, Reference.parse(after))
    store.given.clear()
    snapshot = house.pull(after)
    [prefix] = {key[: -len(FILE_NAME)] for key in store.given if key.endswith(f"/{FILE_NAME}")}
    given = sum(count for key, count in store.given.items() if key.startswith(prefix))
    assert given == delta.ways.fetched == outlook.fetched + outlook.manifest
    assert store.given[prefix + FILE_NAME] == delta.manifest.fetched == outlook.manifest
    assert Ways(snapshot.linked, snapshot.copied, snapshot.fetched) == delta.plan.ways
    assert (outlook.fetched, outlook.chunks, outlook.requests) == (
        snapshot.fetched, delta.plan.chunks, delta.plan.requests,
    )  # fmt: skip
    (share,) = (share for _, share in outlook.shares)
    assert (share.linked, share.copied) == (snapshot.linked, snapshot.copied)

    changed = sum(each.size for each in delta.tensors if each.state == CHANGED)
    assert given <= max(changed * 1.005, 20_000)  # what is new in documents and headers, if nothing else is
    assert delta.total.ways.size + delta.headers.size <= delta.plan.manifest.size


def test_it_takes_at_least_as_many_requests(house: House, store: Counting) -> None:
    delta = between(house, "llama/1", "llama/2")
    house.pull("llama/1")
    store.ranges.clear()
    house.pull("llama/2")
    assert len(store.ranges) >= delta.plan.requests == 3  # v_proj of layer 0 and q_proj of layer 1 are neighbours


def test_every_byte_has_its_way(house: House) -> None:
    for before, after, _ in CASES.values():
        delta = between(house, before, after)
        assert sum((file.ways for file in delta.files), Ways()) == delta.plan.ways
        assert delta.plan.ways.size == delta.after.size == delta.plan.manifest.size
        of_weights = sum((file.ways for file in delta.files if file.header is not None), Ways())
        assert delta.total.ways + delta.headers == of_weights


def test_headers_alone_are_read(house: House, store: Counting) -> None:
    store.ranges.clear()
    between(house, "llama/1", "llama/2")

    def first(key: str) -> int:
        folder, _, path = key.rpartition("/")
        manifest = Manifest.decode(store.get(f"{folder}/{FILE_NAME}"))
        return next(file.chunks[0].length for file in manifest.files if file.path == path)

    assert len(store.ranges) == 4
    assert all((start, length) == (0, first(key)) for key, start, length in store.ranges)


def test_a_version_and_itself(house: House, store: Counting) -> None:
    delta = between(house, "llama/1", "llama/1")
    assert delta.same and delta.ways == Ways() and delta.plan.requests == 0
    house.publish(Path(house.pull("llama/1").path), "again")
    other = between(house, "llama/1", "again/1")
    assert other.same, "under another name, too"


def test_layers_by_kinds(house: House) -> None:
    layers, rest = stacks(between(house, "llama/1", "llama/2").tensors)
    assert (layers.name, layers.layers) == ("model.layers", [0, 1])
    assert {kind for kind, row in layers.kinds.items() if row[0].ways.fetched} == {"q_proj", "v_proj"}
    assert all(row.keys() == {0, 1} for row in layers.kinds.values())
    assert (rest.name, set(rest.kinds)) == ("", {"embed_tokens", "norm", "lm_head"})


def test_exact_reads_what_the_digests_leave_open(make_house: Make, models: Models) -> None:
    """The tiny models' tensors all share chunks; a merge changes q_proj and v_proj."""
    house = make_house("tiny", store=MemoryStore())
    house.publish(models.first)
    house.publish(models.second)
    loose = between(house, "llama/1", "llama/2")
    assert {kind_of(each.name) for each in loose.tensors if each.state == UNKNOWN} >= {"q_proj", "v_proj"}
    found = between(house, "llama/1", "llama/2", exact=True)
    assert {kind_of(each.name) for each in found.tensors if each.state == CHANGED} == {"q_proj", "v_proj"}
    assert {each.state for each in found.tensors} == {SAME, CHANGED}
    assert found.ways == loose.ways
    kinds = tally(found.tensors, kind_of)
    assert kinds["o_proj"].ways.fetched, "it is the same, and in a chunk that is not"


def test_an_adapter_and_a_merged_model(make_house: Make, models: Models) -> None:
    house = make_house("tiny", store=MemoryStore())
    house.publish(models.first)
    house.publish(models.adapter, "tone")
    delta = between(house, "tone", "llama")
    assert {each.state for each in delta.tensors} == {"added", "removed"}
    assert {kind_of(each.name) for each in delta.tensors if each.state == "removed"} == {"q_proj", "v_proj"}
    assert sum((each.ways for each in delta.tensors if each.state == "removed"), Ways()) == Ways()


def test_bytes_that_are_not_the_manifests_are_refused(make_house: Make, models: Models) -> None:
    store = MemoryStore()
    house = make_house("tiny", store=store)
    house.publish(models.first)
    house.publish(models.second)
    prefix = house.registry.read("llama").state.version(2).prefix
    weights = {i.key: store.get(i.key) for i in store.list(prefix) if i.key.endswith(".safetensors")}

    def break_byte(place: int) -> None:
        for key, data in weights.items():
            broken = bytearray(data)
            broken[place] ^= 1
            store.upload(key, [bytes(broken)], len(broken))

    break_byte(12)  # in the header
    with pytest.raises(IntegrityError, match=r"safetensors of llama/2 is not what its manifest says"):
        between(house, "llama/1", "llama/2")
    break_byte(-1)  # in the tensors
    between(house, "llama/1", "llama/2")
    with pytest.raises(IntegrityError, match=r"safetensors of llama/2 is not what its manifest says"):
        between(house, "llama/1", "llama/2", exact=True)


def test_a_version_that_does_not_exist(house: House) -> None:
    with pytest.raises(NotFound):
        between(house, "llama/1", "llama/9")
