"""vLLM's command line, and becoming vLLM. Written against vLLM 0.32 (`vllm serve --help=all`)."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import socket
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from packtrain.errors import EngineError, IntegrityError, Refused, UsageError
from packtrain.serving.arguments import Arguments, Endpoint

# The ranks that vLLM reserves room for: `MaxLoRARanks` in vllm/config/lora.py.
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


@dataclass(frozen=True, slots=True)
class Adapter:
    """LoRA weights on top of the launched model.

    ``path`` is the absolute directory of the adapter, ``rank`` what `adapter_rank` says of it, ``base_name`` the
    name under which the base answers beside it.
    """

    path: Path
    rank: int
    base_name: str


@dataclass(frozen=True, slots=True)
class Launch:
    """One engine, before it is started.

    ``name`` is what clients ask for; ``model`` the directory, or the Hugging Face id (then at ``revision``), of the
    model or of an adapter's base; ``fingerprint`` what every answer carries as its ``system_fingerprint``;
    ``environment`` is added to this process's own.
    """

    name: str
    model: str
    fingerprint: str
    arguments: Arguments = field(default_factory=Arguments)
    adapter: Adapter | None = None
    revision: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


def adapter_rank(directory: Path) -> int:
    """The largest rank of an adapter's matrices, from its adapter_config.json. Raises IntegrityError."""
    path = directory / "adapter_config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        ranks = [config["r"], *(config.get("rank_pattern") or {}).values()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(f"{path} does not say the adapter's rank: {error!r}") from error
    if not all(type(rank) is int and rank > 0 for rank in ranks):
        raise IntegrityError(f"{path} gives a rank that is not a positive number: {ranks}")
    return int(max(ranks))


def command_line(launch: Launch, executable: str) -> list[str]:
    """The whole command. What the user said wins over what we would say; what would serve something else under
    the promised name is refused with UsageError."""
    said = launch.arguments
    ours: list[str] = []
    users = said.given

    if launch.revision is not None:
        if said.has("--revision"):
            raise UsageError(
                f"--revision would serve another base than {launch.model} at {launch.revision}",
                hint="Leave it out: the adapter's version records the revision it was trained on.",
            )
        ours += ["--revision", launch.revision]

    if not said.has("--served-model-name"):
        ours += ["--served-model-name", launch.name if launch.adapter is None else _base_name(launch)]

    if not said.has("--fingerprint-mode"):
        ours += ["--fingerprint-mode", "custom"]
        if not said.has("--fingerprint-value"):
            ours += ["--fingerprint-value", launch.fingerprint]

    if launch.adapter is not None:
        ours += _lora(launch, launch.adapter)
        users = said.without("--lora-modules")  # merged into ours: vLLM would take only the last

    return [executable, "serve", launch.model, *ours, *users]


def find_vllm(setting: str) -> str:
    """The absolute path of vLLM's executable. ``setting`` is a name on PATH or a path. Raises EngineError."""
    found = shutil.which(os.path.expanduser(setting))  # noqa: PTH111 - an unknown ~USER stays as it is
    if found is None:
        missing = "is not an executable file" if os.sep in setting else "is not on PATH"
        raise EngineError(
            f"vLLM was not found: {setting} {missing}",
            hint="Install it into an environment of its own (uv venv vllm && uv pip install --python vllm vllm) "
            "and set PACKTRAIN_VLLM to the executable: PACKTRAIN_VLLM=vllm/bin/vllm.",
        )
    return str(Path(found).absolute())


def exec_vllm(launch: Launch, executable: str, keep_fds: Collection[int]) -> NoReturn:
    """Becomes vLLM: same process, with the descriptors ``keep_fds`` (the pins) still open. Raises EngineError."""
    command = command_line(launch, executable)
    refuse_taken_port(launch.arguments.endpoint)
    for descriptor in keep_fds:
        os.set_inheritable(descriptor, True)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    # Python ignores these two, and what is ignored stays so across exec.
    for signum in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(signum, signal.SIG_DFL)
    try:
        os.execve(executable, command, environment(launch))  # noqa: S606
    except OSError as error:
        raise EngineError(f"{executable} does not start: {error.strerror}", hint="Is PACKTRAIN_VLLM right?") from error


def environment(launch: Launch) -> dict[str, str]:
    return {**os.environ, **launch.environment}


def refuse_taken_port(endpoint: Endpoint | None) -> None:
    """Raises EngineError if the port is in use. vLLM itself would say so only after its imports, and with several
    API servers not at all; and whoever holds the port would pass for the engine."""
    if endpoint is None:
        return
    family = socket.AF_INET6 if ":" in endpoint.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as attempt:
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            attempt.bind((endpoint.host, endpoint.port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise EngineError(
                    f"port {endpoint.port} is in use",
                    hint="Stop what listens there (ss -ltnp shows it), or choose another port: -- --port 8001",
                ) from error
            # A host that cannot be had, or a port that is not allowed: vLLM says it better.
        except OverflowError:
            raise UsageError(f"--port {endpoint.port} is not a port") from None


def _lora(launch: Launch, adapter: Adapter) -> list[str]:
    said = launch.arguments
    if said.has("--no-enable-lora"):
        raise UsageError(f"--no-enable-lora contradicts {launch.name}, which is an adapter")
    if launch.name in (said.values("--served-model-name") or ()):
        raise UsageError(
            f"--served-model-name {launch.name} would give the adapter's name to its base",
            hint="With an adapter the argument names the base. Choose another name, or leave it out.",
        )
    others = said.values("--lora-modules") or ()
    if launch.name in map(_module_name, others):
        raise UsageError(
            f"--lora-modules brings another adapter called {launch.name}",
            hint="Give it another name; both are served.",
        )
    # JSON, because the short form NAME=PATH cannot hold every path; it also tells clients the base (`parent`).
    base = (said.values("--served-model-name") or (_base_name(launch),))[0]
    module = {"name": launch.name, "path": str(adapter.path), "base_model_name": base}
    return [
        *([] if said.has("--enable-lora") else ["--enable-lora"]),
        *_max_rank(launch, adapter),
        *("--lora-modules", json.dumps(module), *others),
    ]


def _max_rank(launch: Launch, adapter: Adapter) -> list[str]:
    if launch.arguments.has("--max-lora-rank"):
        allowed = launch.arguments.integer("--max-lora-rank", 0)
        if allowed < adapter.rank:
            raise UsageError(
                f"--max-lora-rank {allowed} is too small for {launch.name}, which has rank {adapter.rank}",
                hint="Leave it out, and it follows from the adapter.",
            )
        return []
    fitting = [rank for rank in LORA_RANKS if rank >= adapter.rank]
    if not fitting:
        raise Refused(
            f"{launch.name} has LoRA rank {adapter.rank}; vLLM serves ranks up to {LORA_RANKS[-1]}",
            hint="Merge the adapter into its base (packtrain export) and serve the merged model.",
        )
    return ["--max-lora-rank", str(fitting[0])]


def _base_name(launch: Launch) -> str:
    """The base answers under its own name; one that was published under the adapter's needs another."""
    assert launch.adapter is not None
    name = launch.adapter.base_name
    return name if name != launch.name else f"{name}-base"


def _module_name(module: str) -> str:
    """The name in one value of --lora-modules: ``NAME=PATH``, or JSON with a ``name``."""
    if "=" in module and "," not in module:
        return module.partition("=")[0]
    try:
        return str(json.loads(module)["name"])
    except (ValueError, KeyError, TypeError):
        return ""  # vLLM refuses it, and says why
