"""Completion in the shell: what stands behind `packtrain completion`, and what parameters offer.

A name is completed from what this machine has seen of the ledgers. Nobody is asked, so it is quick, and a model that
was published elsewhere a moment ago is not offered until some command has read its ledger.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    FishComplete,
    ShellComplete,
    ZshComplete,
    add_completion_class,
    shell_complete,
    split_arg_string,
)

from packtrain.errors import PacktrainError

if TYPE_CHECKING:
    from packtrain.model.ledger import State

PROGRAM = "packtrain"
VARIABLE = "_PACKTRAIN_COMPLETE"  # set by the scripts when they ask for candidates


class Bash(BashComplete):
    """bash takes `llama@prod` for two words: `llama` and, as it may be a host, `@prod`. So the script hands over the
    line up to the cursor, and takes off the candidates what bash takes for words before."""

    source_template = """\
%(complete_func)s() {
    local line="${COMP_LINE:0:COMP_POINT}" type value
    local word="${line##*[[:space:]]}"
    local before="${word%%"${word##*["$COMP_WORDBREAKS"]}"}"
    before="${before%%@}"
    COMPREPLY=()
    while IFS=, read -r type value; do
        case "$type" in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            plain) COMPREPLY+=("${value#"$before"}") ;;
        esac
    done < <(COMP_WORDS="$line" %(complete_var)s=bash_complete "$1")
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""

    def get_completion_args(self) -> tuple[list[str], str]:
        line = os.environ["COMP_WORDS"]
        words = split_arg_string(line)
        incomplete = words.pop() if words and not line[-1:].isspace() else ""
        while words and "=" in words[0]:  # variables before the command
            words.pop(0)
        return words[1:], incomplete


SHELLS: dict[str, type[ShellComplete]] = {"bash": Bash, "zsh": ZshComplete, "fish": FishComplete}


def script(shell: str, command: click.Command) -> str:
    """What a shell reads to complete our commands."""
    return SHELLS[shell](command, {}, PROGRAM, VARIABLE).source().rstrip("\n")


def answer(instruction: str, command: click.Command) -> int:
    """Prints the candidates that a script asks for. Returns an exit code."""
    add_completion_class(Bash)
    return shell_complete(command, {}, PROGRAM, VARIABLE, instruction)


# What parameters offer, as click calls it


def models(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:  # noqa: ARG001
    return [state.name for state in _seen(context) if state.name.startswith(incomplete)]


def references(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:  # noqa: ARG001
    """Names, until only one is left; then its aliases and versions, too."""
    states = [state for state in _seen(context) if incomplete.startswith((f"{state.name}@", f"{state.name}/"))]
    states = states or [state for state in _seen(context) if state.name.startswith(incomplete)]
    if len(states) > 1:
        return [state.name for state in states]
    return [each for state in states for each in _references(state) if each.startswith(incomplete)]


def aliases(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:  # noqa: ARG001
    """Those of the model that was named already; else all."""
    named = str(context.params.get("reference") or context.params.get("name") or "")
    name = named.partition("@")[0].partition("/")[0]
    found = {alias for state in _seen(context) if state.name == name or not named for alias in state.aliases}
    return sorted(alias for alias in found if alias.startswith(incomplete))


def bases(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """A version, or a folder."""
    versions = [CompletionItem(each) for each in references(context, parameter, incomplete)]
    return versions or folder(context, parameter, incomplete)


def folder(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:  # noqa: ARG001
    return [CompletionItem(incomplete, type="dir")]


def file(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:  # noqa: ARG001
    return [CompletionItem(incomplete, type="file")]


def _references(state: State) -> Iterable[str]:
    yield state.name
    yield from (f"{state.name}@{alias}" for alias in state.aliases)
    yield from (f"{state.name}/{number}" for number in sorted(state.versions, reverse=True))


def _seen(context: click.Context) -> list[State]:
    """Settings that are wrong are told by the command, not while it is typed."""
    from packtrain.cli.session import Session  # which imports this module for the flags of the settings

    try:
        return Session.of(context).client.seen()
    except PacktrainError:
        return []
