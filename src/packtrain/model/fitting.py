"""How many engines of a version a node may run at once: the arithmetic behind ``strategy``."""

from __future__ import annotations

from dataclasses import dataclass

from packtrain.errors import UsageError
from packtrain.model.amount import size

STRATEGIES = ("auto", "blue-green", "replace")

RUNTIME = 2 << 30  # bytes that an engine's processes take beside weights and KV cache (vLLM 0.32 on a CPU: 1.6 GiB)
ROOM = 0.9  # the share of the memory that two engines may take together


@dataclass(frozen=True, slots=True)
class Devices:
    """What engines run on. ``sets``: how many separate sets of devices the user configured. ``accelerator``: whether
    vLLM takes a share of the devices' memory (``share``, of each device); otherwise it takes main memory, of which
    there are ``memory`` bytes (None: not known), with ``kv_cache`` bytes for its cache (None: vLLM decides)."""

    sets: int = 1
    accelerator: bool = False
    share: float = 0.92  # vLLM's default of --gpu-memory-utilization
    memory: int | None = None
    kv_cache: int | None = None


@dataclass(frozen=True, slots=True)
class Fit:
    """``engines`` at once: 2 for blue-green, 1 for replace. ``why``, in words for people."""

    engines: int
    why: str

    @property
    def strategy(self) -> str:
        return "blue-green" if self.engines > 1 else "replace"


def fit(strategy: str, devices: Devices, before: int, after: int) -> Fit:
    """How to get from an engine with ``before`` bytes of weights to one with ``after``. Raises UsageError."""
    if strategy not in STRATEGIES:
        raise UsageError(f"strategy = {strategy!r} makes no sense", hint=f"It is one of: {', '.join(STRATEGIES)}.")
    fits, why = _two_fit(devices, before, after)
    if strategy == "replace":
        return Fit(1, "as it was asked for")
    if strategy == "blue-green":
        return Fit(2, why if fits else f"as it was asked for, though {why}")
    return Fit(2 if fits else 1, why)


def _two_fit(devices: Devices, before: int, after: int) -> tuple[bool, str]:
    if devices.sets > 1:
        return True, f"there are {devices.sets} sets of devices"
    if devices.accelerator:
        both = f"two engines that each take {devices.share:.0%} of the devices' memory"
        return (True, f"{both} fit") if 2 * devices.share <= 1 else (False, f"{both} do not fit")
    if devices.kv_cache is None:
        return False, "how much memory an engine takes for its KV cache is not said (VLLM_CPU_KVCACHE_SPACE)"
    if devices.memory is None:
        return False, "how much memory there is cannot be found"
    needed = before + after + 2 * (devices.kv_cache + RUNTIME)
    sum_ = (
        f"two engines take {size(needed)} (weights {size(before)} + {size(after)}, twice {size(devices.kv_cache)} of "
        f"KV cache and {size(RUNTIME)} for themselves) of {size(devices.memory)}"
    )
    if needed <= ROOM * devices.memory:
        return True, sum_
    return False, f"{sum_}, which is over {ROOM:.0%} of it"
