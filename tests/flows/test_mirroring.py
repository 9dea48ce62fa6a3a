"""The ledger decides and MLflow shows it, whoever meddles there, dies between two steps, or is not reached."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from datetime import timedelta
from pathlib import Path

import pytest

from packtrain.errors import NotFound, PacktrainError, Refused, Unavailable, UsageError
from packtrain.flows.mirroring import DIGEST, LATE, PATIENCE, PUBLISH_ID, Entry, MirroringRegistry, register
from packtrain.flows.policy import Change, policy
from packtrain.flows.promote import archive, promote, roll_back
from packtrain.flows.pull import resolve
from packtrain.model.ledger import Draft, State
from packtrain.model.mirror import Intent
from packtrain.model.reference import Reference
from packtrain.ports import Store
from packtrain.registry import mlflow as mlflow_api
from packtrain.registry.ledger import LedgerRegistry
from packtrain.registry.mlflow import Mlflow
from packtrain.testing import fake_mlflow
from packtrain.testing.fake_mlflow import Fake
from packtrain.testing.memory_store import MemoryStore
from tests.conftest import Models
from tests.flows.conftest import House

CREATE = "POST model-versions/create"
SET = "POST registered-models/alias"
GET = "GET registered-models/get"


class Mirrored(House):
    """A machine whose registry an MLflow server shows. ``dies`` makes it die when it has announced a version."""

    fake: Fake
    ledger: LedgerRegistry
    dies = False

    def connect(self, fake: Fake) -> Mirrored:
        self.fake = fake
        self.ledger = self.registry
        client = Mlflow(fake.url, environ={}, sleep=lambda _: None)
        self.registry = MirroringRegistry(  # type: ignore[assignment]
            self.ledger, client, self.store, self.notes, self.clock, self.describe
        )
        return self

    def describe(self, state: State, intent: Intent) -> Entry:
        if self.dies:
            raise KeyboardInterrupt
        return Entry(tags={"about": state.name})

    def move(self, reference: str, alias: str = "production") -> None:
        promote(self.registry, Reference.parse(reference), alias, expect=None, reason="")

    def history(self, name: str = "llama") -> list[str]:
        """What was done, without publishing's own events."""
        skipped = ("publish.begin", "attached", "mirror.bound")
        return [event.action for event in self.ledger.audit(name).events if event.action not in skipped]

    @property
    def state(self) -> State:
        return self.registry.read("llama").state

    @property
    def shown(self) -> dict[str, int]:
        return self.fake.models["llama"].aliases


@pytest.fixture
def mirrored(store: MemoryStore, fake: Fake, tmp_path: Path) -> Callable[..., Mirrored]:
    """``mirrored(NAME)``: another machine, or the same one again."""
    return lambda name="node", store=store: Mirrored(store, tmp_path / name).connect(fake)


@pytest.fixture
def house(mirrored: Callable[..., Mirrored]) -> Mirrored:
    return mirrored()


@pytest.fixture
def published(house: Mirrored, models: Models) -> Mirrored:
    """llama/1 and llama/2; production is 1."""
    house.publish(models.first, alias="production")
    house.publish(models.second)
    house.notes.notes.clear()
    return house


def told(house: Mirrored) -> str:
    return "\n".join(house.notes.notes)


# What MLflow shows


def test_versions_have_their_plain_directory_as_source_and_tags_that_tell_whose_they_are(
    published: Mirrored, fake: Fake
) -> None:
    for number, version in published.state.versions.items():
        shown = fake.models["llama"].versions[number]
        assert shown["source"] == f"memory://store/models/llama/{version.digest.hex}"
        tags = {tag["key"]: tag["value"] for tag in shown["tags"]}
        assert tags.keys() == {"about", PUBLISH_ID, DIGEST}
        assert tags[DIGEST] == str(version.digest)
    assert published.shown == {"production": 1}


