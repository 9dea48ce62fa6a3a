"""A command, and then the BLAKE3 of every file that it left: then_blake3.py DIRECTORY COMMAND..."""

import os
import subprocess
import sys
from pathlib import Path

from blake3 import blake3

directory, *command = sys.argv[1:]
subprocess.run(command, check=True)
threads = len(os.sched_getaffinity(0))
for path in sorted(Path(directory).rglob("*")):
    if path.is_file():
        print(blake3(max_threads=threads).update_mmap(path).hexdigest(), path)
