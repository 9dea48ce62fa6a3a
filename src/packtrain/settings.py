"""Settings: one frozen value, read once.

In rising order: built-in defaults, packtrain.toml (found upwards from the working directory, or PACKTRAIN_CONFIG),
PACKTRAIN_* variables, flags of the same names. docs/settings.md lists them.
"""

from __future__ import annotations

import getpass
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from packtrain.errors import UsageError
from packtrain.model.amount import Amount
from packtrain.model.fitting import STRATEGIES

FILE_NAME = "packtrain.toml"
CONFIG = "PACKTRAIN_CONFIG"  # the variable that names another file
DEFAULT = "default"
UNLIMITED = "unlimited"
DEFAULT_CLASS = "default"
PULLS = ("cache", "in-place")


@dataclass(frozen=True, slots=True)
class Settings:
    """Every setting. In packtrain.toml they are top-level keys, in the environment PACKTRAIN_ and upper case."""

    store: str  # file:///path, s3://bucket/prefix, gs://bucket/prefix, az://container/prefix
    registry: str  # "store": the ledger inside the store
    storage_class: str  # of what is published to S3; "default" is the bucket's
    cache_dir: Path  # this node's snapshots
    cache_quota: Amount  # how much they may take
    cache_free: Amount  # how much of their disk stays free
    pull: str  # "cache": a copy on this node; "in-place": the store's own directory, without one
    pull_memory: int  # bytes in flight, at most
    pull_bandwidth: int | None  # bytes a second, at most
    actor: str  # who is written into the ledger
    vllm: str  # the command that starts vLLM
    llamafactory: str  # the command that starts LLaMA-Factory
    strategy: str  # how `serve` changes versions: "auto", "blue-green", "replace"
    devices: tuple[str, ...]  # sets of devices for engines: "0,1" and "2,3"
    poll: float  # seconds between two looks at the alias
    watch_window: float  # seconds in which a version must prove itself
    error_limit: float  # the share of requests that may fail meanwhile
    latency_limit: float | None  # the median time to the first byte meanwhile, in seconds
    drain: float  # seconds for requests to end when their engine is to stop
    keep_versions: int  # how many versions that proved themselves stay in the cache


def load(flags: Mapping[str, str | None], *, environ: Mapping[str, str], directory: Path) -> Settings:
    """The settings for a command that runs in ``directory``. ``flags`` that are None were not given.

    Raises UsageError for unknown keys and for values of the wrong type, naming the file or variable.
    """
    gathered = _gather(flags, environ, directory)
    values = {name: value for name, (value, _) in gathered.items()}
    said_by = {name: _said_by(name, origin) for name, (_, origin) in gathered.items()}  # for errors
    if values["pull"] not in PULLS:
        raise UsageError(
            f"{said_by['pull']} = {values['pull']!r} makes no sense", hint=f"It is one of: {', '.join(PULLS)}."
        )
    if values["strategy"] not in STRATEGIES:
        raise UsageError(
            f"{said_by['strategy']} = {values['strategy']!r} makes no sense",
            hint=f"It is one of: {', '.join(STRATEGIES)}.",
        )
    bandwidth = values.pop("pull_bandwidth")
    latency = values.pop("latency_limit")
    return Settings(
        cache_dir=_with_home(values.pop("cache_dir")).absolute(),
        cache_quota=_amount(values.pop("cache_quota"), said_by["cache_quota"]),
        cache_free=_amount(values.pop("cache_free"), said_by["cache_free"]),
        pull_memory=_bytes(values.pop("pull_memory"), said_by["pull_memory"]),
        pull_bandwidth=None if bandwidth == UNLIMITED else _bytes(bandwidth, said_by["pull_bandwidth"]),
        devices=tuple(filter(None, (each.strip() for each in values.pop("devices").split(";")))),
        error_limit=_share(values.pop("error_limit"), said_by["error_limit"]),
        latency_limit=None if latency == UNLIMITED else _seconds(latency, said_by["latency_limit"]),
        keep_versions=_count(values.pop("keep_versions"), said_by["keep_versions"]),
        poll=_seconds(values.pop("poll"), said_by["poll"]),
        watch_window=_seconds(values.pop("watch_window"), said_by["watch_window"]),
        drain=_seconds(values.pop("drain"), said_by["drain"]),
        **values,
    )


def origins(flags: Mapping[str, str | None], *, environ: Mapping[str, str], directory: Path) -> dict[str, str]:
    """Where each setting comes from: DEFAULT, the path of a file, ``PACKTRAIN_STORE``, ``--store``. Raises as `load`
    does."""
    return {name: origin for name, (_, origin) in _gather(flags, environ, directory).items()}


