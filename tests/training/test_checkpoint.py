from __future__ import annotations

import os
import shutil
import socket
from contextlib import chdir
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conftest import SHARED_FIXTURES, as_nobody

from packtrain.errors import LocalDiskError, NotFound, PacktrainError, Refused, UsageError
from packtrain.model.manifest import Chunks, FileEntry, Manifest
from packtrain.training import checkpoint as module
from packtrain.training.checkpoint import inspect
from packtrain.training.preflight import preflight


def codes(directory: Path) -> set[tuple[str, str]]:
    return {(finding.code, finding.where) for finding in inspect(directory).findings}


def test_a_merge_is_taken_whole(merged):
    checkpoint = inspect(merged)
    assert checkpoint.kind == "merged"
    assert set(checkpoint.taken) == {path.name for path in merged.iterdir()}
    assert "Modelfile" in checkpoint.taken
    assert checkpoint.left == checkpoint.findings == ()
    assert checkpoint.document("config.json")["architectures"] == ["LlamaForCausalLM"]


def test_an_adapter_leaves_the_trainings_own_files_behind(adapter):
    checkpoint = inspect(adapter)
    assert checkpoint.kind == "adapter"
    assert checkpoint.findings == ()
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md", "tokenizer.json"} <= set(checkpoint.taken)
    assert {left.path for left in checkpoint.left} == {
        "checkpoint-30/", "training_args.bin", "trainer_state.json", "trainer_log.jsonl", "all_results.json",
        "train_results.json", "eval_results.json", "training_loss.png", "training_eval_loss.png",
        "training_eval_accuracy.png",
    }  # fmt: skip
    assert all(left.why for left in checkpoint.left)


def test_a_checkpoint_folder_can_be_given_itself(adapter):
    checkpoint = inspect(adapter / "checkpoint-30")
    assert checkpoint.kind == "adapter"
    assert {"optimizer.pt", "scheduler.pt", "rng_state.pth"} <= {left.path for left in checkpoint.left}
    assert preflight(checkpoint, allow_code=False) == ()


def test_a_full_finetuning_is_a_merged_model(merged, adapter):
    for path in adapter.iterdir():
        if not path.name.startswith("adapter_"):
            shutil.copytree(path, merged / path.name) if path.is_dir() else shutil.copy(path, merged)
    checkpoint = inspect(merged)
    assert checkpoint.kind == "merged"
    assert "model.safetensors" in checkpoint.taken
    assert not any("training" in path or "checkpoint-" in path for path in checkpoint.taken)
    assert preflight(checkpoint, allow_code=False) == ()


@pytest.mark.parametrize(
    "name",
    [
        ".git/config", ".cache/huggingface/download/x.lock", ".DS_Store", "__pycache__/x.pyc", "checkpoint-40/x",
        "tmp-checkpoint-9/x", "global_step40/mp_rank_00_model_states.pt", "runs/Nov24/events.out.tfevents.1",
        "wandb/run/x", "optimizer.pt", "optimizer.bin", "scheduler.pt", "scaler.pt", "rng_state.pth", "rng_state_3.pth",
        "random_states_0.pkl", "latest", "zero_to_fp32.py", "training_args.bin", "training_args.yaml",
        "llamaboard_config.yaml", "running_log.txt", "trainer_state.json", "trainer_log.jsonl", "predict_results.json",
        "generated_predictions.jsonl", "training_loss.png", "training_eval_loss.png", "train.log",
        "pytorch_model_fsdp_0/x.distcp", "registered_model_meta",
    ],
)  # fmt: skip
def test_known_leftovers_stay(merged, name):
    before = inspect(merged).taken
    (merged / name).parent.mkdir(parents=True, exist_ok=True)
    (merged / name).write_bytes(b"x")
    after = inspect(merged)
    assert after.taken == before
    assert [left.path for left in after.left] == [name.split("/")[0] + "/" * ("/" in name)]


@pytest.mark.parametrize(
    "name",
    [
        "LICENSE", "vocab.json", "merges.txt", "tokenizer.model", "spiece.model", "tekken.json",
        "processor_config.json",
        "preprocessor_config.json", "chat_template.json",
        "additional_chat_templates/tool.jinja", "modeling_x.py",
        "quantize_config.json", "hf_quant_config.json", "params.yaml", "docs/card.png", "added_tokens.json",
        "Latest", "my_training_notes.txt", "logs.txt",
    ],
)  # fmt: skip
def test_what_may_belong_to_the_model_is_taken(merged, name):
    (merged / name).parent.mkdir(parents=True, exist_ok=True)
    (merged / name).write_text("{}")
    assert name in inspect(merged).taken


def test_a_snapshot_can_be_published_again_with_the_same_payload(merged):
    before = inspect(merged).taken
    (merged / "components/tokenizer").mkdir(parents=True)
    files = []
    for name, generated in (("MLmodel", True), ("components/tokenizer/tokenizer.json", True), ("config.json", False)):
        if generated:
            (merged / name).write_bytes(b"x")
        files.append(FileEntry(name, 1, "0" * 64, Chunks([1], ["0" * 64]), generated))
    (merged / "packtrain.json").write_bytes(Manifest.of("merged", files).encode())
    checkpoint = inspect(merged)
    assert checkpoint.taken == before
    assert {left.path for left in checkpoint.left} == {
        "packtrain.json",
        "MLmodel",
        "components/tokenizer/tokenizer.json",
    }


def test_a_manifest_that_is_none_is_left_without_a_word_about_others(merged):
    before = inspect(merged).taken
    (merged / "packtrain.json").write_bytes(b"[]")
    assert inspect(merged).taken == before


