"""Ties an engine's life to its supervisor's, then becomes the engine.

Run as a file, in the process that is to be the engine: ``python -I -S tether.py SUPERVISOR_PID COMMAND...``. The
kernel then sends it SIGTERM when the supervisor dies, even by SIGKILL; the setting survives exec. It is a program
because the setting belongs to the calling process, and running Python between fork and exec is not safe in a
program that has threads.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
NOT_EXECUTABLE, NOT_FOUND = 126, 127  # as shells say it


def main(supervisor: str, *command: str) -> int:
    # Python's own ways with these would pass through exec, or show a traceback before it.
    for signum in (signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(signum, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(supervisor):  # it died before the kernel was told
        return 128 + signal.SIGTERM
    try:
        os.execv(command[0], command)  # noqa: S606
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr)
        return NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
