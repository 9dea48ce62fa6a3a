"""Uploads by parts to a real S3 server, counted on the wire: killed at any moment, and a second version."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from packtrain.flows.sending import THREADS
from packtrain.model.parts import SENT
from packtrain.storage import open_store
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


def test_killed_at_random_moments_it_sends_again_what_was_in_flight(
    wire: Relay, make_house: Make, base: Path, s3_environment: S3Server, tmp_path: Path
) -> None:
    chance = random.Random(5)
    wire.rate = 100e6  # bytes a second: so that there are moments
    store = f"{s3_environment.url}/killed"
    command = [program("packtrain"), "publish", str(base), "--name", "llama", "--store", store]
    command += ["--cache-dir", str(tmp_path / "cache")]
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
