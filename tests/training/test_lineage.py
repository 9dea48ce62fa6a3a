from __future__ import annotations

import json
import os
import subprocess
from contextlib import chdir, suppress
from hashlib import sha256
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conftest import SHARED_FIXTURES

from packtrain.errors import NotFound, UsageError
from packtrain.model.digest import Digest
from packtrain.model.lineage import Lineage, Parent
from packtrain.testing.tinymodels import write_dataset, write_merge_yaml, write_training_yaml
from packtrain.training.documents import read_config
from packtrain.training.lineage import MAX_CURVE, MAX_DEPTH, REDACTED, read_lineage, redact


def read(directory, training=None, export=None, training_dir=None) -> Lineage:
    lineage = read_lineage(directory, training_config=training, export_config=export, training_dir=training_dir)
    data = lineage.encode()
    assert Lineage.decode(data, expect=Digest.of(data)) == lineage
    return lineage


def test_everything_of_a_merge(tmp_path, base, merged, adapter):
    dataset = write_dataset(tmp_path / "data", "tiny", {"question": "answer"})
    training = write_training_yaml(
        tmp_path / "sft.yaml", base=base, output=adapter, dataset_dir=str(tmp_path / "data"), hf_hub_token="hf_secret"
    )
    export = write_merge_yaml(tmp_path / "merge.yaml", base=base, adapter=adapter, output=merged)
    lineage = read(merged, training, export)
    assert lineage.base == Parent(str(base))
    assert lineage.adapters == (Parent(str(adapter)),)
    [tiny] = lineage.datasets
    assert (tiny.name, tiny.files) == ("tiny", {"tiny.json": sha256(dataset.read_bytes()).hexdigest()})
    assert tiny.info == {"file_name": "tiny.json"}
    assert (lineage.template, lineage.stage, lineage.finetuning_type) == ("llama3", "sft", "lora")
    assert lineage.lora == {"rank": 8, "alpha": 16, "targets": ["q_proj", "v_proj"]}
    assert lineage.hyperparameters["learning_rate"] == 0.003
    assert (lineage.loss, lineage.accuracy) == (
        json.loads((adapter / "all_results.json").read_text())["eval_loss"],
        json.loads((adapter / "all_results.json").read_text())["eval_accuracy"],
    )
    assert lineage.steps == 30
    assert lineage.epochs is not None
    assert lineage.curves["loss"][-1][0] == 30
    assert lineage.curves["eval_loss"][-1] == (30, lineage.loss)
    assert {"peft", "transformers", "torch"} <= lineage.tools.keys()
    assert lineage.contradictions == ()
    assert lineage.training_config["hf_hub_token"] == REDACTED
    assert lineage.training_config["dataset"] == "tiny"
    assert lineage.export_config["export_size"] == 1


def test_the_merge_yaml_alone_leads_to_the_adapter(tmp_path, base, merged, adapter):
    export = write_merge_yaml(tmp_path / "merge.yaml", base=base, adapter=adapter, output=merged)
    lineage = read(merged, export=export)
    assert (lineage.steps, lineage.lora["rank"], lineage.base) == (30, 8, Parent(str(base)))


def test_the_training_yaml_alone_leads_to_its_output(tmp_path, base, merged, adapter):
    training = write_training_yaml(tmp_path / "sft.yaml", base="org/base", output=adapter)
    lineage = read(merged, training)
    assert (lineage.steps, lineage.base) == (30, Parent("org/base"))


def test_a_given_training_directory_wins(tmp_path, base, merged, adapter):
    export = write_merge_yaml(tmp_path / "merge.yaml", base=base, adapter="nowhere", output=merged)
    lineage = read(merged, export=export, training_dir=adapter)
    assert (lineage.steps, lineage.adapters) == (30, (Parent("nowhere"),))


def test_an_adapter_is_its_own_training_directory(adapter, base):
    lineage = read(adapter)
    assert (lineage.base, lineage.steps, lineage.finetuning_type) == (Parent(str(base)), 30, "lora")
    assert lineage.loss is not None
    assert read(adapter / "checkpoint-30").curves == lineage.curves


