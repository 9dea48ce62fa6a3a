"""Every test: those with real engines, and beside them the others, because both wait for processes a third of the time.

    python tools/run_tests.py [arguments of pytest ...]

What the tests with engines print comes after what the others print.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from tempfile import TemporaryFile

OTHERS = ("-m", "not engine", "-n", "3", "--dist", "worksteal")
# A file at a time, because its tests share engines; the first of them waits for two trainings.
WITH_ENGINES = ("-m", "engine", "-n", "2", "--dist", "loadfile", "--timeout", "1800")


def main(arguments: list[str]) -> int:
    pytest = [sys.executable, "-m", "pytest", "tests", *arguments]
    with TemporaryFile() as output:
        engines = subprocess.Popen([*pytest, *WITH_ENGINES], stdout=output, stderr=subprocess.STDOUT)
        try:
            others = subprocess.run([*pytest, *OTHERS], check=False).returncode
            print("\nwith real engines:", flush=True)
            shown = 0
            while True:
                over = engines.poll() is not None
                while text := os.pread(output.fileno(), 1 << 16, shown):  # not read: their position in it is ours
                    shown += len(text)
                    sys.stdout.buffer.write(text)
                sys.stdout.flush()
                if over:
                    return others or engines.returncode
                time.sleep(1)
        finally:
            engines.terminate()
            engines.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
