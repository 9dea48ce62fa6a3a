from __future__ import annotations

import json
import os
import subprocess
from contextlib import chdir, suppress
from hashlib import sha256
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from packtrain.errors import NotFound, UsageError
from packtrain.model.digest import Digest
from packtrain.model.lineage import Lineage
from packtrain.testing.tinymodels import write_dataset, write_merge_yaml, write_training_yaml
from packtrain.training.documents import read_config
from packtrain.training.lineage import MAX_CURVE, REDACTED, read_lineage, redact


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
    assert lineage.base_model == str(base)
    assert lineage.adapter == str(adapter)
    [tiny] = lineage.datasets
    assert (tiny.name, tiny.files) == ("tiny", {"tiny.json": sha256(dataset.read_bytes()).hexdigest()})
    assert (lineage.template, lineage.stage, lineage.finetuning_type) == ("llama3", "sft", "lora")
    assert lineage.lora == {"rank": 8, "alpha": 16, "targets": ["q_proj", "v_proj"]}
    assert lineage.hyperparameters["learning_rate"] == 0.003
    assert (lineage.loss, lineage.accuracy) == (
        json.loads((adapter / "all_results.json").read_text())["eval_loss"],
        json.loads((adapter / "all_results.json").read_text())["eval_accuracy"],
    )
    assert lineage.steps == 30
    assert lineage.epochs is not None
    assert lineage.loss_curve[-1][0] == 30
    assert {"peft", "transformers", "torch"} <= lineage.tools.keys()
    assert lineage.training_config["hf_hub_token"] == REDACTED
    assert lineage.training_config["dataset"] == "tiny"
    assert lineage.export_config["export_size"] == 1


def test_the_merge_yaml_alone_leads_to_the_adapter(tmp_path, base, merged, adapter):
    export = write_merge_yaml(tmp_path / "merge.yaml", base=base, adapter=adapter, output=merged)
    lineage = read(merged, export=export)
    assert (lineage.steps, lineage.lora["rank"], lineage.base_model) == (30, 8, str(base))


def test_the_training_yaml_alone_leads_to_its_output(tmp_path, base, merged, adapter):
    training = write_training_yaml(tmp_path / "sft.yaml", base="org/base", output=adapter)
    lineage = read(merged, training)
    assert (lineage.steps, lineage.base_model) == (30, "org/base")


def test_a_given_training_directory_wins(tmp_path, base, merged, adapter):
    export = write_merge_yaml(tmp_path / "merge.yaml", base=base, adapter="nowhere", output=merged)
    lineage = read(merged, export=export, training_dir=adapter)
    assert (lineage.steps, lineage.adapter) == (30, "nowhere")


def test_an_adapter_is_its_own_training_directory(adapter, base):
    lineage = read(adapter)
    assert (lineage.base_model, lineage.steps, lineage.finetuning_type) == (str(base), 30, "lora")
    assert lineage.loss is not None
    assert read(adapter / "checkpoint-30").loss_curve == lineage.loss_curve


def test_a_full_finetuning_that_was_exported_again(tmp_path, merged):
    trained = tmp_path / "trained"
    trained.mkdir()
    (trained / "trainer_state.json").write_text('{"global_step": 7}')
    export = tmp_path / "export.yaml"
    export.write_text(f"model_name_or_path: {trained}\nexport_dir: {merged}\n")
    assert read(merged, export=export).steps == 7
    (trained / "trainer_state.json").unlink()
    (trained / "README.md").write_text("base_model: of/the-base\n")
    assert read(merged, export=export).base_model == str(trained)


def test_a_merge_without_records_has_no_lineage_but_says_so(merged):
    lineage = read(merged)
    assert (lineage.base_model, lineage.loss, lineage.steps, lineage.datasets) == (None, None, None, ())


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
    curve = read(adapter).loss_curve
    (adapter / "trainer_state.json").unlink()
    assert read(adapter).loss_curve == curve


def test_a_long_curve_keeps_its_ends(adapter):
    history = [{"step": step, "loss": 1 / step} for step in range(1, 12_346)]
    (adapter / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    steps = [step for step, _ in read(adapter).loss_curve]
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
    assert (lineage.metrics, lineage.loss_curve) == ({"eval_y": 1.0}, ((2, 0.5),))
    assert (lineage.epochs, lineage.steps) == (None, None)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
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


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
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


def test_the_revision_of_the_repository_that_holds_the_yaml(tmp_path, merged, monkeypatch):
    repository = tmp_path / "repository"
    (repository / "configs").mkdir(parents=True)
    training = write_training_yaml(repository / "configs/sft.yaml", base="b", output="o")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    git = ["git", "-C", str(repository), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run([*git, "init", "-q"], check=True)
    assert read(merged, training).git_revision is None  # no commit yet
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "first"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    monkeypatch.setenv("GIT_DIR", "/nowhere")  # as inside a git hook
    assert read(merged, training).git_revision == head
    monkeypatch.setenv("PATH", os.devnull)
    assert read(merged, training).git_revision is None