def test_links_inside_are_followed_and_links_out_refused(merged, tmp_path):
    (tmp_path / "outside").write_bytes(b"x")
    (tmp_path / "merged-secret").write_bytes(b"x")  # shares a prefix with the directory, and is outside
    (merged / "copy.txt").symlink_to("config.json")
    (merged / "out").symlink_to(tmp_path / "outside")
    (merged / "beside").symlink_to("../merged-secret")
    (merged / "broken").symlink_to("nothing")
    (merged / "loop").symlink_to("loop")
    (merged / "folder").symlink_to(".")
    checkpoint = inspect(merged)
    assert "copy.txt" in checkpoint.taken
    assert codes(merged) == {("symlink", name) for name in ("out", "beside", "broken", "loop", "folder")}
    assert all("cp -rL" in finding.fix for finding in checkpoint.findings)


def test_a_hub_cache_is_refused_for_its_links_alone(merged, tmp_path):
    snapshot = tmp_path / "models--a--b/snapshots/0123"
    snapshot.mkdir(parents=True)
    for path in merged.iterdir():
        (snapshot / path.name).symlink_to(path)
    findings = preflight(inspect(snapshot), allow_code=False)
    assert {finding.code for finding in findings} == {"symlink"}


def test_a_link_with_a_leftovers_name_is_left(merged):
    (merged / "runs").symlink_to("/var/log")
    (merged / "training_args.bin").symlink_to("/nowhere")
    assert inspect(merged).findings == ()


def test_the_directory_itself_may_be_a_link(merged, tmp_path):
    (tmp_path / "link").symlink_to(merged)
    assert inspect(tmp_path / "link") == inspect(merged)


def test_pipes_and_sockets_are_refused_without_being_opened(merged):
    os.mkfifo(merged / "config2.json")
    with chdir(merged), socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        assert codes(merged) == {("special-file", "config2.json"), ("special-file", "socket")}


def test_a_pipe_in_the_place_of_a_config_does_not_hang(merged):
    (merged / "config.json").unlink()
    os.mkfifo(merged / "config.json")
    findings = preflight(inspect(merged), allow_code=False)
    assert [(finding.code, finding.where) for finding in findings] == [("special-file", "config.json")]


@pytest.mark.parametrize("name", [b"a\\b", b"a\nb", b"\xff\xfe", b"\x1b[31m", "a\u202eb".encode()])
def test_unsafe_names_are_refused_and_shown_escaped(merged, name):
    (Path(os.fsdecode(os.fsencode(merged) + b"/" + name))).write_bytes(b"x")
    [finding] = inspect(merged).findings
    assert finding.code == "unsafe-path"
    assert finding.where.isprintable()
    str(finding).encode("utf-8")


def test_a_tree_too_deep_to_name_is_refused(merged):
    folder = merged
    for _ in range(6):
        folder = folder / ("d" * 100)
        folder.mkdir()
    assert {code for code, _ in codes(merged)} == {"unsafe-path"}


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"null", b"3", b"{", b"\xff\xfe\x00", b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5000]
)
def test_config_that_is_not_an_object(merged, content):
    (merged / "config.json").write_bytes(content)
    assert codes(merged) == {("json-invalid", "config.json")}
    assert inspect(merged).document("config.json") == {}


def test_json_without_end_is_not_read_to_its_end(merged):
    with (merged / "config.json").open("wb") as file:
        file.truncate(1 << 40)  # sparse
    assert codes(merged) == {("json-invalid", "config.json")}


@settings(max_examples=150, suppress_health_check=SHARED_FIXTURES)
@given(content=st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_as_config(merged, content):
    for name in ("config.json", "tokenizer_config.json"):
        (merged / name).write_bytes(content)
    for finding in preflight(inspect(merged), allow_code=False):
        str(finding).encode("utf-8")


def test_nothing_to_publish(tmp_path, merged):
    with pytest.raises(NotFound, match="does not exist"):
        inspect(tmp_path / "missing")
    with pytest.raises(UsageError, match="not a directory"):
        inspect(merged / "config.json")
    with pytest.raises(PacktrainError):
        inspect(tmp_path / ("x" * 300))
    with pytest.raises(Refused, match="no model and no adapter") as refused:
        inspect(tmp_path)
    assert "merged" in refused.value.hint
    (tmp_path / "empty").mkdir()
    with pytest.raises(Refused, match="no model and no adapter"):
        inspect(tmp_path / "empty")


def test_a_model_and_an_adapter_in_one_directory(merged, adapter):
    shutil.copy(adapter / "adapter_model.safetensors", merged)
    with pytest.raises(Refused, match="a whole model and an adapter"):
        inspect(merged)


def test_a_home_directory_is_not_a_model(merged, monkeypatch):
    monkeypatch.setattr(module, "MAX_FILES", 20)
    for number in range(30):
        (merged / f"{number}.txt").touch()
    with pytest.raises(Refused, match="more than 20 files"):
        inspect(merged)


def test_files_that_may_not_be_read(merged):
    with TemporaryDirectory() as name:  # tmp_path's parents are closed to others
        model = shutil.copytree(merged, Path(name) / "model")
        Path(name).chmod(0o755)
        model.chmod(0o755)
        (model / "config.json").chmod(0)
        with as_nobody(), pytest.raises(LocalDiskError, match=r"cannot read .*config\.json") as refused:
            inspect(model)
        assert "permissions" in refused.value.hint
        model.chmod(0o700)
        with as_nobody(), pytest.raises(LocalDiskError, match="Permission denied"):
            inspect(model)
        Path(name).chmod(0o700)
        with as_nobody(), pytest.raises(LocalDiskError, match="Permission denied"):
            inspect(model)
