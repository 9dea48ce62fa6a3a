"""Versions that somebody registered in MLflow without Packtrain: adopted under their numbers, or pulled unverified."""

from __future__ import annotations

from pathlib import Path

import pytest

from packtrain.errors import AlreadyExists, NotFound, Refused, UsageError
from packtrain.flows.adopt import adopt_registered, target
from packtrain.flows.foreign import pull_unverified, source_of
from packtrain.flows.publish import Published, Request
from packtrain.model.reference import Reference
from packtrain.ports import Store
from packtrain.registry.mlflow import Mlflow
from packtrain.testing.fake_mlflow import Fake
from packtrain.testing.memory_store import MemoryStore
from tests.conftest import Models
from tests.flows.conftest import contents
from tests.flows.test_mirroring import Mirrored

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@pytest.fixture
def house(store: MemoryStore, fake: Fake, tmp_path: Path) -> Mirrored:
    return Mirrored(store, tmp_path / "node").connect(fake)


@pytest.fixture
def elsewhere() -> MemoryStore:
    return MemoryStore("elsewhere")


def register(fake: Fake, source: str, name: str = "llama") -> None:
    client = Mlflow(fake.url, environ={})
    client.create_model(name, "")
    client.create_version(name, source, run_id=None, tags={"team": "nlp"})


def adopt(house: Mirrored, fake: Fake, elsewhere: Store, reference: str, **options: object) -> Published:
    wanted = Reference.parse(reference)
    return adopt_registered(
        house.store, house.registry, Mlflow(fake.url, environ={}), lambda _: elsewhere, wanted,
        Request(directory=Path(), name=wanted.name, **options),  # type: ignore[arg-type]
        scratch=house.home / "scratch", reporter=house.notes, clock=house.clock,
    )  # fmt: skip


def fill(elsewhere: MemoryStore, directory: Path, *, flavor: bool = False) -> None:
    """The files of a model, plain or as MLflow's transformers flavor lays them out."""
    for path, data in contents(directory).items():
        if not flavor:
            elsewhere.objects[path] = data
        elif path in TOKENIZER:
            elsewhere.objects[f"components/tokenizer/{path}"] = data
        else:
            elsewhere.objects[f"model/{path}"] = data
    if flavor:
        elsewhere.objects["MLmodel"] = b"flavors: {}\n"
        elsewhere.objects["registered_model_meta"] = b"x"


def weights_of(models: Models) -> str:
    return next(path for path in contents(models.first) if path.endswith(".safetensors"))


@pytest.mark.parametrize("flavor", [False, True])
def test_a_version_is_adopted_under_its_number_and_pulled(
    house: Mirrored, fake: Fake, elsewhere: MemoryStore, models: Models, flavor: bool
) -> None:
    fill(elsewhere, models.first, flavor=flavor)
    house.publish(models.second, alias="production")
    register(fake, "s3://elsewhere/model")
    done = adopt(house, fake, elsewhere, "llama/2", alias="staging")
    assert done.version is not None
    assert (done.version.number, done.created) == (2, True)
    assert house.shown == {"production": 1, "staging": 2}
    pulled = contents(house.pull("llama/2").path)
    wanted = {path: data for path, data in contents(models.first).items() if path in pulled}
    assert {"config.json", "tokenizer.json", weights_of(models)} <= wanted.keys()
    assert {path: pulled[path] for path in wanted} == wanted
    tags = {tag["key"]: tag["value"] for tag in fake.models["llama"].versions[2]["tags"]}
    assert tags["packtrain.digest"] == str(done.version.digest)
    assert tags["team"] == "nlp"
    assert fake.models["llama"].versions[2]["source"] == "s3://elsewhere/model"
    with pytest.raises(AlreadyExists):
        adopt(house, fake, elsewhere, "llama/2")
    assert house.publish(models.base).version.number == 3  # type: ignore[union-attr]


def test_an_older_version_is_adopted_after_newer_ones_of_ours(
    house: Mirrored, fake: Fake, elsewhere: MemoryStore, models: Models
) -> None:
    fill(elsewhere, models.first)
    register(fake, "s3://elsewhere/model")
    assert house.publish(models.first).version.number == 2  # type: ignore[union-attr]
    assert adopt(house, fake, elsewhere, "llama/1").version.number == 1  # type: ignore[union-attr]
    assert house.state.versions[1].digest == house.state.versions[2].digest
    assert house.state.latest.number == 2


def test_what_the_server_keeps_is_read_through_it(house: Mirrored, fake: Fake, models: Models, tmp_path: Path) -> None:
    for path, data in contents(models.first).items():
        fake.artifacts[f"1/models/m-1/artifacts/{path}"] = data
    register(fake, "mlflow-artifacts:/1/models/m-1/artifacts")
    client, reference = Mlflow(fake.url, environ={}), Reference.parse("llama/1")
    source = source_of(client, reference, MemoryStore)
    assert {info.key: info.size for info in source.list("")} == {k: len(v) for k, v in contents(models.first).items()}
    buffer = memoryview(bytearray(1 << 16))
    weights = weights_of(models)
    whole = contents(models.first)[weights]
    assert b"".join(map(bytes, source.read(weights, 1000, 200_000, buffer))) == whole[1000:201_000]
    assert adopt(house, fake, MemoryStore(), "llama/1").created
    target_folder = tmp_path / "unverified"
    assert pull_unverified(source, reference, target_folder, house.notes) == sum(
        map(len, contents(models.first).values())
    )
    assert contents(target_folder) == contents(models.first)
    with pytest.raises(Refused, match="exists"):
        pull_unverified(source, reference, target_folder, house.notes)


def test_what_is_unsafe_or_not_there_is_refused(
    house: Mirrored, fake: Fake, elsewhere: MemoryStore, models: Models, tmp_path: Path
) -> None:
    client, reference = Mlflow(fake.url, environ={}), Reference.parse("llama/1")
    register(fake, "s3://elsewhere/model")
    with pytest.raises(NotFound, match="and there is nothing"):
        source_of(client, reference, lambda _: elsewhere)
    fill(elsewhere, models.first)
    elsewhere.objects["pytorch_model.bin"] = b"x"
    with pytest.raises(Refused, match="pickle"):
        pull_unverified(elsewhere, reference, tmp_path / "x", house.notes)
    assert list(tmp_path.glob("*x*")) == []
    with pytest.raises(NotFound):
        source_of(client, Reference.parse("llama/7"), lambda _: elsewhere)
    register(fake, "dbfs:/models/x")
    with pytest.raises(Refused, match="which Packtrain cannot read"):
        source_of(client, Reference.parse("llama/2"), lambda _: elsewhere)


def test_which_version_is_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert target("llama/2", None) == ("llama", Reference("llama", version=2))
    assert target("s3://bucket/llama/2", "x") == ("x", None)
    with pytest.raises(UsageError, match="cannot become a version of x"):
        target("llama/2", "x")
    with pytest.raises(UsageError, match="name of the registered model is missing"):
        target("s3://bucket/llama/2", None)
    (tmp_path / "llama" / "2").mkdir(parents=True)
    assert target("llama/2", "x") == ("x", None), "a folder of that name is the folder"