def test_a_full_finetuning_that_was_exported_again(tmp_path, merged):
    trained = tmp_path / "trained"
    trained.mkdir()
    (trained / "trainer_state.json").write_text('{"global_step": 7}')
    export = tmp_path / "export.yaml"
    export.write_text(f"model_name_or_path: {trained}\nexport_dir: {merged}\n")
    assert read(merged, export=export).steps == 7
    (trained / "trainer_state.json").unlink()
    (trained / "README.md").write_text("base_model: of/the-base\n")
    assert read(merged, export=export).base == Parent(str(trained))


def test_a_merge_without_records_has_no_lineage_but_says_so(merged):
    lineage = read(merged)
    assert (lineage.base, lineage.loss, lineage.steps, lineage.datasets) == (None, None, None, ())


def test_paths_are_taken_from_the_working_directory_then_from_the_yaml(tmp_path, merged, adapter):
    folder = tmp_path / "configs"
    folder.mkdir()
    (tmp_path / "configs/data").mkdir()
    write_dataset(tmp_path / "configs/data", "tiny", {"a": "b"})
    training = write_training_yaml(folder / "sft.yaml", base="b", output=adapter.name)
    with chdir(tmp_path):
        lineage = read(merged, training)
    assert lineage.steps == 30  # output_dir: from the working directory
    assert lineage.datasets[0].files  # dataset_dir, "data" by default: from the YAML's folder


def test_datasets_by_comma_list_folder_and_name_alone(tmp_path, merged):
    data = tmp_path / "data"
    (data / "many").mkdir(parents=True)
    (data / "many/a.json").write_bytes(b"a")
    (data / "many/b.json").write_bytes(b"b")
    info = {"many": {"file_name": "many"}, "hub": {"hf_hub_url": "x/y"}, "gone": {"file_name": "gone"}, "odd": [1]}
    (data / "dataset_info.json").write_text(json.dumps(info))
    training = tmp_path / "sft.yaml"
    training.write_text("dataset: many, hub,gone,odd,unknown\n")
    datasets = {dataset.name: dataset.files for dataset in read(merged, training).datasets}
    assert datasets == {
        "many": {"many/a.json": sha256(b"a").hexdigest(), "many/b.json": sha256(b"b").hexdigest()},
        "hub": {}, "gone": {}, "odd": {}, "unknown": {},
    }  # fmt: skip
    training.write_text("dataset: [one, two]\ndataset_dir: ONLINE\n")
    assert [dataset.name for dataset in read(merged, training).datasets] == ["one", "two"]


@pytest.mark.parametrize(
    ("sentence", "names"),
    [
        ("on the v1 dataset.", ["v1"]),
        ("on the a, the b and the c datasets.", ["a", "b", "c"]),
        ("on an unknown dataset.", []),
    ],
)
def test_datasets_of_the_model_card(tmp_path, merged, sentence, names):
    (tmp_path / "README.md").write_text(f"This model is a fine-tuned version of [b](https://x/b) {sentence}\n")
    assert [dataset.name for dataset in read(merged, training_dir=tmp_path).datasets] == names


def test_llama_boards_copy_of_the_configuration_is_used(adapter):
    (adapter / "training_args.yaml").write_text("stage: dpo\nlearning_rate: 5e-06\n")
    lineage = read(adapter)
    assert (lineage.stage, lineage.hyperparameters) == ("dpo", {"learning_rate": 5e-06})
    (adapter / "training_args.yaml").write_text("- broken")
    assert read(adapter).stage is None


def test_the_log_is_the_second_source_of_the_curve(adapter):
    curves = read(adapter).curves
    assert curves.keys() == {"loss", "eval_loss"}
    (adapter / "trainer_state.json").unlink()
    assert read(adapter).curves == curves


