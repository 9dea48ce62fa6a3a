"""What vLLM is told, and what the user may tell it."""

import argparse
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packtrain.errors import EngineError, IntegrityError, Refused, UsageError
from packtrain.serving import Adapter, Arguments, Launch, adapter_rank, command_line, find_vllm

ADAPTER = Adapter(path=Path("/cache/adapter"), rank=8, base_name="llama-base")


def command(*arguments: str, adapter: Adapter | None = None, **more: str) -> list[str]:
    launch = Launch(
        name="llama-finetuned",
        model=more.pop("model", "/cache/model"),
        fingerprint="llama-finetuned/3@sha256:0123456789ab",
        arguments=Arguments.read(arguments),
        adapter=adapter,
        **more,
    )
    return command_line(launch, "/opt/vllm")


def test_a_merged_model() -> None:
    assert command("--port", "8001") == [
        "/opt/vllm", "serve", "/cache/model",
        "--served-model-name", "llama-finetuned",
        "--fingerprint-mode", "custom", "--fingerprint-value", "llama-finetuned/3@sha256:0123456789ab",
        "--port", "8001",
    ]  # fmt: skip


def test_an_adapter_brings_its_base() -> None:
    words = command(adapter=ADAPTER, model="org/base", revision="c0ffee")
    assert words[:5] == ["/opt/vllm", "serve", "org/base", "--revision", "c0ffee"]
    assert words[words.index("--served-model-name") + 1] == "llama-base"
    assert "--enable-lora" in words
    assert words[words.index("--max-lora-rank") + 1] == "8"
    assert lora_modules(words) == [
        {"name": "llama-finetuned", "path": "/cache/adapter", "base_model_name": "llama-base"}
    ]


def test_a_base_published_under_the_adapters_name_answers_under_another() -> None:
    adapter = Adapter(ADAPTER.path, 8, base_name="llama-finetuned")
    words = command(adapter=adapter)
    assert words[words.index("--served-model-name") + 1] == "llama-finetuned-base"
    assert lora_modules(words)[0]["base_model_name"] == "llama-finetuned-base"


@pytest.mark.parametrize(
    ("rank", "reserved"), [(1, 1), (2, 8), (8, 8), (9, 16), (64, 64), (65, 128), (300, 320), (512, 512)]
)
def test_the_rank_is_rounded_up_to_what_vllm_takes(rank: int, reserved: int) -> None:
    words = command(adapter=Adapter(ADAPTER.path, rank, "b"))
    assert words[words.index("--max-lora-rank") + 1] == str(reserved)


def test_a_rank_beyond_vllms_is_refused() -> None:
    with pytest.raises(Refused, match="rank 513"):
        command(adapter=Adapter(ADAPTER.path, 513, "b"))


@pytest.mark.parametrize(
    ("said", "flag"),
    [
        (["--served-model-name", "a", "b"], "--served-model-name"),
        (["--served_model_name=a"], "--served-model-name"),
        (["--served-m", "a"], "--served-model-name"),
        (["--fingerprint-mode", "full"], "--fingerprint-mode"),
        (["--fingerprint-mode=none"], "--fingerprint-value"),
        (["--fingerprint-value", "x"], "--fingerprint-value"),
    ],
)
def test_what_the_user_says_is_not_said_by_us(said: list[str], flag: str) -> None:
    words = command(*said)
    assert words[-len(said) :] == said
    assert flag not in words[: -len(said)]


