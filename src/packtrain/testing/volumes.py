"""A real volume that several machines share, for tests: JuiceFS, which root can mount wherever there is FUSE."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from packtrain.errors import Unavailable
from packtrain.testing.servers import program

START_TIMEOUT = 180.0  # seconds


@contextmanager
def juicefs(directory: Path, machines: int = 2) -> Iterator[list[Path]]:
    """One volume, its data and its metadata in ``directory``, mounted once for each machine.

    The mounts are as independent as those of two machines: each is a process with caches of its own, and they meet
    only in the volume's metadata. Raises Unavailable if they do not come up.
    """
    command = program("juicefs")
    directory.mkdir(parents=True, exist_ok=True)
    metadata = f"sqlite3://{directory / 'metadata.db'}"
    bucket = f"{directory / 'objects'}/"
    format_volume = ["format", "--trash-days", "0", "--storage", "file", "--bucket", bucket, metadata, "shared"]
    subprocess.run([command, "--no-agent", *format_volume], check=True, capture_output=True)
    with ExitStack() as mounts:
        yield [mounts.enter_context(_mounted(command, metadata, directory, n + 1)) for n in range(machines)]


@contextmanager
def _mounted(command: str, metadata: str, directory: Path, number: int) -> Iterator[Path]:
    mount = directory / f"machine-{number}"
    log_path = directory / f"machine-{number}.log"
    mount.mkdir()
    options = ["--no-usage-report", "--no-syslog", "--backup-meta", "0", "--metrics", "127.0.0.1:0"]
    options += ["--cache-dir", str(directory / f"cache-{number}")]
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [command, "--no-agent", "mount", *options, metadata, str(mount)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + START_TIMEOUT
        while not mount.is_mount():
            if process.poll() is not None or time.monotonic() > deadline:
                tail = log_path.read_text(errors="replace")[-2000:]
                raise Unavailable(f"JuiceFS was not mounted within {START_TIMEOUT:.0f} s:\n{tail}")
            time.sleep(0.02)
        yield mount
    finally:
        if subprocess.run(["umount", str(mount)], check=False, capture_output=True).returncode:  # a failed test uses it
            subprocess.run(["umount", "--lazy", str(mount)], check=False, capture_output=True)
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