def test_a_long_curve_keeps_its_ends(adapter):
    history = [{"step": step, "loss": 1 / step} for step in range(1, 12_346)]
    (adapter / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    steps = [step for step, _ in read(adapter).curves["loss"]]
    assert len(steps) == MAX_CURVE
    assert (steps[0], steps[-1]) == (1, 12_345)
    gaps = {after - before for before, after in pairwise(steps)}
    assert gaps <= {6, 7}


def test_numbers_that_are_none_are_dropped(adapter):
    (adapter / "all_results.json").write_text('{"eval_loss": NaN, "train_loss": Infinity, "eval_x": true, "eval_y": 1}')
    (adapter / "eval_results.json").unlink()
    (adapter / "train_results.json").unlink()
    (adapter / "trainer_state.json").write_text(
        '{"epoch": NaN, "global_step": "x", "log_history": [{"step": 1, "loss": NaN}, {"step": 2, "loss": 0.5}, 3]}'
    )
    lineage = read(adapter)
    assert (lineage.metrics, lineage.curves) == ({"eval_y": 1.0}, {"loss": ((2, 0.5),)})
    assert (lineage.epochs, lineage.steps) == (None, None)


@settings(max_examples=100, suppress_health_check=SHARED_FIXTURES)
@given(
    content=st.binary(max_size=80)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["log_history", "loss", "step", "epoch", "eval_loss", "r", "target_modules", "file_name", "tiny"]
                ),
                inner,
                max_size=4,
            )
        ),
    ).map(lambda value: json.dumps(value).encode())
)
def test_broken_records_are_unknown_facts(tmp_path, adapter, content):
    names = (
        "adapter_config.json",
        "trainer_state.json",
        "all_results.json",
        "trainer_log.jsonl",
        "README.md",
        "training_args.yaml",
        "dataset_info.json",
    )
    for name in names:
        (adapter / name).write_bytes(content)
    training = write_training_yaml(tmp_path / "sft.yaml", base="b", output=adapter, dataset_dir=str(adapter))
    read(adapter, training)
    read(adapter)


def test_configurations_that_were_asked_for_must_be_readable(tmp_path, merged, write):
    with pytest.raises(NotFound, match=r"none\.yaml does not exist"):
        read(merged, training=tmp_path / "none.yaml")
    with pytest.raises(NotFound, match="does not exist"):
        read(merged, training_dir=tmp_path / "none")
    with pytest.raises(UsageError, match=r"bad\.yaml is not YAML.*line 3"):
        read(merged, export=write("bad.yaml", "a: 1\nb: [1\n"))


@pytest.mark.parametrize(
    "text",
    [
        "", "- a", "just text", "a: !!python/object/apply:os.system [ls]", "a: !!int x", "a: !!timestamp x",
        "? [a]\n: b", "a: [" * 2000, "\x00", b"\xff\xfe\x00", "&a [*a]", "k: &a [*a]", "a: *b",
        "a: &a [1,1,1,1,1,1,1,1,1]\n"
        + "".join(f"{name}: &{name} [{','.join(['*' + before] * 9)}]\n" for before, name in pairwise("abcdefghi")),
        "#" * ((1 << 20) + 1),
    ],
)  # fmt: skip
def test_bad_yaml(write, text):
    with pytest.raises(UsageError):
        read_config(write("config.yaml", text))


@settings(max_examples=300, suppress_health_check=SHARED_FIXTURES)
@given(text=st.text(st.sampled_from("ab:[]{}&*!-?|>\n '\"#%,0.\t<=~"), max_size=40) | st.binary(max_size=40))
def test_any_text_as_yaml(write, text):
    with suppress(UsageError):
        json.dumps(read_config(write("config.yaml", text)), allow_nan=False).encode("utf-8")


def test_yaml_is_read_as_llama_factory_reads_it(write):
    config = read_config(
        write("c.yaml", "a: 1e-4\nb: 1.0e-4\nc: 2026-11-24\nd: .nan\ne: 010\nf: true\n3: x\ng: 1e5\nh: e5")
    )
    assert config == {
        "a": 1e-4,
        "b": 1e-4,
        "c": "2026-11-24",
        "d": None,
        "e": 8,
        "f": True,
        "3": "x",
        "g": 1e5,
        "h": "e5",
    }
    assert read_config(write("c.json", '{"learning_rate": 1e-4}')) == {"learning_rate": 1e-4}


def test_secrets_do_not_leave():
    secret = "hf_" + "x" * 34
    keys = (
        "hf_hub_token",
        "ms_hub_token",
        "token",
        "swanlab_api_key",
        "swanlab_lark_secret",
        "PASSWORD",
        "webhook_url",
    )
    config = {
        **dict.fromkeys(keys, "x"),
        "nested": [{"aws_secret_access_key": "x"}],
        "url": "https://user:x@host/path",
        "text": f"uses {secret}",
    }
    assert redact(config) == {
        **dict.fromkeys(keys, REDACTED),
        "nested": [{"aws_secret_access_key": REDACTED}],
        "url": f"https://{REDACTED}@host/path",
        "text": f"uses {REDACTED}",
    }
    kept = {"add_tokens": "a,b", "add_special_tokens": "c", "max_new_tokens": 5, "tokenized_path": "d", "token": None}
    assert redact(kept) == kept


