"""Runs `llamafactory-cli export`, knows where it writes, and asks it for its version."""

from __future__ import annotations

import codecs
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from packtrain.errors import EngineError, Refused, UsageError
from packtrain.training.documents import disk_error, printable, read_config

GRACE = 10.0  # seconds between asking an interrupted export to end and killing it
VERSION_WITHIN = 60.0  # seconds
TAIL = 4096  # bytes of its output that an error repeats the end of

_WEIGHTS = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json")


def export_dir(config: Path) -> Path:
    """Where ``llamafactory-cli export`` with this configuration writes. Raises UsageError, NotFound, LocalDiskError."""
    value = read_config(config).get("export_dir")
    if not isinstance(value, str) or not value:
        raise UsageError(
            f"{printable(str(config))} has no export_dir", hint="Add export_dir: PATH; LLaMA-Factory writes there."
        )
    if "${" in value:
        raise UsageError(
            f"{printable(str(config))} computes its export_dir ({value})", hint="Write the path out in export_dir."
        )
    return Path.cwd() / value


def export(config: Path, *, command: str) -> Path:
    """Merges or exports as ``config`` says, and returns the directory that was written.

    ``command`` is llamafactory-cli or the path of it. Its output goes to our stderr as it comes. An interrupt ends
    the whole process group. Raises EngineError, Refused (weights of an earlier export would mix with the new ones),
    UsageError, NotFound, LocalDiskError.
    """
    if config.suffix not in (".yaml", ".yml", ".json"):
        raise UsageError(
            f"LLaMA-Factory does not read {printable(str(config))} as a configuration",
            hint="It must end in .yaml, .yml or .json.",
        )
    directory = export_dir(config)
    program = shutil.which(command)
    if program is None:
        raise EngineError(
            f"there is no command {command!r} on this machine",
            hint="Install LLaMA-Factory (pip install llamafactory), or set PACKTRAIN_LLAMAFACTORY to its "
            "llamafactory-cli. A directory that was exported elsewhere is published with `packtrain publish DIR`.",
        )
    before = _weights(directory)
    _run([program, "export", str(config)])
    after = _weights(directory)
    if not after:
        raise EngineError(f"{command} export ended well, but there are no weights in {directory}")
    if stale := sorted(name for name, state in after.items() if before.get(name) == state):
        raise Refused(
            f"{directory} still holds weights of an earlier export: {', '.join(map(printable, stale[:5]))}",
            hint="Two exports would mix. Remove that directory, or name a new export_dir, and export again.",
        )
    return directory


def version(command: str) -> str | None:
    """The version that a llamafactory-cli says it is, None if it does not say. It takes some seconds to start."""
    program = shutil.which(command)
    if program is None:
        return None
    try:
        said = subprocess.run(
            [program, "version"], stdin=subprocess.DEVNULL, capture_output=True, timeout=VERSION_WITHIN, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(rb"LLaMA Factory, version (\d[\w.+-]*)", said.stdout)
    return found[1].decode("ascii") if found else None


def _weights(directory: Path) -> dict[str, tuple[int, int, int]]:
    """Each weight file and index in the directory, with what changes when it is written."""
    try:
        with os.scandir(directory) as entries:
            found = {e.name: e.stat() for e in entries if e.name.endswith(_WEIGHTS) and e.is_file()}
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise disk_error(directory, error) from error
    return {name: (status.st_mtime_ns, status.st_ino, status.st_size) for name, status in found.items()}


def _run(arguments: list[str]) -> None:
    process: subprocess.Popen[bytes] | None = None
    try:
        with _interrupts_held_back():
            process = _start(arguments)
        assert process.stdout is not None  # PIPE was asked for
        with process.stdout as output:
            tail = _relay(output)
        code = process.wait()
    except BaseException:
        if process is not None:
            _end(process)
        raise
    if code:
        how = f"was killed by {_signal_name(-code)}" if code < 0 else f"failed with exit code {code}"
        lines = [line for line in tail.splitlines() if line.strip()][-5:]
        raise EngineError(f"{' '.join(arguments)} {how}", hint="\n".join(["It ended with:", *lines]) if lines else "")


def _start(arguments: list[str]) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that it and its workers can be ended together
            bufsize=0,
        )
    except OSError as error:
        raise EngineError(f"cannot start {arguments[0]}: {error.strerror or error}") from error


@contextlib.contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """A signal that would raise while a process is being started would leave it behind: it raises after that."""
    if threading.current_thread() is not threading.main_thread():  # where no signal raises
        yield
        return
    arrived: list[int] = []
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    raising = {number: handler for number, handler in handlers.items() if callable(handler)}
    for number in raising:
        signal.signal(number, lambda signum, _: arrived.append(signum))
    try:
        yield
    finally:
        for number, handler in raising.items():
            signal.signal(number, handler)
        for signum in arrived:
            signal.raise_signal(signum)


def _relay(output: IO[bytes]) -> str:
    """Copies the output to stderr as it comes, and returns its end."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    tail = b""
    while piece := output.read(TAIL):
        sys.stderr.write(decoder.decode(piece))
        sys.stderr.flush()
        tail = (tail + piece)[-TAIL:]
    return tail.decode("utf-8", "replace")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends the process group: asks, waits, kills what is left."""
    try:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
