"""Uploads by parts to a real S3 server, counted on the wire: killed at any moment, huge, and a second version."""

from __future__ import annotations

import itertools
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from packtrain.flows import sending
from packtrain.flows.sending import THREADS
from packtrain.flows.verify import verify
from packtrain.model import parts
from packtrain.model.parts import SENT
from packtrain.storage import open_store
from packtrain.testing import tinymodels
from packtrain.testing.faults import Fault, FaultyStore, Killed
from packtrain.testing.proxy import Relay, relay
from packtrain.testing.servers import S3Server, program
from packtrain.testing.tinymodels import write_base, write_merged
from tests.flows.conftest import House, contents

pytestmark = pytest.mark.slow

Make = Callable[..., House]
MIB = 1 << 20
# A layer's q_proj takes 8 MiB and its v_proj 1 MiB: together more than S3's smallest part.
SHAPE = {"vocab": 512, "hidden": 2048, "layers": 2, "heads": 16, "kv_heads": 2, "intermediate": 2048}


@pytest.fixture
def wire(s3_environment: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Relay]:
    with relay(s3_environment.endpoint) as wire:
        monkeypatch.setenv("AWS_ENDPOINT_URL", wire.endpoint)
        yield wire


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base") / "base", seed=1, shards=1, **SHAPE)


def size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.iterdir())


def test_of_a_second_version_only_what_changed_is_sent(
    wire: Relay, make_house: Make, base: Path, s3_environment: S3Server, tmp_path: Path
) -> None:
    first, second = (write_merged(tmp_path / f"merged-{seed}", base, seed=seed) for seed in (2, 3))
    house = make_house(store=open_store(f"{s3_environment.url}/second"))
    house.publish(first)
    before = wire.traffic.up
    published = house.publish(second)
    sent = wire.traffic.up - before
    changed = 2 * 9 * MIB
    assert changed <= sent <= 1.05 * changed
    assert published.copied > 0.7 * size(second)
    assert {path: (house.pull("llama/2").path / path).read_bytes() for path in contents(second)} == contents(second)


def test_killed_at_every_thirtieth_call_it_sends_again_what_was_in_flight(
    wire: Relay, make_house: Make, s3_environment: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    planned, threads = parts.plan_parts, 2
    monkeypatch.setattr(sending, "plan_parts", lambda *given, **limits: planned(*given, **limits, sent=5 * MIB))
    monkeypatch.setattr(sending, "THREADS", threads)
    model = write_base(tmp_path / "small", seed=1, **{**SHAPE, "hidden": 1024})
    in_flight = threads * (5 + 4) * MIB  # parts end where chunks do
    k, spared, going = 0, 0, True
    while going:
        store = open_store(f"{s3_environment.url}/at-{k}")
        before = wire.traffic.up
        with suppress(Killed):
            make_house(f"killed-{k}", store=FaultyStore(store, {k: Fault.KILLED})).publish(model)
            going = False  # there are fewer calls
        published = make_house(f"publisher-{k}", store=store).publish(model)
        spared += published.size - published.uploaded
        assert wire.traffic.up - before <= published.size + in_flight + MIB
        house = make_house(f"reader-{k}", store=store)
        assert list(house.registry.read("llama").state.versions) == [1]
        verify(store, house.registry, "llama", every_byte=True, reporter=house.notes, clock=house.clock)
        assert store.multipart is not None
        assert list(store.multipart.open_uploads("models/")) == []
        k += 30
    assert k > 100
    assert spared > size(model)


def publishing(model: Path, store: str, home: Path) -> list[str]:
    command = [program("packtrain"), "publish", str(model), "--name", "llama", "--store", store]
    return [*command, "--cache-dir", str(home / "cache")]


def test_killed_at_random_moments_it_sends_again_what_was_in_flight(
    wire: Relay, make_house: Make, base: Path, s3_environment: S3Server, tmp_path: Path
) -> None:
    chance = random.Random(5)
    wire.rate = 100e6  # bytes a second: so that there are moments
    store = f"{s3_environment.url}/killed"
    command = publishing(base, store, tmp_path)
    kills = 0
    for _ in range(4):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        goal = wire.traffic.up + chance.randrange(1, size(base) // 3)
        while process.poll() is None and wire.traffic.up < goal:
            time.sleep(0.005)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills >= 2
    subprocess.run(command, check=True, capture_output=True)
    again = kills * THREADS * (SENT + 4 * MIB)  # parts end where chunks do
    assert wire.traffic.up <= size(base) + again + MIB
    house = make_house(store=open_store(store))
    assert {path: (house.pull("llama").path / path).read_bytes() for path in contents(base)} == contents(base)
    assert house.store.multipart is not None
    assert list(house.store.multipart.open_uploads("models/")) == []


def numbered(_: str, entry: tinymodels._Entry, *, large: bool = False) -> Iterator[bytes]:
    """Weights that cost nothing to make, no two blocks of which are the same."""
    block = bytearray(MIB)
    for start in range(0, entry.size, MIB):
        block[:8] = next(NUMBERS).to_bytes(8, "big")
        yield bytes(block[: entry.size - start])


NUMBERS = itertools.count()
HUGE = {"vocab": 512, "hidden": 4096, "layers": 2, "heads": 32, "kv_heads": 8, "intermediate": 14336}


def test_one_huge_file_goes_on_in_the_middle(
    wire: Relay, s3_environment: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tinymodels, "_random_weights", numbered)
    model = write_base(tmp_path / "huge", seed=1, shards=1, **HUGE)
    assert size(model) > 0.8e9
    store = f"{s3_environment.url}/huge"
    process = subprocess.Popen(publishing(model, store, tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and wire.traffic.up < 0.5e9:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    subprocess.run(publishing(model, store, tmp_path), check=True, capture_output=True)
    assert wire.traffic.up <= size(model) + THREADS * (SENT + 4 * MIB) + MIB
    (weights,) = [info for info in open_store(store).list("models/") if info.key.endswith(".safetensors")]
    assert weights.size == (model / "model.safetensors").stat().st_size
    verify_all = [program("packtrain"), "verify", "--bytes", "--store", store, "--cache-dir", str(tmp_path / "cache")]
    subprocess.run(verify_all, check=True, capture_output=True)
