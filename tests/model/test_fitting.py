"""How many engines fit: the arithmetic, and that it is said."""

from __future__ import annotations

import pytest

from packtrain.errors import UsageError
from packtrain.model.fitting import ROOM, RUNTIME, Devices, fit

GIB = 1 << 30
HOST = Devices(memory=64 * GIB, kv_cache=4 * GIB)


@pytest.mark.parametrize(
    ("devices", "engines", "because"),
    [
        (Devices(sets=2, accelerator=True), 2, "there are 2 sets of devices"),
        (Devices(accelerator=True), 1, "each take 92% of the devices' memory do not fit"),
        (Devices(accelerator=True, share=0.45), 2, "each take 45% of the devices' memory fit"),
        (HOST, 2, "two engines take 42.9 GB (weights 15.0 GB + 15.0 GB, twice 4.3 GB of KV cache"),
        (Devices(memory=32 * GIB, kv_cache=4 * GIB), 1, "of 34.4 GB, which is over 90% of it"),
        (Devices(memory=64 * GIB), 1, "VLLM_CPU_KVCACHE_SPACE"),
        (Devices(kv_cache=GIB), 1, "cannot be found"),
    ],
)
def test_auto(devices: Devices, engines: int, because: str) -> None:
    found = fit("auto", devices, 14 * GIB, 14 * GIB)
    assert found.engines == engines
    assert because in found.why
    assert found.strategy == ("blue-green" if engines == 2 else "replace")


def test_the_edge_is_where_it_is_said() -> None:
    weights = int(ROOM * 64 * GIB) - 2 * (4 * GIB + RUNTIME)
    assert fit("auto", HOST, weights, 0).engines == 2
    assert fit("auto", HOST, weights + 2, 0).engines == 1


def test_what_is_asked_for_is_done() -> None:
    small = Devices(memory=GIB, kv_cache=GIB)
    assert fit("replace", HOST, 0, 0).engines == 1
    forced = fit("blue-green", small, GIB, GIB)
    assert forced.engines == 2
    assert "as it was asked for, though two engines take" in forced.why
    with pytest.raises(UsageError, match="strategy = 'canary' makes no sense"):
        fit("canary", HOST, 0, 0)