@pytest.mark.parametrize(
    "said",
    [
        ["other/model"],
        ["other/model", "--port", "8001"],
        ["--port", "8001", "--model", "other/model"],
        ["--model=other/model"],
    ],
)
def test_another_model_is_refused(said: list[str]) -> None:
    with pytest.raises(UsageError, match="names a model"):
        Arguments.read(said)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (["--no-enable-lora"], "contradicts"),
        (["--max-lora-rank", "4"], "too small"),
        (["--max-lora-rank", "many"], "needs a number"),
        (["--served-model-name", "x", "llama-finetuned"], "adapter's name"),
        (["--lora-modules", "llama-finetuned=/elsewhere"], "another adapter called"),
        (["--lora-modules", '{"name": "llama-finetuned", "path": "/elsewhere"}'], "another adapter called"),
    ],
)
def test_what_would_take_the_adapters_place_is_refused(said: list[str], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        command(*said, adapter=ADAPTER)


def test_another_revision_of_the_base_is_refused() -> None:
    with pytest.raises(UsageError, match="another base"):
        command("--revision", "main", adapter=ADAPTER, model="org/base", revision="c0ffee")


@pytest.mark.parametrize("said", [["--lora-modules", "x=/x", "y=/y"], ["--lora-modules=x=/x"]])
def test_the_users_adapters_are_served_beside_ours(said: list[str]) -> None:
    words = command("--seed", "1", *said, "--max-lora-rank", "64", "--enable-lora", adapter=ADAPTER)
    assert words.count("--lora-modules") == words.count("--enable-lora") == words.count("--max-lora-rank") == 1
    assert [module["name"] for module in lora_modules(words)] == ["llama-finetuned", "x", "y"][: 2 + ("y=/y" in said)]


def test_a_config_file_counts_like_arguments(tmp_path: Path) -> None:
    config = tmp_path / "vllm.yaml"
    config.write_text("served_model_name: [a, b]\nport: 8123\nenable-lora: true\nlora-modules: [x=/x]\nheadless: false")
    arguments = Arguments.read(["--config", str(config), "--host", "::1"])
    assert "--served-model-name" not in command("--config", str(config))
    assert arguments.endpoint is not None
    assert arguments.endpoint.url == "http://[::1]:8123"
    assert not arguments.has("--headless")
    words = command("--config", str(config), adapter=ADAPTER)
    assert "--enable-lora" not in words
    assert [module["name"] for module in lora_modules(words)] == ["llama-finetuned", "x"]
    assert lora_modules(words)[0]["base_model_name"] == "a"


@pytest.mark.parametrize("content", [None, "- a list", "{not yaml", "model: other/model"])
def test_a_config_file_that_cannot_be_used_is_refused(tmp_path: Path, content: str | None) -> None:
    config = tmp_path / "vllm.yaml"
    if content is not None:
        config.write_text(content)
    with pytest.raises(UsageError):
        Arguments.read(["--config", str(config)])


@pytest.mark.parametrize(
    ("said", "url", "hides"),
    [
        ([], "http://127.0.0.1:8000", ""),
        (["--host", "0.0.0.0", "--port=81"], "http://127.0.0.1:81", ""),
        (["--host", "::"], "http://[::1]:8000", ""),
        (["--port", "1", "--port", "2"], "http://127.0.0.1:2", ""),
        (["--ssl-keyfile", "k", "--ssl-certfile", "c"], "http://127.0.0.1:8000", "--ssl-keyfile"),
        (["--grpc"], "http://127.0.0.1:8000", "--grpc"),
        (["--uds", "/run/vllm"], None, "--uds"),
        (["--headless"], None, "--headless"),
        (["--port", "0"], None, "--port 0"),
    ],
)
def test_where_it_listens(said: list[str], url: str | None, hides: str) -> None:
    arguments = Arguments.read(said)
    assert (arguments.endpoint.url if arguments.endpoint else None) == url
    assert arguments.hides_health == hides


@pytest.mark.parametrize("said", [["--port", "http"], ["--port"], ["--port="]])
def test_a_port_is_a_number(said: list[str]) -> None:
    with pytest.raises(UsageError, match="--port needs a number"):
        _ = Arguments.read(said).endpoint


words_st = st.text("abc=,./{}0-_", max_size=6)
flags_st = st.sampled_from(
    ["--seed", "--dtype=float32", "--max_model_len", "--enforce-eager", "-tp", "--api-key", "--port", "--a=b=c",
     "--served-model-name", "--fingerprint-mode", "--lora-modules=q=/q", "--compilation-config.level", "--", "-O3"]
)  # fmt: skip


@given(st.lists(st.tuples(flags_st, st.lists(words_st, max_size=3)).map(lambda group: [group[0], *group[1]])))
def test_no_argument_of_the_user_is_lost_or_moved(groups: list[list[str]]) -> None:
    said = [word for group in groups for word in group]
    try:
        assert command(*said)[-len(said) :] == said or not said
        words = command(*said, adapter=ADAPTER)
    except UsageError:  # --model and its shortenings may come out of the random words
        return
    kept = Arguments.read(said).without("--lora-modules")
    assert words[len(words) - len(kept) :] == list(kept)
    others = Arguments.read(said).values("--lora-modules") or ()
    place = words.index("--lora-modules")
    assert words[place + 2 : place + 2 + len(others)] == list(others)


@given(st.lists(st.sampled_from(["--port", "--port=3", "--por", "4", "--host", "h", "--host=", "--seed", "--s=1"])))
def test_values_are_read_as_argparse_reads_them(said: list[str]) -> None:
    parser = argparse.ArgumentParser(exit_on_error=False, add_help=False)
    for flag in ("--port", "--host", "--seed"):
        parser.add_argument(flag)
    try:
        expected, unknown = parser.parse_known_args(said)
    except (argparse.ArgumentError, SystemExit):
        return
    if unknown:
        return
    arguments = Arguments.read(said)
    for flag in ("port", "host", "seed"):
        values = arguments.values(f"--{flag}")
        assert (values[-1] if values else None) == getattr(expected, flag)


def test_the_rank_of_an_adapter(tmp_path: Path) -> None:
    config = tmp_path / "adapter_config.json"
    config.write_text('{"r": 8, "rank_pattern": {"q_proj": 24, "v_proj": 4}}')
    assert adapter_rank(tmp_path) == 24
    config.write_text('{"r": 8, "rank_pattern": null}')
    assert adapter_rank(tmp_path) == 8
    for bad in ("", "[]", "{}", '{"r": "8"}', '{"r": true}', '{"r": 0}', '{"r": 8, "rank_pattern": [1]}'):
        config.write_text(bad)
        with pytest.raises(IntegrityError, match=r"adapter_config\.json"):
            adapter_rank(tmp_path)
    config.unlink()
    with pytest.raises(IntegrityError, match="does not say"):
        adapter_rank(tmp_path)


def test_vllm_is_found_on_path_and_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    executable = tmp_path / "bin" / "vllm"
    executable.parent.mkdir()
    executable.write_text("#!/bin/sh\n")
    executable.chmod(0o755)
    monkeypatch.setenv("PATH", str(executable.parent))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert find_vllm("vllm") == find_vllm("bin/vllm") == find_vllm("~/bin/vllm") == str(executable)


def test_a_missing_vllm_is_named_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "plain").write_text("not executable")
    for setting, why in (("vllm", "not on PATH"), (str(tmp_path / "plain"), "not an executable file")):
        with pytest.raises(EngineError, match=why) as caught:
            find_vllm(setting)
        assert "PACKTRAIN_VLLM" in caught.value.hint


def lora_modules(words: list[str]) -> list[dict[str, str]]:
    place = words.index("--lora-modules") + 1
    modules = []
    for word in words[place:]:
        if word.startswith("-"):
            break
        name, _, path = word.partition("=")
        modules.append(json.loads(word) if word.startswith("{") else {"name": name, "path": path})
    return modules