def test_aliases_follow_promotion_rollback_and_archive(published: Mirrored, fake: Fake) -> None:
    published.move("llama/2")
    assert published.shown == {"production": 2}
    roll_back(published.registry, "llama", "production", to=None, expect=None, reason="")
    assert published.shown == {"production": 1}
    archive(published.registry, Reference.parse("llama/2"), reason="")
    assert {"key": "packtrain.state", "value": "archived"} in fake.models["llama"].versions[2]["tags"]
    assert published.history()[-5:] == [
        "alias.promoted", "alias.settled", "alias.rolled_back", "alias.settled", "version.archived",
    ]  # fmt: skip
    assert not published.state.mirror.unsettled
    assert told(published) == ""


def test_numbers_are_mlflows(house: Mirrored, models: Models, fake: Fake) -> None:
    """Somebody registered versions without Packtrain, and one of them is gone: both then say NAME/3 of the same."""
    client = Mlflow(fake.url)
    client.create_model("llama", "")
    for _ in range(2):
        client.create_version("llama", "s3://elsewhere/model", run_id=None, tags={})
    client.delete_version("llama", 2)
    assert house.publish(models.first, alias="production").version.number == 3  # type: ignore[union-attr]
    assert house.shown == {"production": 3}
    assert house.publish(models.second).version.number == 4  # type: ignore[union-attr]
    assert house.publish(models.second).created is False


def test_a_node_reads_with_one_request_to_mlflow(published: Mirrored, fake: Fake) -> None:
    published.state  # noqa: B018
    fake.requests.clear()
    published.state  # noqa: B018
    assert fake.requests == [GET]


# MLflow fails, or somebody dies


def test_a_lost_answer_does_not_make_two_versions(house: Mirrored, models: Models, fake: Fake) -> None:
    fake.faults = lambda call, count: fake_mlflow.LOST if (call, count) == (CREATE, 1) else None
    assert house.publish(models.first).created
    assert list(fake.models["llama"].versions) == [1]
    assert fake.requests.count(CREATE) == 1


@pytest.mark.parametrize("fault", [fake_mlflow.DOWN, fake_mlflow.BUSY])
def test_a_version_that_mlflow_could_not_number_gets_its_number_from_whoever_comes_next(
    mirrored: Callable[..., Mirrored], models: Models, fake: Fake, fault: str
) -> None:
    house, other = mirrored(), mirrored("other")
    fake.faults = lambda call, count: fault if call == CREATE else None
    with pytest.raises(Unavailable) as caught:
        house.publish(models.first)
    assert "the same command again" in caught.value.hint
    assert house.state.versions == {}
    fake.faults = lambda call, count: None
    assert other.state.versions == {}, "whoever announced it may still be at it"
    other.clock.sleep(PATIENCE.total_seconds() + 1)
    assert list(other.state.versions) == [1]
    assert house.publish(models.first).version == other.state.versions[1]
    assert list(fake.models["llama"].versions) == [1]


def test_the_same_bytes_from_somebody_else_wait_for_the_first_and_take_over_from_the_dead(
    mirrored: Callable[..., Mirrored], models: Models, fake: Fake
) -> None:
    dead, other = mirrored(), mirrored("other")
    dead.dies = True
    with pytest.raises(KeyboardInterrupt):
        dead.publish(models.first)
    assert other.publish(models.first).created is False
    assert list(other.state.versions) == list(fake.models["llama"].versions) == [1]
    assert dead.history() == ["version.intent", "version.created"]


def test_whoever_is_slow_and_overtaken_leaves_no_second_version(
    mirrored: Callable[..., Mirrored], models: Models, fake: Fake
) -> None:
    """Somebody else takes over while the first one's request is under way: the number that the ledger has counts."""
    slow, other = mirrored(), mirrored("other")
    other.clock.sleep(PATIENCE.total_seconds() + 1)
    ask = fake.answer

    def overtaken(method: str, call: str, asked: dict[str, object]) -> object:
        if f"{method} {call}" == CREATE and fake.requests.count(CREATE) == 1:
            fake.lock.release()
            try:
                assert list(other.state.versions) == [1]
            finally:
                fake.lock.acquire()
        return ask(method, call, asked)

    fake.answer = overtaken  # type: ignore[method-assign]
    published = slow.publish(models.first)
    assert published.version == other.state.versions[1]
    assert list(fake.models["llama"].versions) == [1]
    assert fake.models["llama"].count == 2


