"""The quickstart is run as a newcomer would type it: every command after a ``$``, with the output that it shows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "quickstart.md"
BIN = Path(sys.executable).parent
END = "<end of a command>"


def steps() -> Iterator[tuple[str, list[str]]]:
    """Each command of the page and the lines that it prints. ``> `` continues a command, as in a shell."""
    command, shown = "", list[str]()
    for block in re.findall(r"```console\n(.*?)```", PAGE.read_text(), re.DOTALL):
        for line in block.splitlines():
            if line.startswith("$ "):
                if command:
                    yield command, shown
                command, shown = line.removeprefix("$ "), []
            elif line.startswith(">"):
                command += "\n" + line.removeprefix(">").removeprefix(" ")
            else:
                shown.append(line)
    yield command, shown


def pattern(shown: list[str]) -> str:
    """What must be printed: ``…`` is anything on its line, and the widths of a table's columns do not count."""
    lines = (".*".join(re.escape(squeeze(part)) for part in line.split("…")) for line in shown)
    return "\n".join(lines)


def squeeze(text: str) -> str:
    return re.sub(r" +", " ", text)


def test_every_command_prints_what_the_page_shows(tmp_path: Path) -> None:
    commands = list(steps())
    assert len(commands) > 15
    script = "".join(f"{command}\necho '{END}'\n" for command, _ in commands)
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PACKTRAIN_", "XDG_", "AWS_"))}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=tmp_path,
        env={**clean, "HOME": str(tmp_path), "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    printed = done.stdout.split(f"{END}\n")
    assert done.returncode == 0, done.stdout
    assert printed.pop() == ""
    for (command, shown), output in zip(commands, printed, strict=True):
        assert re.fullmatch(pattern(shown), squeeze(output.rstrip("\n"))), f"$ {command}\n{output}"
    assert list(tmp_path.iterdir()) == [], "the clean-up leaves nothing behind"
