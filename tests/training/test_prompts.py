"""Prompts out of the files that people have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from packtrain.errors import NotFound, UsageError
from packtrain.model.golden import Prompt
from packtrain.training.prompts import SPREAD, examples, read_prompts


def user(text: str) -> Prompt:
    return Prompt(messages=(("user", text),))


ALPACA = [{"instruction": "Add.", "input": "1 2", "output": "3", "system": "Be exact."}]
SHAREGPT = [
    {
        "conversations": [
            {"from": "human", "value": "Hi"},
            {"from": "gpt", "value": "Hello"},
            {"from": "human", "value": "Go on"},
            {"from": "gpt", "value": "No"},
        ],
        "system": "Be rude.",
    }
]
TURNS = Prompt(messages=(("system", "Be rude."), ("user", "Hi"), ("assistant", "Hello"), ("user", "Go on")))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Who?\n\n  \nWhere?\n", (user("Who?"), user("Where?"))),
        ('["Who?", "Where?"]', (user("Who?"), user("Where?"))),
        ('"Who?"\n"Where?\\nNow?"\n', (user("Who?"), user("Where?\nNow?"))),
        ('[{"role": "user", "content": "Who?"}]', None),
        ('[[{"role": "user", "content": "Who?"}]]', (user("Who?"),)),
        ('[{"role": "user", "content": "Who?"}]\n[{"role": "user", "content": "Me?"}]', (user("Who?"), user("Me?"))),
        ('{"messages": [{"role": "user", "content": "Who?"}]}', (user("Who?"),)),
        (json.dumps(ALPACA), (Prompt(messages=(("system", "Be exact."), ("user", "Add.\n1 2"))),)),
        (json.dumps(SHAREGPT), (TURNS,)),
        ("", None),
        ("[1, 2", None),
        ('["\\ud800"', None),
    ],
)
def test_prompts_of_a_file(tmp_path: Path, text: str, expected: tuple[Prompt, ...] | None) -> None:
    path = tmp_path / "prompts"
    path.write_text(text)
    if expected is None:
        with pytest.raises(UsageError):
            read_prompts(path)
    else:
        assert read_prompts(path) == expected


def test_too_many_and_none(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        read_prompts(tmp_path / "none")
    (tmp_path / "many").write_text("Who?\n" * 65)
    with pytest.raises(UsageError, match="at most 64"):
        read_prompts(tmp_path / "many")


def test_examples_are_spread_and_short(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    entries = [{"instruction": f"{number}", "output": ""} for number in range(100)]
    path.write_text(json.dumps([{"instruction": "x" * 3000, "output": ""}, *entries]))
    assert [str(each) for each in examples(path, {})] == [str(12 * n) for n in range(SPREAD)]
    path.write_text(json.dumps([1, 2]))
    assert examples(path, {}) == ()


def test_columns_and_tags_of_a_dataset(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text(json.dumps([{"q": "Who?", "a": "Me."}]))
    assert examples(path, {"columns": {"prompt": "q", "response": "a"}}) == (user("Who?"),)
    path.write_text(json.dumps([{"talk": [{"who": "me", "what": "Who?"}, {"who": "it", "what": "I."}]}]))
    tags = {"role_tag": "who", "content_tag": "what", "user_tag": "me", "assistant_tag": "it"}
    assert examples(path, {"columns": {"messages": "talk"}, "tags": tags}) == (user("Who?"),)