def test_a_publish_is_refused_before_anything_is_uploaded_when_mlflow_is_not_reached(
    house: Mirrored, models: Models, fake: Fake, store: MemoryStore
) -> None:
    house.publish(models.first)
    before = set(store.objects)
    fake.faults = lambda call, count: fake_mlflow.DOWN
    with pytest.raises(Unavailable, match="cannot be reached"):
        house.publish(models.second)
    assert set(store.objects) == before


def test_moves_count_while_mlflow_is_not_reached_and_are_shown_later(
    mirrored: Callable[..., Mirrored], published: Mirrored, fake: Fake
) -> None:
    fake.faults = lambda call, count: fake_mlflow.DOWN
    published.move("llama/2")
    assert "MLflow will be shown by the next command" in told(published)
    assert resolve(published.registry, Reference.parse("llama@production"), published.notes).number == 2
    fake.faults = lambda call, count: None
    assert published.shown == {"production": 1}
    assert mirrored("another").state.aliases == published.shown == {"production": 2}
    assert published.history()[-3:] == ["alias.promoted", "alias.helped", "alias.settled"]


@pytest.mark.parametrize("fault", [fake_mlflow.LOST, fake_mlflow.DOWN])
def test_an_alias_whose_answer_was_lost_is_settled(published: Mirrored, fake: Fake, fault: str) -> None:
    first = fake.requests.count(SET)
    fake.faults = lambda call, count: fault if call == SET and count == first + 1 else None
    published.move("llama/2")
    assert published.shown == {"production": 2}
    assert not published.state.mirror.unsettled


def test_the_400_of_a_race_is_tried_again(published: Mirrored, fake: Fake) -> None:
    ask = fake.answer

    def racing(method: str, call: str, asked: dict[str, object]) -> object:
        if f"{method} {call}" == SET and not racing.done:  # type: ignore[attr-defined]
            racing.done = True  # type: ignore[attr-defined]
            raise fake_mlflow._RefusedError(400, "BAD_REQUEST", "(psycopg.errors.UniqueViolation) duplicate key")
        return ask(method, call, asked)

    racing.done = False  # type: ignore[attr-defined]
    fake.answer = racing  # type: ignore[method-assign]
    published.move("llama/1", "staging")
    assert published.shown == {"production": 1, "staging": 1}


# Somebody moves aliases in MLflow


def test_a_move_in_mlflow_is_recorded_and_followed(published: Mirrored) -> None:
    published.shown["production"] = 2
    assert published.state.aliases == {"production": 2}
    assert "moved in MLflow, to version 2: the ledger follows" in told(published)
    event = published.ledger.audit("llama").events[-1]
    assert (event.action, event.details["from"], event.details["to"]) == ("alias.adopted", 1, 2)
    roll_back(published.registry, "llama", "production", to=None, expect=None, reason="")
    assert published.shown == {"production": 1}


def test_a_move_of_a_protected_alias_is_undone_and_recorded(published: Mirrored) -> None:
    assert policy(published.registry, "llama", Change(protect=["production"])).protected == {"production"}
    published.shown.update(production=2, other=2)
    assert published.state.aliases == published.shown == {"production": 1, "other": 2}
    assert "moved in MLflow, to version 2: that is undone" in told(published)
    assert published.history()[-4:] == ["policy", "alias.adopted", "alias.restored", "alias.settled"]


def test_a_removed_alias_is_set_again(published: Mirrored) -> None:
    published.shown.clear()
    assert published.state.aliases == published.shown == {"production": 1}


def test_a_protected_alias_that_the_ledger_never_had_goes(published: Mirrored) -> None:
    policy(published.registry, "llama", Change(protect=["gold"]))
    published.shown["gold"] = 2
    assert published.state.aliases == published.shown == {"production": 1}


