"""JSON and YAML files that somebody else wrote: read with limits, and never trusted to have a shape."""

from __future__ import annotations

import io
import json
import os
import re
import stat
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from packtrain.errors import LocalDiskError, NotFound, UsageError, disk_hint

MAX_DOCUMENT = 64 << 20  # bytes of one JSON file; the index of a 70B model takes 0.1 MB
MAX_CONFIG = 1 << 20  # bytes of a LLaMA-Factory configuration
MAX_VALUES = 100_000  # in a configuration, once its YAML aliases are written out


class Malformed(ValueError):
    """A document that does not parse. The message completes "FILE: ..."."""


def open_regular(path: Path) -> io.BufferedReader:
    """Opens a regular file for reading. Raises NotFound, LocalDiskError; never waits, as opening a FIFO would."""
    try:
        file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFound(f"{printable(str(path))} does not exist") from error
    except IsADirectoryError as error:
        raise _not_regular(path) from error
    except OSError as error:
        raise disk_error(path, error) from error
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise _not_regular(path)
    return file


def _not_regular(path: Path) -> LocalDiskError:
    return LocalDiskError(
        f"{printable(str(path))} is not a regular file",
        hint="Give a file, or a folder of files; not a device or FIFO.",
    )


def read_bytes(path: Path, *, limit: int) -> bytes:
    """A whole regular file. Raises Malformed if it is longer than ``limit`` bytes, NotFound, LocalDiskError."""
    with open_regular(path) as file:
        try:
            data = file.read(limit + 1)
        except OSError as error:
            raise disk_error(path, error) from error
    if len(data) > limit:
        raise Malformed(f"is longer than {limit} bytes, which no such file is")
    return data


def is_folder(path: Path) -> bool:
    """Whether there is a directory that we can see; never an error."""
    return stat.S_ISDIR(_mode(path))


def is_file(path: Path) -> bool:
    """Whether there is a regular file that we can see; never an error."""
    return stat.S_ISREG(_mode(path))


def _mode(path: Path) -> int:
    try:
        return path.stat().st_mode
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return 0


def file_size(path: Path) -> int:
    """In bytes. Raises NotFound, LocalDiskError."""
    try:
        return path.stat().st_size
    except FileNotFoundError as error:
        raise NotFound(f"{printable(str(path))} does not exist") from error
    except OSError as error:
        raise disk_error(path, error) from error


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object. Raises Malformed, NotFound, LocalDiskError."""
    return parse_object(read_bytes(path, limit=MAX_DOCUMENT))


def parse_object(data: bytes) -> dict[str, Any]:
    """A JSON object from bytes. Raises Malformed."""
    try:
        value = json.loads(data.decode("utf-8-sig"))
    except RecursionError as error:
        raise Malformed("is nested too deeply") from error
    except ValueError as error:
        raise Malformed(f"is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise Malformed(f"is JSON, but not an object: it starts with {printable(repr(value)[:40])}")
    return value


def read_config(path: Path) -> dict[str, Any]:
    """A LLaMA-Factory configuration, YAML or JSON, as LLaMA-Factory reads it but without its interpolation.

    What comes back can be written as JSON. Raises UsageError, NotFound, LocalDiskError.
    """
    try:
        data = read_bytes(path, limit=MAX_CONFIG)
        value = parse_object(data) if path.suffix == ".json" else _parse_yaml(data)
        config: dict[str, Any] = _plain(value, [MAX_VALUES])
    except Malformed as error:
        raise UsageError(
            f"{printable(str(path))} {error}", hint="Give the YAML or JSON file that you gave to llamafactory-cli."
        ) from error
    except RecursionError as error:
        raise UsageError(f"{printable(str(path))} is nested too deeply for a configuration") from error
    return config


def printable(text: str) -> str:
    """The text with control characters and broken Unicode escaped: names of files may hold anything."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def disk_error(path: Path, error: OSError) -> LocalDiskError:
    denied = isinstance(error, PermissionError)
    return LocalDiskError(
        f"cannot read {printable(str(path))}: {error.strerror or error}",
        hint="Check its owner and permissions with ls -l." if denied else disk_hint(error),
    )


class _Loader(yaml.SafeLoader):
    """YAML as OmegaConf reads it for LLaMA-Factory: 1e-4 is a number, a date is a string."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":timestamp", ":float"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?(?:[eE][-+]?[0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?|\.inf|\.nan)$"
    ),
    list("-+0123456789."),
)


def _parse_yaml(data: bytes) -> dict[str, Any]:
    try:
        value = _Loader(data.decode("utf-8-sig")).get_single_data()
    except yaml.MarkedYAMLError as error:
        line = f" (line {error.problem_mark.line + 1})" if error.problem_mark else ""
        raise Malformed(f"is not YAML: {error.problem or error.context}{line}") from error
    except RecursionError as error:
        raise Malformed("is nested too deeply") from error
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError) as error:
        # PyYAML leaks all of these for scalars that contradict their tag (`!!int x`).
        raise Malformed(f"is not YAML: {printable(str(error))}") from error
    if not isinstance(value, dict):
        raise Malformed("does not hold settings (key: value)")
    return value


def _plain(value: Any, budget: list[int]) -> Any:
    """The value in JSON's types, at most ``budget[0]`` of them: YAML aliases can stand for billions."""
    budget[0] -= 1
    if budget[0] < 0:
        raise Malformed(f"holds more than {MAX_VALUES} values, which no configuration does")
    if isinstance(value, dict):
        return {_text(key): _plain(entry, budget) for key, entry in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(entry, budget) for entry in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    if value is None or isinstance(value, bool | int | float):
        return value
    return _text(value)


def _text(value: Hashable) -> str:
    return str(value).encode("utf-8", "replace").decode("utf-8")