def unknown_variables(environ: Mapping[str, str]) -> list[str]:
    """PACKTRAIN_* variables that mean nothing, misspelt ones among them."""
    known = {CONFIG, *(_variable(field.name) for field in fields(Settings))}
    return sorted(name for name in environ if name.startswith("PACKTRAIN_") and name not in known)


def _gather(flags: Mapping[str, str | None], environ: Mapping[str, str], directory: Path) -> dict[str, tuple[str, str]]:
    """Each setting as it was written, and where."""
    found = {name: (value, DEFAULT) for name, value in _defaults(environ).items()}
    path = _find_file(environ, directory)
    if path is not None:
        found |= {name: (value, str(path)) for name, value in _from_file(path).items()}
    for name in found:
        if value := environ.get(_variable(name)):
            found[name] = (value, _variable(name))
    return found | {name: (value, _flag(name)) for name, value in flags.items() if value is not None}


def _said_by(name: str, origin: str) -> str:
    if origin == _variable(name):
        return origin
    return name if origin in (DEFAULT, _flag(name)) else f"{origin}: {name}"


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _variable(name: str) -> str:
    return f"PACKTRAIN_{name.upper()}"


def _defaults(environ: Mapping[str, str]) -> dict[str, str]:
    home = Path(environ.get("HOME") or Path.home())
    data = Path(environ.get("XDG_DATA_HOME") or home / ".local" / "share")
    cache = Path(environ.get("XDG_CACHE_HOME") or home / ".cache")
    return {
        "store": (data / "packtrain" / "store").absolute().as_uri(),
        "registry": "store",
        "storage_class": DEFAULT_CLASS,
        "cache_dir": str(cache / "packtrain"),
        "cache_quota": "100%",
        "cache_free": "5%",
        "pull": "cache",
        "pull_memory": "64MiB",
        "pull_bandwidth": UNLIMITED,
        "actor": _user(),
        "vllm": "vllm",
        "llamafactory": "llamafactory-cli",
        "strategy": "auto",
        "devices": "",
        "poll": "10",
        "watch_window": "120",
        "error_limit": "10%",
        "latency_limit": UNLIMITED,
        "drain": "60",
        "keep_versions": "2",
    }


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no name for this user id, as in many containers
        return f"uid-{os.getuid()}"


def _find_file(environ: Mapping[str, str], directory: Path) -> Path | None:
    if named := environ.get(CONFIG):
        path = _with_home(named)
        if not path.is_file():
            raise UsageError(
                f"PACKTRAIN_CONFIG names {path}, which is not a file", hint=f"Correct it, or unset {CONFIG}."
            )
        return path
    for folder in (directory, *directory.parents):
        if (folder / FILE_NAME).is_file():
            return folder / FILE_NAME
    return None


def _with_home(path: str) -> Path:
    """The path, with ~ and ~USER as the home of that user."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UsageError(f"{path}: there is no such user's home", hint="Write the path from / on.") from error


def _amount(text: str, said_by: str) -> Amount:
    try:
        return Amount(text)
    except UsageError as error:
        raise UsageError(f"{said_by}: {error}", hint=error.hint) from error


def _bytes(text: str, said_by: str) -> int:
    count = _amount(text, said_by).of(0)
    if count < 1:
        raise UsageError(f"{said_by}: {text!r} is not an amount of bytes", hint="Write it like 64MiB or 200MB.")
    return count


def _seconds(text: str, said_by: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < 1e9:
        raise UsageError(f"{said_by}: {text!r} is not a number of seconds", hint="Write it like 10 or 0.5.")
    return seconds


def _share(text: str, said_by: str) -> float:
    amount = _amount(text, said_by)
    if not text.endswith("%"):
        raise UsageError(f"{said_by}: {text!r} is not a share", hint="Write it like 10%.")
    return amount.of(1_000_000) / 1_000_000


def _count(text: str, said_by: str) -> int:
    if not text.isascii() or not text.isdecimal() or int(text) < 1:
        raise UsageError(f"{said_by}: {text!r} is not a number of versions", hint="Write it like 2; at least 1.")
    return int(text)


def _from_file(path: Path) -> dict[str, str]:
    import tomllib  # many machines have variables alone

    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    known = {field.name for field in fields(Settings)}
    for key, value in content.items():
        if key not in known:
            raise UsageError(f"{path}: unknown setting {key!r}", hint=f"Settings are: {', '.join(sorted(known))}.")
        if not isinstance(value, str) or not value:
            raise UsageError(f"{path}: {key} must be a text in quotes")
    if (cache_dir := content.get("cache_dir")) and not cache_dir.startswith("~"):
        content["cache_dir"] = str(path.parent / cache_dir)  # relative to the file that says it
    return content