def test_secrets_in_a_model_card_do_not_leave(tmp_path, merged):
    secret = "hf_" + "x" * 34
    (tmp_path / "README.md").write_text(CARD.replace("org/base", f"{secret}/base").replace("cosine", secret))
    assert secret not in read(merged, training_dir=tmp_path).encode().decode()


def test_the_revision_of_the_repository_that_holds_the_yaml(tmp_path, merged, monkeypatch):
    repository = tmp_path / "repository"
    (repository / "configs").mkdir(parents=True)
    training = write_training_yaml(repository / "configs/sft.yaml", base="b", output="o")
    git = ["git", "-C", str(repository), "-c", "user.name=a", "-c", "user.email=a@b.c"]

    def revision():
        lineage = read(merged, training)
        return lineage.git_revision, lineage.git_dirty

    subprocess.run([*git, "init", "-q"], check=True)
    assert revision() == (None, None)  # no commit yet
    subprocess.run([*git, "add", "-A"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "first"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    monkeypatch.setenv("GIT_DIR", "/nowhere")  # as inside a git hook
    assert revision() == (head, False)
    (repository / "results.txt").write_text("untracked files are not the training's code")
    assert revision() == (head, False)
    with training.open("a") as file:
        file.write("lora_alpha: 64\n")
    assert revision() == (head, True)
    monkeypatch.setenv("PATH", os.devnull)
    assert revision() == (None, None)


def test_git_is_not_made_to_run_what_the_repository_names(tmp_path, merged):
    """core.fsmonitor names a program that `git status` would run."""
    training = write_training_yaml(tmp_path / "sft.yaml", base="b", output="o")
    marker, hook = tmp_path / "marker", tmp_path / "hook"
    hook.write_text(f"#!/bin/sh\ntouch {marker}\n")
    hook.chmod(0o755)
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "sft.yaml"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "first"], check=True)
    subprocess.run([*git, "config", "core.fsmonitor", str(hook)], check=True)
    assert read(merged, training).git_dirty is False
    assert not marker.exists()
    subprocess.run([*git, "status"], check=True, capture_output=True)
    assert marker.exists()


CARD = """\
---
base_model: org/base
---
This model is a fine-tuned version of [org/base](https://huggingface.co/org/base) on the a and the b datasets.

### Training hyperparameters

The following hyperparameters were used during training:
- learning_rate: 0.0001
- train_batch_size: 2
- eval_batch_size: 8
- seed: 42
- gradient_accumulation_steps: 8
- optimizer: Use OptimizerNames.ADAMW_TORCH_FUSED with betas=(0.9,0.999) and epsilon=1e-08
- lr_scheduler_type: cosine
- lr_scheduler_warmup_ratio: 0.1
- num_epochs: 3.0

### Framework versions

- PEFT 0.18.1
- Transformers 5.6.0
"""


def test_without_a_yaml_the_card_tells_what_was_used(tmp_path, merged):
    (tmp_path / "README.md").write_text(CARD)
    lineage = read(merged, training_dir=tmp_path)
    assert lineage.base == Parent("org/base")
    assert [dataset.name for dataset in lineage.datasets] == ["a", "b"]
    assert lineage.tools == {"peft": "0.18.1", "transformers": "5.6.0"}
    assert lineage.hyperparameters == {
        "learning_rate": 0.0001,
        "per_device_train_batch_size": 2,
        "seed": 42,
        "gradient_accumulation_steps": 8,
        "optimizer": "Use OptimizerNames.ADAMW_TORCH_FUSED with betas=(0.9,0.999) and epsilon=1e-08",
        "lr_scheduler_type": "cosine",
        "warmup_ratio": 0.1,
        "num_train_epochs": 3.0,
    }


