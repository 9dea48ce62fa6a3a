"""What the user wants vLLM to be told: the arguments after ``--``, read as vLLM reads them.

vLLM knows some 300 arguments, and more with each release, so only those are understood here that meet what
Packtrain itself says. Reading follows vLLM 0.32 (`vllm/utils/argparse_utils.py`): ``_`` is as good as ``-`` in a
name, a name may be shortened, a later argument beats an earlier one, and the options of a ``--config`` file come
before all arguments.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import yaml

from packtrain.errors import UsageError

DEFAULT_PORT = 8000

# With these there is no /health that plain HTTP on host and port could ask.
_HIDES_HEALTH = ("--uds", "--ssl-keyfile", "--ssl-certfile", "--headless", "--grpc")
_OPENS_NO_PORT = ("--uds", "--headless")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where vLLM listens. ``host`` is empty for all of this machine's IPv4 addresses."""

    host: str
    port: int

    @property
    def reachable_host(self) -> str:
        """An address that a connection from this machine can be made to."""
        return {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104

    @property
    def url(self) -> str:
        host = f"[{self.reachable_host}]" if ":" in self.reachable_host else self.reachable_host
        return f"http://{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Arguments:
    """``given`` goes to vLLM as it is; ``configured`` is what the ``--config`` file in it stands for."""

    given: tuple[str, ...] = ()
    configured: tuple[str, ...] = field(default=(), repr=False)

    @classmethod
    def read(cls, given: Sequence[str]) -> Arguments:
        """Raises UsageError for arguments that name another model than the one that is served, and for a
        ``--config`` file that cannot be read. Do it before anything is pulled."""
        if given and not given[0].startswith("-"):
            raise _second_model(given[0])
        arguments = cls(tuple(given), tuple(_config_file(given)))
        model = arguments.values("--model")
        if model is not None:
            raise _second_model(f"--model {' '.join(model)}")
        return arguments

    def values(self, flag: str) -> tuple[str, ...] | None:
        """The values of an argument, the way vLLM would take them; None if it is not there."""
        found = None
        for name, values in _groups((*self.configured, *self.given)):
            if _means(name, flag):
                found = values
        return found

    def has(self, flag: str) -> bool:
        return self.values(flag) is not None

    def integer(self, flag: str, default: int) -> int:
        """The value of an argument that takes a number. Raises UsageError."""
        values = self.values(flag)
        if values is None:
            return default
        try:
            return int(values[-1])
        except (IndexError, ValueError):
            raise UsageError(f"{flag} needs a number, not {' '.join(values)!r}") from None

    def without(self, flag: str) -> tuple[str, ...]:
        """What was given, less every occurrence of one argument."""
        return tuple(
            token for name, values in _groups(self.given) if not _means(name, flag) for token in _tokens(name, values)
        )

    def behind(self, port: int) -> Arguments:
        """The same for an engine behind the proxy, on a port of this machine's own. The key stays out: whoever lists
        processes could read it."""
        kept = replace(self, given=self.without("--api-key"))
        kept = replace(kept, given=kept.without("--host"))
        given = (*kept.without("--port"), "--host", "127.0.0.1", "--port", str(port))
        return replace(kept, given=given)

    @property
    def endpoint(self) -> Endpoint | None:
        """Where vLLM will listen; None if it opens no port, or one that nobody knows beforehand."""
        if any(self.has(flag) for flag in _OPENS_NO_PORT):
            return None
        port = self.integer("--port", DEFAULT_PORT)
        return Endpoint(host=(self.values("--host") or ("",))[-1], port=port) if port else None

    @property
    def hides_health(self) -> str:
        """The argument because of which vLLM cannot be asked whether it is ready, or nothing."""
        hidden = next((flag for flag in _HIDES_HEALTH if self.has(flag)), "")
        return hidden or ("--port 0" if self.endpoint is None else "")


def _groups(tokens: Sequence[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each argument with its values: ``--port 80`` and ``--port=80`` alike. The name is as it was written, with
    a ``=`` at its end if the value was attached to it."""
    name, values = "", list[str]()
    for token in tokens:
        if not token.startswith("-"):
            values.append(token)
            continue
        if name:
            yield name, tuple(values)
        name, equals, value = token.partition("=")
        name, values = name + equals, [value] if equals else []
    if name:
        yield name, tuple(values)


def _tokens(name: str, values: Sequence[str]) -> list[str]:
    return [name + values[0], *values[1:]] if name.endswith("=") else [name, *values]


def _means(name: str, flag: str) -> bool:
    """Whether vLLM would take what was written for this flag. A shortening that fits several arguments counts
    here too: vLLM refuses it anyway."""
    plain = name.rstrip("=").replace("_", "-")
    return plain.startswith("--") and plain != "--" and flag.startswith(plain)


def _config_file(given: Sequence[str]) -> Iterator[str]:
    """The arguments that the file of ``--config FILE`` stands for. Like vLLM, this knows no shortening of it."""
    if "--config" not in given:
        return
    path = Path(*given[given.index("--config") + 1 :][:1])
    try:
        options = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"the file of --config, {path}, cannot be read: {error}") from error
    if not isinstance(options, dict):
        raise UsageError(
            f"the file of --config, {path}, is not a map of options",
            hint="It holds vLLM's arguments without their dashes, one per line, as in: port: 8001",
        )
    for key, value in options.items():
        if value is not False:
            values = value if isinstance(value, list) else [] if value is True else [value]
            yield from (f"--{key}", *map(str, values))


def _second_model(said: str) -> UsageError:
    return UsageError(
        f"{said!r} names a model for vLLM, but the model is the one that the reference names",
        hint="Leave it out. Everything after -- is for vLLM's options: --port 8001 --max-model-len 4096.",
    )