@pytest.mark.parametrize("number", [2, 3])
def test_a_move_to_what_cannot_be_served_is_said_and_not_followed(published: Mirrored, fake: Fake, number: int) -> None:
    archive(published.registry, Reference.parse("llama/2"), reason="")
    Mlflow(fake.url).create_version("llama", "s3://elsewhere/model", run_id=None, tags={})
    published.shown["production"] = number
    for _ in range(2):
        assert published.state.aliases == {"production": 1}
    assert told(published).count(f"is at version {number}") == 1
    assert ("packtrain adopt llama/3" in told(published)) == (number == 3)
    assert published.shown == {"production": number}


def test_who_was_overtaken_and_set_an_alias_late_is_undone_and_not_followed(
    mirrored: Callable[..., Mirrored], published: Mirrored, fake: Fake
) -> None:
    """One machine moves the alias in the ledger and hangs; another settles that and moves on; then the first one's
    request arrives. It looks like a move in MLflow, but nobody wanted it."""
    hanging, other = mirrored("hanging"), mirrored("other")
    hanging.ledger.change("llama", lambda state: state.promote("production", 2))
    other.move("llama/1")
    published.shown["production"] = 2
    assert other.state.aliases == published.shown == {"production": 1}
    other.clock.sleep(2 * LATE.total_seconds())
    published.shown["production"] = 2
    assert other.state.aliases == {"production": 2}, "long after that it is somebody's wish"


def test_who_helped_and_was_slower_than_the_mover_is_undone_and_not_followed(
    mirrored: Callable[..., Mirrored], published: Mirrored, fake: Fake
) -> None:
    """Somebody finds a move that MLflow does not show. Before their request arrives, the mover has settled it, and gone
    on from there."""
    mover, helper = mirrored("mover"), mirrored("helper")
    fake.faults = lambda call, count: fake_mlflow.DOWN if call == SET else None
    mover.move("llama/2")
    fake.faults = lambda call, count: None
    client = helper.registry._mlflow
    set_alias = client.set_alias

    def late(name: str, alias: str, number: int) -> None:
        client.set_alias = set_alias  # type: ignore[method-assign]
        assert mover.state.aliases == published.shown == {"production": 2}
        mover.move("llama/1")
        assert published.shown == {"production": 1}
        set_alias(name, alias, number)

    client.set_alias = late  # type: ignore[method-assign]
    assert helper.state.aliases == {"production": 1}
    assert mover.state.aliases == published.shown == {"production": 1}


def test_a_move_in_mlflow_that_was_seen_before_a_promotion_does_not_undo_it(
    mirrored: Callable[..., Mirrored], published: Mirrored, fake: Fake
) -> None:
    """Between a look at MLflow and the event that records it, somebody promotes."""
    slow, fast = mirrored("slow"), mirrored("fast")
    published.shown["production"] = 2
    change = slow.ledger.change

    def overtaken(name: str, decide: Callable[[State], Draft | None]) -> object:
        if slow.ledger.change is overtaken:
            slow.ledger.change = change  # type: ignore[method-assign]
            fast.move("llama/2", "candidate")
            fast.move("llama/1")
        return change(name, decide)

    slow.ledger.change = overtaken  # type: ignore[method-assign,assignment]
    assert slow.state.aliases == published.shown == {"production": 1, "candidate": 2}


# Somebody deletes in MLflow


def test_nodes_go_on_when_the_model_is_deleted_and_it_can_be_registered_again(
    mirrored: Callable[..., Mirrored], published: Mirrored, models: Models, fake: Fake
) -> None:
    published.move("llama/2", "candidate")
    Mlflow(fake.url).delete_model("llama")
    assert resolve(published.registry, Reference.parse("llama@production"), published.notes).number == 1
    assert "was deleted or renamed in MLflow" in told(published)
    with pytest.raises(NotFound, match="deleted or renamed") as caught:
        published.publish(models.base)
    assert "packtrain register llama" in caught.value.hint
    assert register(published.registry, "llama").aliases == published.shown == {"production": 1, "candidate": 2}
    assert [int(n) for n in fake.models["llama"].versions] == [1, 2]
    assert published.publish(models.base).version.number == 3  # type: ignore[union-attr]
    assert not published.state.mirror.unsettled