def test_what_the_run_wrote_wins_over_the_yaml_and_the_difference_is_told(tmp_path, merged, adapter):
    (adapter / "README.md").write_text(CARD)
    training = write_training_yaml(tmp_path / "sft.yaml", base="b", output=adapter, lora_rank=16, num_train_epochs=3)
    lineage = read(merged, training)
    assert lineage.hyperparameters["learning_rate"] == 0.0001
    assert lineage.lora["rank"] == 8
    assert lineage.training_config["learning_rate"] == 0.003
    assert lineage.contradictions == (
        "learning_rate: the configuration says 0.003, the training's own records say 0.0001",
        "lora_rank: the configuration says 16, the training's own records say 8",
        "per_device_train_batch_size: the configuration says 8, the training's own records say 2",
    )


def test_every_setting_that_can_change_the_model_is_a_hyperparameter(tmp_path, merged):
    telling = {"galore_rank": 4, "freeze_trainable_layers": 2, "kto_chosen_weight": 0.5, "packing": True, "bf16": False}
    silent = {"output_dir": "o", "logging_steps": 5, "save_steps": 5, "plot_loss": True, "report_to": "none",
              "overwrite_cache": True, "preprocessing_num_workers": 4, "eval_steps": 5, "run_name": "x",
              "hf_hub_token": "t", "some_api_key": "k", "lora_rank": 4, "template": "qwen",
              "max_steps": None}  # fmt: skip
    training = write_training_yaml(tmp_path / "sft.yaml", base="b", output="o", **telling, **silent)
    found = read(merged, training).hyperparameters
    assert telling.items() <= found.items()
    assert not silent.keys() & found.keys()


def test_datasets_of_the_evaluation_and_how_each_is_read(tmp_path, merged):
    write_dataset(tmp_path / "data", "held-out", {"a": "b"})
    info = tmp_path / "data/dataset_info.json"
    remote = {"hf_hub_url": "org/chat", "subset": "en", "num_samples": 10, "token": "hf_" + "x" * 30}
    info.write_text(json.dumps({**json.loads(info.read_text()), "chat": remote}))
    training = tmp_path / "sft.yaml"
    training.write_text("dataset: chat\neval_dataset: held-out\n")
    lineage = read(merged, training)
    [chat] = lineage.datasets
    assert (chat.files, chat.info) == ({}, {**remote, "token": REDACTED})
    [held_out] = lineage.eval_datasets
    assert held_out.files == {"held-out.json": sha256((tmp_path / "data/held-out.json").read_bytes()).hexdigest()}


def test_curves_of_every_evaluation_and_of_a_resumed_training(adapter):
    history = [
        {"step": 1, "loss": 4.0}, {"step": 2, "loss": 3.0},
        {"step": 2, "eval_chat_loss": 3.5, "eval_chat_accuracy": 0.5},
        {"step": 2, "loss": 2.5}, {"step": 3, "loss": 2.0}, {"step": 3, "eval_code_loss": 3.0},
    ]  # fmt: skip
    (adapter / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    assert read(adapter).curves == {
        "loss": ((1, 4.0), (2, 2.5), (3, 2.0)), "eval_chat_loss": ((2, 3.5),), "eval_code_loss": ((3, 3.0),),
    }  # fmt: skip


def test_the_tools_of_the_training_and_those_of_the_export(tmp_path, merged, adapter):
    """config.json names the transformers that saved it: the merge's, unless the training itself saved the model."""
    (merged / "config.json").write_text('{"transformers_version": "9.9.9"}')
    export = write_merge_yaml(tmp_path / "merge.yaml", base="b", adapter=adapter, output=merged)
    lineage = read_lineage(merged, training_config=None, export_config=export, training_dir=None, exported_with="0.9.5")
    assert lineage.export_tools == {"llamafactory": "0.9.5", "transformers": "9.9.9"}
    assert lineage.tools["transformers"] not in ("9.9.9", None)
    assert "llamafactory" not in lineage.tools
    (merged / "trainer_state.json").write_text("{}")
    assert read(merged).tools == {"transformers": "9.9.9"}
    assert read(merged).export_tools == {}


def test_what_is_nested_too_deeply_is_left_out(adapter):
    deep: object = 1
    for _ in range(900):
        deep = [deep]
    (adapter / "training_args.yaml").write_text(f"dataset: d\ndataset_dir: {adapter}\n")
    (adapter / "dataset_info.json").write_text(json.dumps({"d": {"columns": deep}}))
    [dataset] = read(adapter).datasets
    depth, value = 0, dataset.info["columns"]
    while isinstance(value, list):
        depth, value = depth + 1, value[0]
    assert (depth, value) == (MAX_DEPTH - 2, None)
