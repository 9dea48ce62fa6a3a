"""Every page is walked as a newcomer would type it: each command after a ``$``, with the output that it shows.

A page takes part by having a ```console block with a ``$``; ```bash blocks are not run. In one page:

    $ command         is run by bash, in one shell for the whole page, which starts in an empty folder
    > more of it      continues a command
    anything else     is what the command prints (stdout and stderr) after it: ``…`` is anything within a line, a line
                      of nothing but ``…`` is any lines, and the widths of a table's columns do not count

A command that shows a line ``error: ...`` must fail, every other must succeed. ``$HOME`` is that folder, too, and no
settings are inherited; the defaults keep everything below it. What readers need not see stands in comments:

    <!-- run          commands that prepare or check something at this place: they must succeed, what they print is
    cp -r "$TINY/merged-1" output                        not compared; "$TINY" has the directories of `Models`
    -->
    <!-- needs s3 --> the variables of a real S3 server are set (its bucket is s3://packtrain); or: gcs, root
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from packtrain.testing.gcs_server import GcsServer
from packtrain.testing.servers import S3Server
from tests.conftest import Models

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
BLOCK = re.compile(r"```console\n(.*?)```|<!-- run\n(.*?)-->", re.DOTALL)
NEEDS = re.compile(r"<!-- needs (\w+) -->")
END = "<end of a command: "
SHELL = f'ended() {{ local code=$?; echo "{END}$code>"; return $code; }}\n'  # so that a page may ask for $? next


@dataclass(frozen=True)
class Step:
    command: str
    shown: list[str] | None  # None: not compared

    @property
    def fails(self) -> bool:
        return any(line.startswith("error: ") for line in self.shown or ())


def steps(page: str) -> Iterator[Step]:
    for console, hidden in BLOCK.findall(page):
        if hidden:
            yield Step(hidden, None)
        for part in re.split(r"^\$ ", console, flags=re.MULTILINE)[1:]:
            first, *lines = part.splitlines()
            count = next((n for n, line in enumerate(lines) if not line.startswith(">")), len(lines))
            more = [line.removeprefix(">").removeprefix(" ") for line in lines[:count]]
            yield Step("\n".join([first, *more]), lines[count:])


def pattern(shown: list[str]) -> str:
    lines = (
        r"([^\n]*\n)*" if line == "…" else ".*".join(re.escape(squeeze(part)) for part in line.split("…")) + "\n"
        for line in shown
    )
    return "".join(lines)


def squeeze(text: str) -> str:
    return re.sub(r" +", " ", text)


def walks() -> Iterator[object]:
    for path in sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]):
        page = path.read_text()
        if any(step.shown is not None for step in steps(page)):
            marks = [pytest.mark.root] if "root" in NEEDS.findall(page) else []
            yield pytest.param(page, id=str(path.relative_to(ROOT)), marks=marks)


@pytest.mark.slow
@pytest.mark.parametrize("page", list(walks()))
def test_every_command_prints_what_the_page_shows(
    page: str, models: Models, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    walk = list(steps(page))
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith(("PACKTRAIN_", "XDG_", "AWS_", "GOOGLE_", "PYTHON"))
    }
    environment |= {"HOME": str(tmp_path), "TINY": str(models.home), "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    if "s3" in NEEDS.findall(page):
        server: S3Server = request.getfixturevalue("s3")
        environment |= server.environment
    if "gcs" in NEEDS.findall(page):
        google: GcsServer = request.getfixturevalue("gcs")
        environment |= google.environment
    done = subprocess.run(
        ["bash", "-uo", "pipefail", "-c", SHELL + "".join(f"{step.command}\nended\n" for step in walk)],
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    printed = re.findall(rf"(.*?){END}(\d+)>\n", done.stdout, re.DOTALL)
    for step, (output, code) in zip(walk, printed, strict=False):
        assert (code != "0") == step.fails, f"$ {step.command}\n{output}exit code {code}"
        if step.shown is not None:
            assert re.fullmatch(pattern(step.shown), squeeze(output)), f"$ {step.command}\n{output}"
    assert len(printed) == len(walk), done.stdout  # the shell itself gave up


def test_the_quickstart_is_walked() -> None:
    assert len(list(steps((ROOT / "docs" / "quickstart.md").read_text()))) > 15


def test_how_a_page_is_read() -> None:
    page = "```console\n$ a\n> b\nx … y\n…\n$ c\nerror: no\n```\n<!-- run\nd\n-->\n```bash\n$ e\n```\n"
    assert list(steps(page)) == [Step("a\nb", ["x … y", "…"]), Step("c", ["error: no"]), Step("d\n", None)]
    assert [step.fails for step in steps(page)] == [False, True, False]
    shown = pattern(["x … y", "…"])
    assert re.fullmatch(shown, "x 1 y\n") and re.fullmatch(shown, "x 1 y\nz\n\n")
    assert not re.fullmatch(shown, "x 1\n y\n") and not re.fullmatch(shown, "z\n")
