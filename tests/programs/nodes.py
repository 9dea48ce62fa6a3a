"""Nodes that follow an alias with a stand-in for vLLM: what tests of them are made of."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from typing import Any

from packtrain.testing.stub_vllm import Model, write_executable
from tests.conftest import Models
from tests.programs.conftest import PROGRAM, Cli, environment
from tests.serving.load import Answer
from tests.serving.node import Node, node

FAST = ("--poll", "0.2", "--watch-window", "1")

Serve = Callable[..., AbstractContextManager[Node]]


def settings(home: Path) -> dict[str, str]:
    """Of a node that has a stand-in for vLLM, and room for two engines."""
    return {
        **environment(home),
        "PACKTRAIN_VLLM": str(write_executable(home / "vllm")),
        "PACKTRAIN_WATCH_WINDOW": "60",
        "PACKTRAIN_POLL": "0.2",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "STUB_VLLM_PACE": "0.005",
    }


def release(cli: Cli, models: Models) -> None:
    """llama/1, in production, and llama/2."""
    cli.run("publish", models.first, "--name", "llama", "--alias", "production")
    cli.run("publish", models.second, "--name", "llama")


def serving(cli: Cli) -> Serve:
    def start(
        *options: str, vllm: tuple[str, ...] = (), port: int | None = None, **more: str
    ) -> AbstractContextManager[Node]:
        return node([str(PROGRAM)], {**cli.environment, **more}, cli.home, *options, vllm=vllm, port=port)

    return start


def promote(cli: Cli, number: int) -> None:
    cli.run("promote", f"llama/{number}", "--to", "production")


def publish_broken(cli: Cli, models: Models, behaviour: dict[str, Any]) -> int:
    """Another version, whose engine behaves like that."""
    folder = cli.home / "broken"
    shutil.copytree(models.second, folder)
    (folder / "stub_vllm.json").write_text(json.dumps(behaviour))
    return int(cli.json("publish", folder, "--name", "llama")["version"])


@cache
def weights(directory: Path) -> Model:
    return Model("llama", "", sorted(directory.glob("*.safetensors")))


def answers_of(models: Models) -> Callable[[Answer], bool]:
    """Whether it is what the version says, by the stand-in's own rules."""
    of = {"llama/1": models.first, "llama/2": models.second}
    return lambda answer: answer.text == weights(of[answer.version]).answer(json.dumps(answer.prompt), answer.tokens)


def event_of(cli: Cli, action: str) -> Any:
    """The details of the first such event."""
    return next((e["details"] for e in cli.json("history", "llama") if e["action"] == action), None)
