from __future__ import annotations

import json

import pytest
import yaml

from packtrain.training.checkpoint import inspect
from packtrain.training.generated import Generated, generate


def config(directory, **values):
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def by_path(directory) -> dict[str, Generated]:
    return {file.path: file for file in generate(inspect(directory))}


def test_what_mlflow_needs_to_load_a_merge(merged):
    files = by_path(merged)
    model = yaml.safe_load(files["MLmodel"].content)
    flavor = model["flavors"]["transformers"]
    assert model["flavors"]["python_function"] == {"loader_module": "mlflow.transformers"}
    assert (flavor["model_binary"], flavor["task"]) == (".", "text-generation")
    assert flavor["pipeline_model_type"] == "LlamaForCausalLM"
    assert json.loads(model["signature"]["inputs"]) == [{"type": "string", "required": True}]
    assert files["requirements.txt"].content.startswith(b"accelerate\ntorch\ntransformers>=")
    copies = {path: file.copy_of for path, file in files.items() if file.copy_of}
    assert copies == {
        f"components/tokenizer/{name}": name
        for name in ("chat_template.jinja", "tokenizer.json", "tokenizer_config.json")
    }
    assert all((file.content is None) != (file.copy_of is None) for file in files.values())


def test_the_same_export_gives_the_same_bytes_wherever_it_is(merged, tmp_path):
    before = generate(inspect(merged))
    merged.rename(tmp_path / "elsewhere")
    assert generate(inspect(tmp_path / "elsewhere")) == before
    assert [file.path for file in before] == sorted(file.path for file in before)


def test_the_exports_own_files_win(merged):
    (merged / "requirements.txt").write_text("mine")
    (merged / "components").mkdir()
    (merged / "components" / "tokenizer").write_text("a file where the folder would be")
    assert set(by_path(merged)) == {"MLmodel"}


def test_a_tokenizer_that_does_not_name_its_class_needs_the_config(merged):
    (merged / "tokenizer_config.json").write_text("{}")
    assert by_path(merged)["components/tokenizer/config.json"].copy_of == "config.json"


@pytest.mark.parametrize("version", ["5.6.0.dev0", "5; evil", 5, None])
def test_a_version_that_is_none_is_not_required(merged, version):
    config(merged, transformers_version=version)
    assert by_path(merged)["requirements.txt"].content == b"accelerate\ntorch\ntransformers\n"


@pytest.mark.parametrize(
    "values",
    [
        {"architectures": ["Qwen2_5_VLForConditionalGeneration"]},
        {"architectures": ["LlamaForSequenceClassification"]},
        {"architectures": ["A: ForCausalLM"]},
        {"architectures": []},
        {"architectures": None},
        {"architectures": [3]},
        {"auto_map": {"AutoModelForCausalLM": "modeling_x.X"}},
    ],
)
def test_nothing_is_promised_for_what_the_flavor_cannot_load(merged, values):
    config(merged, **values)
    assert generate(inspect(merged)) == ()


def test_nothing_for_an_adapter(adapter):
    assert generate(inspect(adapter)) == ()
