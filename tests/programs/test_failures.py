"""What users meet when it does not work: the documented exit codes, what happened, what to do next, no traceback."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packtrain import cli as program
from packtrain import errors
from packtrain.cli.failure import failed
from packtrain.testing.ports import free_port
from packtrain.testing.stub_vllm import write_executable
from packtrain.testing.tinymodels import write_base
from tests.conftest import SHARED_FIXTURES, Models
from tests.programs.conftest import Cli


def said(done: subprocess.CompletedProcess[str]) -> tuple[str, str]:
    """The error and what to do next."""
    lines = [line for line in done.stderr.splitlines() if line.startswith(("error: ", "  -> "))]
    assert lines[0].startswith("error: ")
    assert done.stdout == ""
    return lines[0].removeprefix("error: "), "\n".join(lines[1:])


@pytest.mark.parametrize("kind", [*errors.EXIT_CODES, errors.AlreadyExists, errors.PacktrainError])
def test_every_error_says_what_to_do_next(
    kind: type[errors.PacktrainError], capsys: pytest.CaptureFixture[str]
) -> None:
    """Also one that was raised without a hint: then what its kind says."""
    for error in (kind("it broke"), kind("it broke", hint="Mend it.")):
        failed(error, as_json=False)
        first, *next_steps = capsys.readouterr().err.splitlines()
        assert first == "error: it broke"
        assert next_steps == [f"  -> {error.advice}"]
        failed(error, as_json=True)
        assert json.loads(capsys.readouterr().out)["error"]["hint"] == error.advice
    assert error.advice == "Mend it."
    assert kind.usual.endswith(".")


def test_2_what_makes_no_sense(published: Cli) -> None:
    meant = said(published.run("publsh", code=2))[0]
    assert "Did you mean" in meant
    assert "'publish'" in meant
    assert said(published.run("promote", "llama", code=2)) == (
        "Missing option '--to'",
        "  -> See: packtrain promote --help",
    )
    assert "two dashes: packtrain serve" in said(published.run("serve", "llama", "--port", "80", code=2))[1]
    assert "NAME/3" in said(published.run("show", "llama/x", code=2))[1]
    assert "not a store" in said(published.run("models", "--store", "gopher://x", code=2))[0]
    assert said(published.run("models", "--store", "", code=2))[0] == "--store is empty"
    assert "reserved" in said(published.run("promote", "llama", "--to", "v3", code=2))[0]
    published.run("rollback", "", code=2)
    assert "no such user" in said(published.run("models", "--cache-dir", "~nobody-here/x", code=2))[0]
    published.run("run", "llama", "--vllm", "~nobody-here/vllm", code=9)


def test_3_what_cannot_be_served_is_refused_with_every_finding(cli: Cli, tmp_path: Path) -> None:
    folder = write_base(tmp_path / "bad", seed=1)
    (folder / "tokenizer.json").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"x")
    done = cli.run("publish", folder, "--name", "llama", code=3)
    assert "and 1 more" in said(done)[0]
    lines = done.stderr.splitlines()
    for code in ("no-tokenizer", "pickle"):
        [at] = [n for n, line in enumerate(lines) if line.startswith(f"  refuse {code}: ")]
        assert lines[at + 1].startswith("    -> ")
    error = cli.json("publish", folder, "--name", "llama", code=3)["error"]
    assert error["type"] == "PreflightRefused"
    assert {finding["code"] for finding in error["findings"]} == {"no-tokenizer", "pickle"}
    assert set(error["findings"][0]) == {"level", "code", "where", "what", "fix"}


def test_3_an_alias_protects_its_version(published: Cli) -> None:
    message, hint = said(published.run("archive", "llama@production", code=3))
    assert message == "llama/2 is @production and cannot be archived"
    assert "packtrain promote" in hint


def test_4_what_does_not_exist(published: Cli) -> None:
    for arguments in (
        ["models", "nope"],
        ["show", "nope"],
        ["pull", "llama/9"],
        ["url", "llama@nope"],
        ["history", "n"],
    ):
        message, hint = said(published.run(*arguments, code=4))
        assert message
        assert "packtrain" in hint
    published.run("publish", "/does/not/exist", "--name", "x", code=4)


def test_5_somebody_was_first(published: Cli) -> None:
    done = published.run("promote", "llama/1", "--to", "production", "--expect", "1", code=5)
    assert said(done) == (
        "llama@production is at version 2, not at version 1 as expected; nothing was changed",
        "  -> See who moved it: packtrain history llama",
    )


def test_6_one_flipped_bit(cli: Cli, models: Models) -> None:
    cli.run("publish", models.first, "--name", "llama")
    url = cli.out("url", "llama").removesuffix("\n")
    weights = Path(url.removeprefix("file://")) / "model-00001-of-00002.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.chmod(0o644)
    weights.write_bytes(data)
    assert "model-00001-of-00002.safetensors" in said(cli.run("pull", "llama", code=6))[0]
    assert "model-00001-of-00002.safetensors" in said(cli.run("verify", "--bytes", code=6))[0]


def test_7_a_store_that_cannot_be_reached(cli: Cli) -> None:
    nobody = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_REGION": "x", "AWS_ACCESS_KEY_ID": "x"}
    cli.environment |= {**nobody, "AWS_SECRET_ACCESS_KEY": "x"}
    message, hint = said(cli.run("models", "--store", "s3://bucket", code=7))
    assert "http://127.0.0.1:9 cannot be reached" in message
    assert "AWS_ENDPOINT_URL" in hint


def test_8_a_disk_that_refuses(published: Cli) -> None:
    said(published.run("pull", "llama", "--to", "/dev/null", code=8))
    said(published.run("pull", "llama", "--to", "/dev/null/x", code=8))
    assert "/dev/null/cache" in said(published.run("pull", "llama", "--cache-dir", "/dev/null/cache", code=8))[0]
    with Path("/dev/full").open("w") as full:
        done = published.run("history", "llama", code=8, stdout=full)
    assert "standard output: No space left on device" in done.stderr


def test_9_engines_that_are_not_there_or_fail(published: Cli, tmp_path: Path) -> None:
    assert "PACKTRAIN_VLLM" in said(published.run("serve", "llama", "--vllm", "/does/not/exist", code=9))[1]
    config = tmp_path / "merge.yaml"
    config.write_text(f"export_dir: {tmp_path / 'merged'}\n")
    done = published.run("export", config, "--name", "x", "--llamafactory", "false", code=9)
    assert "failed with exit code 1" in said(done)[0]


def test_an_engine_that_fails_gives_its_own_exit_code(published: Cli, tmp_path: Path) -> None:
    broken = Cli(published.home, {**published.environment, "STUB_VLLM_EXIT": "33"})
    vllm = write_executable(tmp_path / "vllm")
    port = str(free_port())
    done = broken.run("serve", "llama", "--vllm", vllm, "--", "--port", port, code=33)
    assert "ended with exit code 33 before it was ready" in done.stderr
    broken.run("run", "llama", "--vllm", vllm, "--", "--port", port, code=33)


def test_a_working_directory_that_is_gone(published: Cli, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    script = 'rmdir "$0"; exec "$@"'
    done = subprocess.run(
        ["sh", "-c", script, gone, *published.command("models")],
        cwd=gone,
        env=published.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 8, done.stderr
    assert said(done)[0].startswith("the working directory")


def test_1_a_bug_of_ours_is_said_as_such_and_its_traceback_is_in_a_file(cli: Cli) -> None:
    script = (
        "import sys, packtrain.cli.app as app, packtrain.cli as cli\n"
        "def broken(arguments): raise RuntimeError('lost the \\x1b[31mllama')\n"
        "app.run_command = broken\n"
        "cli.main()\n"
    )
    for arguments in ([], ["--json"]):
        done = subprocess.run(
            [sys.executable, "-c", script, "models", *arguments],
            env=cli.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        assert "Traceback" not in done.stdout + done.stderr
        assert "\x1b" not in done.stdout + done.stderr
        report = max(cli.home.glob("packtrain-bug-*.txt"), key=os.path.getmtime)
        assert str(report) in done.stderr
        assert "RuntimeError: lost the" in report.read_text()
    assert json.loads(done.stdout)["error"]["type"] == "InternalError"


def test_errors_as_documents(published: Cli) -> None:
    for arguments, kind, code in (
        (["show", "nope"], "NotFound", 4),
        (["shwo"], "UsageError", 2),
        (["promote", "llama/1", "--to", "production", "--expect", "7"], "Conflict", 5),
    ):
        error = published.json(*arguments, code=code)["error"]
        assert set(error) == {"type", "message", "hint", "exit_code"}
        assert (error["type"], error["exit_code"]) == (kind, code)


def test_a_reader_that_has_seen_enough(published: Cli) -> None:
    for arguments in (["history", "llama"], ["--help"]):
        reading, writing = os.pipe()
        os.close(reading)
        done = published.run(*arguments, stdout=writing)
        os.close(writing)
        assert done.stderr == ""


def test_nobody_reads_what_happens_meanwhile(cli: Cli, models: Models) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    cli.run("publish", models.first, "--name", "llama", stderr=writing)
    os.close(writing)
    assert "llama" in cli.out("models")


def test_names_of_files_keep_their_bytes(published: Cli) -> None:
    target = os.fsencode(published.home) + b"/\xff\xc3\xa4"
    done = subprocess.run(
        [*published.command("pull", "llama", "--to"), target],
        env=published.environment,
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, target + b"\n")


# Nonsense. In this process, because there is much of it; `serve`, `run` and `export` start other programs.

COMMANDS = (
    "publish",
    "adopt",
    "promote",
    "rollback",
    "archive",
    "pull",
    "url",
    "models",
    "show",
    "history",
    "verify",
    "",
)
WORDS = (
    "llama", "llama/1", "llama@production", "llama@", "@", "/", "llama/0", "llama/99999999999999999", "models:/llama/1",
    "packtrain://", "llama@sha256:", f"llama@sha256:{'0' * 64}", "llama@latest", "..", "../..", "/dev/null", "~", ".",
    "--to", "--name", "--expect", "--reason", "--alias", "--json", "--bytes", "--store", "--base", "--help", "--", "-",
    "--dry-run", "--training-dir", "--training-config", "-1", "0", "1", "x" * 300, "", " ", "ä", "\udcff", "\x1b[31m",
    "hf:a/b", "file:///", "s3://", "s3://../x", "\u202e", "%s", "{}", "[bold]",
)  # fmt: skip


@pytest.fixture(scope="module")
def nonsense(published: Cli) -> Iterator[None]:
    """This process, as `packtrain` would find itself, over a store that may be changed."""
    patch, handler = pytest.MonkeyPatch(), signal.getsignal(signal.SIGTERM)
    for name, value in published.environment.items():
        patch.setenv(name, value)
    patch.chdir(published.home)
    yield
    patch.undo()
    signal.signal(signal.SIGTERM, handler)


@settings(max_examples=150, suppress_health_check=SHARED_FIXTURES)
@given(
    command=st.sampled_from(COMMANDS),
    words=st.lists(st.sampled_from(WORDS) | st.text(st.characters(exclude_characters="\0"), max_size=8), max_size=5),
)
def test_nonsense_is_answered(nonsense: None, command: str, words: list[str]) -> None:
    out, err = io.TextIOWrapper(io.BytesIO(), encoding="utf-8"), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = program._run([command, *words] if command else words or ["--help"])
    assert code in {0, *errors.EXIT_CODES.values()}, err.getvalue()
    assert "internal error" not in err.getvalue(), err.getvalue()
    assert code == 0 or err.getvalue() or "--json" in words