def test_a_model_that_was_created_again_is_another(published: Mirrored, fake: Fake) -> None:
    client = Mlflow(fake.url)
    client.delete_model("llama")
    client.create_model("llama", "")
    client.create_version("llama", "s3://elsewhere/model", run_id=None, tags={})
    client.set_alias("llama", "production", 1)
    assert published.state.aliases == {"production": 1}
    assert "was deleted and created again" in told(published)
    with pytest.raises(Refused, match="has a llama/1 that is not the ledger's"):
        register(published.registry, "llama")
    client.delete_version("llama", 1)
    with pytest.raises(Refused, match="gives llama/1 the number 2"):
        register(published.registry, "llama")
    assert fake.models["llama"].versions == {}


def test_numbers_that_the_ledger_does_not_have_stay_free_when_it_is_registered_again(
    house: Mirrored, models: Models, fake: Fake
) -> None:
    client = Mlflow(fake.url)
    client.create_model("llama", "")
    client.create_version("llama", "s3://elsewhere/model", run_id=None, tags={})
    house.publish(models.first, alias="production")
    house.publish(models.second)
    archive(house.registry, Reference.parse("llama/3"), reason="")
    client.delete_model("llama")
    register(house.registry, "llama")
    assert list(fake.models["llama"].versions) == [2, 3]
    assert {"key": "packtrain.state", "value": "archived"} in fake.models["llama"].versions[3]["tags"]
    assert house.shown == {"production": 2}


def test_a_version_that_is_deleted_under_an_alias_is_still_served(published: Mirrored, fake: Fake) -> None:
    Mlflow(fake.url).delete_version("llama", 1)
    assert published.shown == {}
    for _ in range(2):
        assert resolve(published.registry, Reference.parse("llama@production"), published.notes).number == 1
    assert told(published).count("llama/1 was deleted in MLflow") == 1
    published.move("llama/2")
    assert published.shown == {"production": 2}


# Ledgers with and without MLflow


def test_a_ledger_begins_to_be_shown_with_its_next_version(
    make_house: Callable[..., House], mirrored: Callable[..., Mirrored], models: Models, fake: Fake
) -> None:
    alone = make_house("alone")
    alone.publish(models.first, alias="production")
    alone.publish(models.second)
    house = mirrored()
    assert house.state.aliases == {"production": 1}
    assert fake.requests == []
    house.publish(models.base)
    assert list(fake.models["llama"].versions) == [1, 2, 3]
    assert house.shown == {"production": 1}
    alone.registry.change("llama", lambda state: state.promote("production", 2))
    assert house.state.aliases == house.shown == {"production": 2}
    with pytest.raises(UsageError, match="MLflow numbers the versions"):
        alone.publish(models.adapter)


def test_the_ledger_wins_over_an_mlflow_that_was_restored_from_a_backup(
    mirrored: Callable[..., Mirrored], house: Mirrored, models: Models, fake: Fake
) -> None:
    """Its aliases are old, and it lacks versions: `register`, before anything else looks at it, shows it the ledger."""
    house.publish(models.first, alias="production")
    backup = deepcopy(fake.models)
    house.publish(models.second, alias="production")
    house.move("llama/2", "candidate")
    fake.models = backup
    assert house.shown == {"production": 1}
    assert register(mirrored("admin").registry, "llama").aliases == {"production": 2, "candidate": 2}
    assert house.shown == house.state.aliases == {"production": 2, "candidate": 2}
    assert list(fake.models["llama"].versions) == list(house.state.versions) == [1, 2]
    assert "alias.adopted" not in house.history()
    events = len(house.ledger.audit("llama").events)
    register(mirrored("admin").registry, "llama")
    assert len(house.ledger.audit("llama").events) == events, "there is nothing to be done twice"


def test_there_must_be_something_to_register(house: Mirrored, make_house: Callable[..., House]) -> None:
    with pytest.raises(NotFound):
        register(house.registry, "nobody")
    with pytest.raises(UsageError, match="the registry is the store itself"):
        register(make_house("alone").registry, "llama")


