"""Every command, over a store in a folder: what it does, what it prints, and where."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import shutil
import signal
import stat
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from packtrain.testing.stub_vllm import write_executable
from packtrain.testing.tinymodels import write_base
from tests.conftest import Models
from tests.programs.conftest import Cli

PAGE = Path(__file__).resolve().parents[2] / "docs" / "commands.md"


def documented(command: str) -> Any:
    """The document that docs/commands.md shows for a command."""
    section = PAGE.read_text().partition(f"\n## {command}\n")[2].partition("\n## ")[0]
    return json.loads(re.findall(r"```json\n(.*?)```", section, re.DOTALL)[0])


def shape(document: Any) -> Any:
    """What a program may rely on: the keys, in lists those of the first entry."""
    if isinstance(document, list):
        return [shape(document[0])] if document else []
    if isinstance(document, dict):
        return sorted(document)
    return type(document)


def test_the_way_of_a_model(cli: Cli, models: Models) -> None:
    empty = cli.run("models")
    assert empty.stdout == ""
    assert "packtrain publish" in empty.stderr

    dry = cli.run("publish", models.first, "--name", "llama", "--dry-run")
    assert "would get a new version" in dry.stdout
    assert cli.out("models") == ""

    first = cli.run("publish", models.first, "--name", "llama")
    assert re.fullmatch(r"llama/1: merged, 1\.1 MB, sha256:[0-9a-f]{64}; 1\.1 MB uploaded\n", first.stdout)
    assert "hashing: 1.1 MB" in first.stderr
    assert first.stderr.splitlines()[-1] == "next: packtrain promote llama/1 --to production"
    assert "llama/1 holds these bytes already" in cli.out("publish", models.first, "--name", "llama")
    assert cli.out("publish", models.first, "--name", "forced").startswith("forced/1: ")
    forced = cli.out("publish", models.first, "--name", "forced", "--force")
    assert forced.startswith("forced/2: merged, ") and forced.endswith("; 0 B uploaded\n")

    assert cli.out("promote", "llama/1", "--to", "production") == "llama@production: not set -> 1\n"
    assert cli.out("promote", "llama/1", "--to", "production") == "llama@production: 1 already\n"
    second = cli.out("publish", models.second, "--name", "llama", "--alias", "production")
    assert second.splitlines()[1] == "llama@production: 1 -> 2"

    snapshot = cli.run("pull", "llama@production")
    path = Path(snapshot.stdout.removesuffix("\n"))
    assert path.is_dir()
    assert (path / "config.json").read_bytes() == (models.second / "config.json").read_bytes()
    assert not stat.S_IMODE((path / "config.json").stat().st_mode) & 0o222
    assert cli.out("pull", "llama@production") == snapshot.stdout
    there = cli.home / "there"
    assert cli.out("pull", "models:/llama/1", "--to", there) == f"{there}\n"
    weights = "model-00001-of-00002.safetensors"
    assert (there / weights).read_bytes() == (models.first / weights).read_bytes()

    url = cli.out("url", "llama/1").removesuffix("\n")
    assert (Path(url.removeprefix("file://")) / weights).read_bytes() == (models.first / weights).read_bytes()

    assert cli.out("rollback", "llama", "--reason", "worse") == "llama@production: 2 -> 1\n"
    assert cli.out("archive", "llama/2", "--reason", "worse") == "llama/2 is archived\n"
    assert "1 version whole" in cli.out("verify")
    assert "all 1.1 MB read and right" in cli.out("verify", "llama", "--bytes")


def test_an_adapter_says_where_it_came_from(cli: Cli, models: Models) -> None:
    cli.run("publish", models.base, "--name", "base")
    done = cli.run("publish", models.adapter, "--name", "tone", "--base", "base/1")
    assert "left behind: training_args.bin (" in done.stderr
    assert done.stdout.startswith("tone/1: adapter, ")

    card = dict(re.split(r"  +", line, maxsplit=1) for line in cli.out("show", "tone").splitlines())
    assert card["version"] == "tone/1"
    assert card["base"].startswith("base/1 (sha256:")
    assert "eval_loss 0.5" in card["metrics"]
    assert card["git revision"] == "unknown"

    head, tone, base = cli.out("models").splitlines()[:1] + cli.out("models").splitlines()[:0:-1]
    columns = [match.start() for match in re.finditer(r"\S+( \(UTC\))?", head)]
    cells = {head[a:b].strip(): tone[a:b].strip() for a, b in zip(columns, [*columns[1:], None], strict=True)}
    assert cells["NAME"] == "tone"
    assert cells["KIND"] == "adapter"
    assert cells["LOSS"] == "0.5"
    assert cells["ACCURACY"] == "0.75"
    assert cells["ALIASES"] == "-"
    assert cells["BY"] == "alice"
    assert base.split()[:2] == ["base", "1"]
    assert cli.json("show", "tone")["base"]["name"] == "base"


def test_history_says_who_did_what_and_why(published: Cli) -> None:
    lines = published.out("history", "llama").splitlines()
    assert lines[0].split() == ["#", "TIME", "(UTC)", "WHO", "WHAT", "WHY"]
    assert [line.split()[0] for line in lines[1:]] == [str(n) for n in range(1, 9)]
    assert "promoted @production: 1 -> 2" in lines[8]
    assert lines[8].endswith("publish --alias")


def test_lineage_is_told_and_drawn(cli: Cli, models: Models) -> None:
    cli.run("publish", models.base, "--name", "base")
    cli.run("publish", models.adapter, "--name", "tone", "--alias", "production")
    drawn = cli.run("lineage", "tone@production", "--svg", "tone.svg")
    assert drawn.stderr == "drawn: tone.svg\n"
    picture = (cli.home / "tone.svg").read_text()
    assert picture.startswith("<svg ") and "Lineage of tone/1" in picture
    cards = [
        dict(re.split(r"  +", line, maxsplit=1) for line in card.splitlines()) for card in drawn.stdout.split("\n\n")
    ]
    assert [card["version"].split()[0] for card in cards] == ["tone/1", "base/1"]
    assert "by alice: publish --alias" in cards[0]["@production"]
    assert cards[0]["base model"].startswith("base/1 (sha256:")
    assert cards[0]["dataset"] == "tiny (digest unknown)"
    assert cards[0]["git revision"] == cards[1]["lineage"] == "unknown"
    assert cards[0]["trained with"].startswith("llamafactory unknown, transformers ")
    assert cli.out("lineage", "tone", "--mermaid").startswith("flowchart TD\n")
    assert [each["name"] for each in cli.json("lineage", "tone", "--svg", "again.svg")] == ["tone", "base"]
    failed = cli.run("lineage", "tone", "--svg", "nowhere/tone.svg", code=8)
    assert "cannot write nowhere/tone.svg" in failed.stderr and failed.stdout == ""


def test_two_versions_compared(cli: Cli, models: Models, tmp_path: Path) -> None:
    settings = {"first": "learning_rate: 1e-4\nseed: 1\n", "second": "learning_rate: 2e-4\nlora_rank: 8\n"}
    for directory, text in zip((models.first, models.second), settings.values(), strict=True):
        (tmp_path / "sft.yaml").write_text(text)
        cli.run("publish", directory, "--name", "llama", "--training-config", tmp_path / "sft.yaml")
    shown = cli.out("compare", "llama/1", "llama/2")
    assert re.search(r"^learning_rate +0\.0001 +0\.0002$", shown, re.MULTILINE)
    assert re.search(r"^seed +1 +not set$", shown, re.MULTILINE)
    assert re.search(r"^lora rank +not set +8$", shown, re.MULTILINE)
    assert "unknown of both: base model, base payload, template, " in shown
    assert "METRICS: nothing known differs" in shown and "DATASETS: unknown" in shown
    assert "TOKENIZER      the same" in shown
    assert re.search(r"^TENSORS +differ\nsame +\d+ .*\nunknown +\d+ \(.* kB\): .*q_proj", shown, re.MULTILINE)
    same = cli.out("compare", "llama/1", "llama/1")
    assert "Both hold the same exported bytes." in same
    assert "TENSORS  the same" in same
    document = cli.json("compare", "llama/1", "llama/2")
    assert "q_proj" in document["tensors"]["unknown"]["kinds"]


def test_what_a_node_gets(published: Cli) -> None:
    shown = published.out("diff", "llama/1", "llama/2")
    assert shown.startswith("llama/1 -> llama/2\n\nTENSORS ")
    assert "--exact reads" in shown
    exact = published.out("diff", "llama/1", "llama/2", "--exact")
    assert re.search(r"^model\.layers 0-1 +0$", exact, re.MULTILINE)
    assert re.search(r"^  q_proj +██ +2 changed +65\.5 kB +65\.5 kB$", exact, re.MULTILINE)
    assert re.search(r"^  down_proj +(·|█)+ +2 same +196\.6 kB", exact, re.MULTILINE)
    assert re.search(r"^2 safetensors headers? ", exact, re.MULTILINE)
    assert "unknown" not in exact
    document = published.json("diff", "llama/1", "llama/2", "--exact")
    assert document["tensors"]["kinds"]["q_proj"]["changed"]["tensors"] == 2
    assert {each["state"] for each in document["tensors"]["differing"]} == {"changed"}
    assert shape(document) == shape(documented("diff"))
    assert shape(document["transfer"]) == shape(documented("diff")["transfer"])
    itself = published.out("diff", "llama/1", "llama/1")
    assert itself.endswith("They are the same version: a node that has one has the other.\n")


def test_what_a_node_gets_is_what_it_then_fetches(published: Cli, tmp_path: Path) -> None:
    node = Cli(tmp_path, published.environment | {"PACKTRAIN_CACHE_DIR": str(tmp_path / "cache")})
    node.run("pull", "llama/1")
    transfer = node.json("diff", "llama/1", "llama/2")["transfer"]
    dry = node.json("pull", "llama/2", "--dry-run")
    assert dry["to_fetch"] + dry["manifest"] == transfer["all"]["fetched"]
    assert (dry["chunks"], dry["requests"]) == (transfer["chunks"], transfer["requests"])
    snapshot = node.json("pull", "llama/2")
    assert snapshot["fetched"] + dry["manifest"] == transfer["all"]["fetched"]
    assert snapshot["copied"] == transfer["all"]["copied"]
    assert snapshot["linked"] == transfer["all"]["linked"]
    assert re.search(r"^fetched +nothing$", node.out("pull", "llama/2", "--dry-run"), re.MULTILINE)
    mine = node.json("pull", "llama/2", "--to", tmp_path / "mine", "--dry-run")
    assert (mine["here"], mine["to_fetch"]) == (0, 0)
    assert sum(each["linked"] for each in mine["snapshots"]) == 0, "a folder of the user's own shares nothing"
    node.run("pull", "llama/2", "--to", tmp_path / "mine")
    assert node.json("pull", "llama/2", "--to", tmp_path / "mine", "--dry-run")["here"] == snapshot["size"]
    refused = node.run("pull", "llama/2", "--in-place", "--dry-run", code=2)
    assert "nothing is copied" in refused.stderr and "--no-in-place" in refused.stderr


def test_what_a_node_gets_as_a_picture(published: Cli, tmp_path: Path) -> None:
    done = published.run("diff", "llama/1", "llama/2", "--svg", tmp_path / "delta.svg")
    assert f"drawn: {tmp_path / 'delta.svg'}" in done.stderr
    assert "<title>model.layers.1 q_proj: " in (tmp_path / "delta.svg").read_text()
    failed = published.run("diff", "llama/1", "llama/2", "--svg", tmp_path / "nowhere" / "delta.svg", code=8)
    assert "cannot write" in failed.stderr and failed.stdout == ""


def test_nothing_that_others_wrote_reaches_the_terminal_raw(cli: Cli, models: Models) -> None:
    cli.run("publish", models.first, "--name", "llama")
    cli.run("promote", "llama/1", "--to", "staging", "--reason", "good\x1b[2J\nnews\r\u202e", "--actor", "eve\x1b[31m")
    shown = cli.out("history", "llama")
    assert r"eve\x1b[31m" in shown
    assert r"good\x1b[2J\nnews\r\u202e" in shown
    assert all(character.isprintable() or character == "\n" for character in shown)


def test_a_check_says_what_is_wrong_and_what_to_do(cli: Cli, models: Models) -> None:
    good = cli.run("check", models.first)
    assert good.stdout.splitlines()[0].endswith(": merged, 9 files, 1.1 MB")
    assert good.stdout.splitlines()[1:] == ["all is well, as far as names, headers and documents tell"]
    assert cli.out("check", models.first, "--scan").splitlines()[1:] == ["all is well"]

    broken = cli.home / "broken"
    shutil.copytree(models.first, broken)
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    (broken / "chat_template.jinja").unlink()
    refused = cli.run("check", broken, code=3)
    assert ": lacks the tensor 'model.layers.2.input_layernorm.weight' and 8 more" in refused.stdout
    assert "  warn no-chat-template: there is no chat template" in refused.stdout
    assert refused.stdout.splitlines()[-1] == "1 refusal, 1 warning: publish would refuse it"
    assert refused.stdout.count("    -> ") == 2
    assert refused.stderr == ""
    document = cli.json("check", broken, code=3)
    assert document["refused"] is True
    assert [finding["code"] for finding in document["findings"]] == ["tensor-missing", "no-chat-template"]
    assert shape(document) == shape(documented("check"))
    assert shape(document["findings"]) == shape(documented("check")["findings"])
    cli.run("publish", broken, "--name", "llama", code=3)
    cli.run("check", cli.home / "nothing", code=4)


def test_a_check_of_an_adapter_asks_for_its_base(cli: Cli, models: Models) -> None:
    def found(*arguments: str | Path, code: int = 0) -> list[tuple[str, str]]:
        document = cli.json("check", models.adapter, *arguments, code=code)
        return [(finding["level"], finding["code"]) for finding in document["findings"]]

    assert found() == []  # its base is a folder, which a check does not read
    assert found("--scan") == [("warn", "base-unpublished")]  # a scan does
    cli.run("publish", models.base, "--name", "base")
    assert found("--scan") == found("--base", "base/1") == []
    assert found("--base", "hf:team/llama") == [("warn", "base-unpublished")]
    other = write_base(cli.home / "other", seed=9, hidden=64, heads=2)
    assert found("--base", other, code=3) == [("refuse", "adapter-shape")]
    cli.run("publish", other, "--name", "other")
    assert found("--base", "other/1", code=3) == [("refuse", "adapter-shape")]
    again = cli.run("publish", models.adapter, "--name", "tone", "--base", "other/1", code=3)
    assert "adapter-shape" in again.stderr


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("pull", ["llama@production"]),
        ("url", ["llama@production"]),
        ("models", ["llama"]),
        ("show", ["llama/1"]),
        ("lineage", ["llama@production"]),
        ("compare", ["llama/1", "llama/2"]),
        ("diff", ["llama/1", "llama/2"]),
        ("history", ["llama"]),
        ("verify", []),
    ],
)
def test_documents_are_as_documented(published: Cli, command: str, arguments: list[str]) -> None:
    assert shape(published.json(command, *arguments)) == shape(documented(command))


def test_documents_of_the_cache_are_as_documented(cli: Cli, models: Models) -> None:
    cli.run("publish", models.first, "--name", "llama")
    cli.run("pull", "llama", "--pin")
    listing = cli.json("cache", "ls")
    assert shape(listing) == shape(documented("cache ls"))
    assert shape(listing["snapshots"]) == shape(documented("cache ls")["snapshots"])
    for command in ("verify", "unpin", "pin", "unpin", "rm"):
        assert shape(cli.json("cache", command, "llama")) == shape(documented(f"cache {command}"))


@pytest.mark.slow
def test_the_cache_keeps_what_an_engine_uses(cli: Cli, models: Models, tmp_path: Path) -> None:
    cli.run("publish", models.first, "--name", "llama")
    cli.run("publish", models.second, "--name", "llama")
    with cli.engine("run", "llama/1", vllm=write_executable(tmp_path / "vllm")) as engine:
        assert re.search(r"llama/1 .* verified, in use by .*\d", cli.out("cache", "ls"))
        [snapshot] = cli.json("cache", "ls")["snapshots"]
        assert snapshot["in_use"] and any(f"({engine.process.pid})" in user for user in snapshot["users"])
        refused = cli.run("cache", "rm", "llama/1", code=3)
        assert refused.stderr.startswith("error: llama/1 stays in the cache: in use by ")
        full = cli.run("pull", "llama/2", "--cache-quota", "1300kB", code=8)
        assert "does not fit" in full.stderr and "stays: in use by" in full.stderr
    cli.run("pull", "llama/2", "--cache-quota", "1300kB")
    assert [each["versions"] for each in cli.json("cache", "ls")["snapshots"]] == [["llama/2"]]
    assert cli.out("cache", "unpin", "llama/2") == "llama/2 is no longer pinned\n"
    assert cli.out("cache", "unpin", "llama/2") == "llama/2 was not pinned\n"
    assert cli.out("cache", "rm", "llama/2") == "llama/2 is removed: 1.1 MB freed\n"
    assert "not in the cache" in cli.run("cache", "rm", "llama/2", code=4).stderr
    assert cli.run("cache", "verify").stderr == "the cache holds no snapshots, so there is nothing to verify\n"
    cli.run("pull", "llama/2", "--pin", "--to", tmp_path / "x", code=2)


def test_documents_of_changes_are_as_documented(cli: Cli, models: Models) -> None:
    published = cli.json("publish", models.first, "--name", "llama", "--alias", "staging")
    assert shape(published) == shape(documented("publish"))
    assert shape(published["alias"]) == shape(documented("publish")["alias"])
    assert (published["version"], published["created"], published["alias"]["from"]) == (1, True, None)
    again = cli.json("publish", models.first, "--name", "llama")
    assert (again["version"], again["created"], again["alias"]) == (1, False, None)
    cli.json("publish", models.second, "--name", "llama")
    move = cli.json("promote", "llama/2", "--to", "staging", "--expect", "1")
    assert shape(move) == shape(documented("promote"))
    assert move == {"name": "llama", "alias": "staging", "from": 1, "to": 2, "moved": True}
    assert cli.json("rollback", "llama", "--alias", "staging")["to"] == 1
    archived = cli.json("archive", "llama/2")
    assert shape(archived) == shape(documented("archive"))
    assert archived["archived"] is True
    assert cli.json("models", "llama")[0]["version"] == 2


def test_settings_stand_before_or_after_the_command_and_the_last_one_wins(published: Cli, tmp_path: Path) -> None:
    elsewhere = f"file://{tmp_path}"
    store = published.environment["PACKTRAIN_STORE"]
    assert published.out("--store", elsewhere, "models") == ""
    assert published.out("models", "--store", elsewhere) == ""
    assert published.out("--store", elsewhere, "models", "--store", store) == published.out("models")
    assert json.loads(published.out("--json", "url", "llama"))["url"].startswith(store)


def test_progress_on_a_terminal_is_a_bar_and_stdout_stays_clean(cli: Cli, models: Models) -> None:
    cli.run("publish", models.first, "--name", "llama")
    for colour in (True, False):
        cli.environment |= {"TERM": "xterm-256color", **({} if colour else {"NO_COLOR": "1"})}
        master, terminal = pty.openpty()
        pieces: list[bytes] = []
        reader = threading.Thread(target=_read_all, args=(master, pieces))
        reader.start()
        done = cli.run("pull", "llama", "--to", cli.home / f"pulled-{colour}", stderr=terminal)
        os.close(terminal)
        reader.join()
        shown = b"".join(pieces).decode()
        assert done.stdout == f"{cli.home}/pulled-{colour}\n"
        assert "fetching" in shown
        assert "1.1/1.1 MB" in shown
        assert "\x1b[?25h" in shown  # the cursor is back
        assert bool(re.search(r"\x1b\[(\d+;)*3\d", shown)) == colour


def _read_all(descriptor: int, pieces: list[bytes]) -> None:
    while True:
        try:
            piece = os.read(descriptor, 4096)
        except OSError:  # how Linux says that the other end is closed
            break
        pieces.append(piece)
    os.close(descriptor)


# Engines


def _program(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def _export_yaml(cli: Cli) -> Path:
    path = cli.home / "merge.yaml"
    path.write_text(f"model_name_or_path: base\nexport_dir: {cli.home / 'merged'}\n")
    return path


def test_export_runs_llamafactory_and_publishes_what_it_wrote(cli: Cli, models: Models) -> None:
    target = shlex.quote(str(cli.home / "merged"))
    merge = f'[ $1 = export ] || exit 0; echo "merging $1 $2"; cp -r {shlex.quote(str(models.first))} {target}'
    llamafactory = _program(cli.home / "lf", merge)
    done = cli.run("export", _export_yaml(cli), "--name", "llama", "--llamafactory", llamafactory)
    assert done.stdout.startswith("llama/1: merged, ")
    assert "merging export " in done.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_command_ends_what_it_started(cli: Cli, number: signal.Signals, code: int) -> None:
    """The signal comes as early as it can: the first thing that the started program does is to send it."""
    alive = cli.home / "alive"
    os.mkfifo(alive)
    reader = os.open(alive, os.O_RDONLY | os.O_NONBLOCK)
    script = f"exec 3>{shlex.quote(str(alive))}; kill -{number.value} $PPID; exec sleep 60"
    llamafactory = _program(cli.home / "lf", script)
    done = cli.run("export", _export_yaml(cli), "--name", "llama", "--llamafactory", llamafactory, code=code)
    assert os.read(reader, 1) == b""  # nobody holds the other end: else this would be BlockingIOError
    os.close(reader)
    assert done.stdout == ""
    if number == signal.SIGINT:
        assert done.stderr.splitlines()[-1].startswith("interrupted: run the same command again")


def test_in_place_is_a_setting_and_a_flag(published: Cli) -> None:
    stored = published.home / "store/models/llama"
    in_place = published.run("pull", "llama@production", "--in-place")
    assert Path(in_place.stdout.strip()).parent == stored
    assert "not checked" in in_place.stderr
    full = published.run("pull", "llama@production", "--in-place", "--verify")
    assert full.stdout == in_place.stdout
    assert "not checked" not in full.stderr
    by_setting = replace(published, environment={**published.environment, "PACKTRAIN_PULL": "in-place"})
    document = by_setting.json("pull", "llama/1")
    assert (document["in_place"], document["verified"], document["fetched"]) == (True, False, 0)
    assert Path(document["path"]).parent == stored
    copied = by_setting.json("pull", "llama/1", "--no-in-place")
    assert (copied["in_place"], copied["verified"]) == (False, True)
    assert Path(copied["path"]).is_relative_to(published.home / "cache")
    elsewhere = by_setting.json("pull", "llama/1", "--to", published.home / "mine")
    assert (elsewhere["path"], elsewhere["in_place"]) == (str(published.home / "mine"), False)


@pytest.mark.parametrize("how", ["--no-in-place", "--in-place"])
@pytest.mark.parametrize(
    ("command", "stop"), [("serve", signal.SIGINT), ("serve", signal.SIGTERM), ("run", signal.SIGTERM)]
)
def test_an_engine_serves_the_version(
    published: Cli, tmp_path: Path, command: str, stop: signal.Signals, how: str
) -> None:
    opened = published.home / ("store/models/llama" if how == "--in-place" else "cache/snapshots")
    vllm = write_executable(tmp_path / "vllm")
    with published.engine(command, "llama@production", how, vllm=vllm, stop=stop) as engine:
        assert [model["id"] for model in engine.models["data"]] == ["llama"]
        assert engine.process.stderr is not None
        while command == "serve" and " ready: version=2 " not in engine.said:
            line = engine.process.stderr.readline()
            assert line, engine.said
            engine.said += line
        pid = engine.process.pid
        assert (pid in _lease_holders(published)) == (how == "--in-place")
    said = engine.said
    assert f" from {opened}/" in said
    assert "serving llama/2 (sha256:" in said
    assert ("not checked" in said) == (how == "--in-place")
    assert (pid in _lease_holders(published)) == (how == "--in-place" and command == "run")


def _lease_holders(cli: Cli) -> set[int]:
    leases = (cli.home / "store/leases").rglob("*.json")
    return {json.loads(lease.read_bytes())["holder"]["pid"] for lease in leases}
