"""Prompts to try a model with: from a file of the user's, or from examples as LLaMA-Factory's datasets hold them.

Source of their form: LLaMA-Factory `data/README.md` (alpaca, sharegpt and OpenAI), `data/parser.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from packtrain.errors import UsageError
from packtrain.model.golden import Prompt
from packtrain.training.documents import MAX_DOCUMENT, Malformed, read_bytes

MOST = 64  # prompts: every node asks all of them at every switch
SPREAD = 8  # examples that are taken of a dataset
LONGEST = 2000  # characters of an example that is taken

DEFAULT = tuple(
    Prompt(messages=(("user", text),))
    for text in (
        "Hello, who are you?",
        "What can you do for me?",
        "Write one sentence about the sea.",
        "What is 17 + 25? Answer with the number.",
        "Translate 'good morning' into French.",
        "def add(a, b):",
        "List three colours.",
        "Is the earth flat? Answer yes or no, and say why.",
    )
)

_ROLES = {"human": "user", "gpt": "assistant", "function_call": "assistant", "observation": "tool"}


def read_prompts(path: Path) -> tuple[Prompt, ...]:
    """All prompts of a file: a JSON list, JSON lines, or lines of text. An entry is a text, a list of messages, or an
    example of a dataset. Raises UsageError, NotFound, LocalDiskError."""
    try:
        found = [prompt for entry in _entries(path) if (prompt := _prompt(entry, {})) is not None]
    except Malformed as error:
        raise UsageError(f"the prompts in {path} cannot be read: the file {error}") from error
    if not found or len(found) > MOST:
        raise UsageError(
            f"{path} has {len(found) or 'no'} prompts" + (f"; at most {MOST} make sense" if found else ""),
            hint="A prompt a line, or JSON: a list of texts, of lists of messages, or of a dataset's examples.",
        )
    return tuple(found)


def examples(path: Path, info: Mapping[str, Any]) -> tuple[Prompt, ...]:
    """A few prompts spread over a dataset's file. ``info`` is its entry in dataset_info.json. Nothing, if it is not in
    a form that is known. Raises NotFound, LocalDiskError."""
    try:
        found = [prompt for entry in _entries(path) if (prompt := _prompt(entry, info)) is not None]
    except Malformed:
        return ()
    short = [prompt for prompt in found if sum(len(content) for _, content in prompt.messages) <= LONGEST]
    step = max(1, len(short) // SPREAD)
    return tuple(short[::step][:SPREAD])


def _entries(path: Path) -> Sequence[Any]:
    """Raises Malformed."""
    try:
        text = read_bytes(path, limit=MAX_DOCUMENT).decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise Malformed(f"is not UTF-8: {error}") from error
    lines = [line for line in text.splitlines() if line.strip()]
    if text.startswith("["):
        try:
            found = json.loads(text)
        except ValueError:
            pass  # perhaps each line is a list of messages
        else:
            return found if isinstance(found, list) else []
    if text.startswith(("[", "{", '"')):
        try:
            return [json.loads(line) for line in lines]
        except ValueError as error:
            raise Malformed(f"begins like JSON, and is none: {error}") from error
    return lines


def _prompt(entry: Any, info: Mapping[str, Any]) -> Prompt | None:
    """What a model would be asked, without the answer; None if that cannot be said."""
    if isinstance(entry, str):
        return Prompt(messages=(("user", entry),)) if entry.strip() else None
    if isinstance(entry, list):
        return _conversation(entry, "", info)
    if not isinstance(entry, dict):
        return None
    columns = info.get("columns") if isinstance(info.get("columns"), dict) else {}
    assert isinstance(columns, dict)
    system = _text(entry.get(columns.get("system", "system")))
    for name in (columns.get("messages", "conversations"), "messages"):
        if isinstance(entry.get(name), list):
            return _conversation(entry[name], system, info)
    question = _text(entry.get(columns.get("prompt", "instruction")))
    more = _text(entry.get(columns.get("query", "input")))
    asked = "\n".join(filter(None, (question, more)))
    return Prompt(messages=(*_said("system", system), ("user", asked))) if asked else None


def _conversation(entries: Sequence[Any], system: str, info: Mapping[str, Any]) -> Prompt | None:
    """Up to the last thing that the user says."""
    tags = info.get("tags") if isinstance(info.get("tags"), dict) else {}
    assert isinstance(tags, dict)
    roles = {
        **_ROLES,
        **{tags[f"{role}_tag"]: role for role in ("user", "assistant", "system") if f"{role}_tag" in tags},
    }
    messages = list(_said("system", system))
    for entry in entries:
        if not isinstance(entry, dict):
            return None
        role = _text(entry.get(tags.get("role_tag", "from")) or entry.get("role"))
        content = _text(entry.get(tags.get("content_tag", "value")) or entry.get("content"))
        messages += _said(roles.get(role, role), content)
    while messages and messages[-1][0] != "user":
        messages.pop()
    return Prompt(messages=tuple(messages)) if messages else None


def _said(role: str, content: str) -> tuple[tuple[str, str], ...]:
    return ((role, content),) if role and content else ()


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