def test_a_node_that_may_not_write_says_what_it_cannot_record(
    published: Mirrored, mirrored: Callable[..., Mirrored], store: MemoryStore
) -> None:
    class ReadOnly(MemoryStore):
        def __init__(self, inner: Store) -> None:
            super().__init__()
            self.objects = inner.objects  # type: ignore[attr-defined]

        def create(self, key: str, data: bytes) -> None:
            raise Refused("this node may not write")

    node = mirrored("node-2", ReadOnly(store))
    published.shown["production"] = 2
    assert node.state.aliases == {"production": 1}
    assert "this node may not write" in told(node)
    assert published.state.aliases == node.state.aliases == {"production": 2}


# Policy


def test_a_policy_is_shown_changed_and_kept(published: Mirrored, mirrored: Callable[..., Mirrored]) -> None:
    policy(published.registry, "llama", Change(protect=["production", "gold"], gate=["production"]))
    holds = policy(mirrored("other").registry, "llama", Change(unprotect=["gold"]))
    assert (holds.protected, holds.gated) == ({"production"}, {"production"})
    events = published.history().count("policy")
    assert policy(published.registry, "llama", Change(protect=["production"])) == holds
    assert published.history().count("policy") == events == 2
    with pytest.raises(Refused, match="has not passed a gate"):
        published.move("llama/2")
    with pytest.raises(UsageError, match="both ways"):
        policy(published.registry, "llama", Change(protect=["x"], unprotect=["x"]))
    with pytest.raises(UsageError, match="not an alias"):
        policy(published.registry, "llama", Change(protect=["a b"]))
    with pytest.raises(NotFound):
        policy(published.registry, "nobody", Change(protect=["x"]))


def test_what_has_not_passed_its_gate_is_moved_back(published: Mirrored) -> None:
    policy(published.registry, "llama", Change(gate=["production"]))
    published.shown["production"] = 2
    assert published.state.aliases == {"production": 1}
    assert published.history()[-2:] == ["alias.restored", "alias.settled"]
    digest = published.state.versions[2].digest
    published.registry.change("llama", lambda state: state.attach(digest, "gate", digest))
    published.shown["production"] = 2
    assert published.state.aliases == {"production": 2}


# Whatever fails


@pytest.mark.slow
@pytest.mark.parametrize("fault", [fake_mlflow.LOST, fake_mlflow.DOWN])
def test_whichever_request_fails_for_good_the_next_command_makes_it_good(
    mirrored: Callable[..., Mirrored],
    models: Models,
    fake: Fake,
    fault: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every request of a publish with an alias, in turn, fails with all that come after it: a server that dies then."""
    monkeypatch.setattr(mlflow_api, "PAUSES", ())
    for dies_at in range(100):
        fake.faults = lambda call, count: None
        fake.models.clear()
        store = MemoryStore(f"store-{dies_at}")
        house, other = mirrored(f"node-{dies_at}", store), mirrored(f"other-{dies_at}", store)
        fake.requests.clear()
        fake.faults = lambda call, count: fault if len(fake.requests) > dies_at else None  # noqa: B023
        finished = True
        try:
            house.publish(models.first, alias="production")
            finished = not house.notes.notes
        except PacktrainError:
            finished = False
        fake.faults = lambda call, count: None
        other.clock.sleep((PATIENCE + timedelta(seconds=1)).total_seconds())
        state = other.registry.read("llama").state
        shown = fake.models.get("llama", fake_mlflow.Model(0))
        assert list(state.versions) == list(shown.versions), dies_at
        assert state.aliases == shown.aliases, dies_at
        assert not state.mirror.unsettled, dies_at
        assert not state.mirror.intents, dies_at
        again = other.publish(models.first, alias="production")
        assert again.version is not None
        assert list(fake.models["llama"].versions) == [again.version.number]
        assert fake.models["llama"].aliases == {"production": again.version.number}
        if finished:
            break
    assert dies_at > 5
