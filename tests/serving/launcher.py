"""What `packtrain serve` and `packtrain run` do around the engine, as a process of its own that tests can kill.

    python launcher.py supervise|exec EXECUTABLE MODEL PIN ADAPTER|- [vllm serve arguments]

It takes a shared flock on PIN, as the cache does, and writes its notes to stderr, one per line after "note: ".
"""

import fcntl
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from packtrain.errors import PacktrainError, exit_code
from packtrain.serving import Adapter, Arguments, Launch, adapter_rank, exec_vllm, find_vllm, supervise


class Notes:
    def begin(self, what: str, total: int) -> None: ...
    def advance(self, count: int) -> None: ...
    def end(self) -> None: ...
    def note(self, text: str) -> None:
        print(f"note: {text}", file=sys.stderr, flush=True)


class HastyClock:
    """Time that runs ``speed`` times as fast, so that half a minute of grace is over in a moment."""

    def __init__(self, speed: float) -> None:
        self.speed = speed

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic() * self.speed

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds / self.speed)


def main(how: str, executable: str, model: str, pin: str, adapter: str, *arguments: str) -> int:
    pinned = os.open(pin, os.O_RDWR | os.O_CREAT, 0o644)
    fcntl.flock(pinned, fcntl.LOCK_SH)
    try:
        launch = Launch(
            name="llama-finetuned",
            model=model,
            fingerprint="llama-finetuned/3@sha256:0123456789ab",
            arguments=Arguments.read(arguments),
            adapter=None if adapter == "-" else Adapter(Path(adapter), adapter_rank(Path(adapter)), "tiny-llama"),
        )
        if how == "exec":
            exec_vllm(launch, find_vllm(executable), [pinned])
        clock = HastyClock(float(os.environ.get("HASTE", "1")))
        return supervise(launch, find_vllm(executable), [pinned], reporter=Notes(), clock=clock)
    except PacktrainError as error:
        print(f"error: {error} ({error.hint})", file=sys.stderr)
        return exit_code(error)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
