"""What engines run on here, as far as it can be seen without starting one."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from packtrain.model.fitting import Devices
from packtrain.serving.arguments import Arguments

_ACCELERATORS = ("nvidia0", "kfd", "accel/accel0", "davinci0")  # NVIDIA, AMD, Gaudi and TPU, Ascend: below /dev
_CGROUPS = ("memory.max", "memory/memory.limit_in_bytes")
VISIBLE = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ASCEND_RT_VISIBLE_DEVICES")


def look(sets: Sequence[str], arguments: Arguments, environ: Mapping[str, str]) -> Devices:
    """``sets``: the sets of devices that the user configured."""
    accelerator = any(Path("/dev", name).exists() for name in _ACCELERATORS)
    return Devices(
        sets=max(1, len(sets)),
        accelerator=accelerator,
        share=_share(arguments),
        memory=_memory(),
        kv_cache=_kv_cache(arguments, environ),
    )


def environment(devices: str) -> dict[str, str]:
    """What makes an engine see one set of devices (``0,1``) and no other."""
    return dict.fromkeys(VISIBLE, devices) if devices else {}


def _share(arguments: Arguments) -> float:
    with suppress(TypeError, IndexError, ValueError):
        return float((arguments.values("--gpu-memory-utilization") or ())[-1])
    return Devices().share


def _kv_cache(arguments: Arguments, environ: Mapping[str, str]) -> int | None:
    with suppress(TypeError, IndexError, ValueError):
        return int((arguments.values("--kv-cache-memory-bytes") or ())[-1])
    with suppress(KeyError, ValueError):
        return int(float(environ["VLLM_CPU_KVCACHE_SPACE"]) * (1 << 30)) or None
    return None


def _memory() -> int | None:
    """Main memory, or what this container may take of it."""
    with suppress(OSError, ValueError):
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        for name in _CGROUPS:
            with suppress(OSError, ValueError):
                total = min(total, int(Path("/sys/fs/cgroup", name).read_text()))
        return total
    return None
