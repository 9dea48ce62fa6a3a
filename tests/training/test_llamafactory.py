"""Against a stand-in for the command: what counts is how it is run, watched and ended. Real merges: tests/engines."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import chdir
from pathlib import Path

import pytest

from packtrain.errors import EngineError, NotFound, Refused, UsageError
from packtrain.testing.processes import living
from packtrain.training.llamafactory import export, export_dir, version


@pytest.fixture
def cli(tmp_path):
    """Makes a command of a shell script. $1 is "export", $2 the configuration."""

    def make(script: str) -> str:
        path = tmp_path / "bin dir" / "llamafactory-cli"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return str(path)

    return make


@pytest.fixture
def config(tmp_path) -> Path:
    path = tmp_path / "merge.yaml"
    path.write_text(f"model_name_or_path: b\nexport_dir: {tmp_path}/out\n")
    return path


def test_runs_the_command_and_returns_where_it_wrote(tmp_path, config, cli, capfd):
    command = cli(f'echo "$1 $2"; echo to stderr >&2; mkdir {tmp_path}/out; echo x > {tmp_path}/out/model.safetensors')
    assert export(config, command=command) == tmp_path / "out"
    captured = capfd.readouterr()
    assert captured.out == ""  # stdout belongs to our own answer
    assert captured.err == f"export {config}\nto stderr\n"


def test_finds_the_command_on_the_path(tmp_path, config, cli, monkeypatch):
    command = cli(f"mkdir {tmp_path}/out; echo x > {tmp_path}/out/model.safetensors")
    monkeypatch.setenv("PATH", f"{Path(command).parent}:{os.environ['PATH']}")
    assert export(config, command="llamafactory-cli") == tmp_path / "out"


def test_a_relative_export_dir_is_taken_from_the_working_directory(tmp_path, write):
    path = write("configs/merge.yaml", "export_dir: models/out\n")
    with chdir(tmp_path):
        assert export_dir(path) == tmp_path / "models/out"


@pytest.mark.parametrize(
    ("text", "match"), [("a: b", "no export_dir"), ("export_dir: ${x}/y", "computes"), ("[", "YAML")]
)
def test_configurations_without_a_place(write, text, match):
    with pytest.raises(UsageError, match=match):
        export_dir(write("merge.yaml", text))


def test_what_cannot_be_run(tmp_path, config, cli, write):
    with pytest.raises(NotFound):
        export(tmp_path / "none.yaml", command="true")
    with pytest.raises(UsageError, match="does not read"):
        export(write("merge.conf", "export_dir: x"), command="true")
    with pytest.raises(EngineError, match="no command 'llamafactory-cli-none'") as refused:
        export(config, command="llamafactory-cli-none")
    assert "PACKTRAIN_LLAMAFACTORY" in refused.value.hint
    command = Path(cli(""))
    command.write_bytes(b"\0not a program")
    with pytest.raises(EngineError, match="cannot start"):
        export(config, command=str(command))


def test_a_failure_is_told_with_its_last_lines(config, cli):
    with pytest.raises(EngineError, match="failed with exit code 3") as failed:
        export(config, command=cli("seq 1 5000; printf '\\377'; echo ValueError: no such template; exit 3"))
    assert failed.value.hint.endswith("ValueError: no such template")
    assert "\n4999\n" in failed.value.hint
    assert "\n1\n" not in failed.value.hint


def test_a_kill_is_told(config, cli):
    with pytest.raises(EngineError, match="was killed by SIGKILL"):
        export(config, command=cli("kill -9 $$"))


def test_success_without_weights_is_a_failure(config, cli):
    with pytest.raises(EngineError, match="no weights"):
        export(config, command=cli("exit 0"))


def test_weights_of_an_earlier_export_are_refused(tmp_path, config, cli):
    out = tmp_path / "out"
    out.mkdir()
    for number in (1, 2):
        (out / f"model-0000{number}-of-00002.safetensors").write_text("old")
    (out / "LICENSE").write_text("stays")
    with pytest.raises(Refused, match=r"earlier export: model-00002-of-00002\.safetensors$") as refused:
        export(config, command=cli(f"echo new > {out}/model-00001-of-00002.safetensors"))
    assert "new export_dir" in refused.value.hint
    # of another size: the clocks of some file systems stand still for longer than a script takes
    export(config, command=cli(f"for i in 1 2; do echo newer > {out}/model-0000$i-of-00002.safetensors; done"))
    export(config, command=cli(f"rm {out}/*.safetensors; echo new > {out}/model.safetensors"))


def test_an_interrupt_ends_the_whole_process_group(tmp_path, config, cli):
    pids = tmp_path / "pids"
    command = cli(f"trap '' TERM; sleep 1000 & echo $$ $! > {pids}.new; mv {pids}.new {pids}; wait; sleep 1000")
    program = (
        "import pathlib, packtrain.training.llamafactory as l\n"
        "l.GRACE = 0.2\n"
        f"l.export(pathlib.Path({str(config)!r}), command={command!r})\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE) as ours:
        while not pids.exists():
            assert ours.poll() is None, ours.stderr.read()
            time.sleep(0.01)
        ours.send_signal(signal.SIGINT)
        assert b"KeyboardInterrupt" in ours.stderr.read()
    ended = set(map(int, pids.read_text().split()))
    while ended & {process.pid for process in living()}:  # the test's own timeout ends a wait in vain
        time.sleep(0.01)


def test_asks_for_its_version(cli):
    box = "| Welcome to LLaMA Factory, version 0.9.5                |"
    assert version(cli(f'[ "$1" = version ] && echo "{box}"')) == "0.9.5"


@pytest.mark.parametrize("script", ["echo 0.9.5", "exit 1", "echo 'LLaMA Factory, version 1.0'; exit 1"])
def test_a_command_that_does_not_say_its_version(cli, script):
    assert version(cli(script)) is None
    assert version("no-such-llamafactory") is None
