"""How help is laid out: commands in the order of the job, settings apart from options, examples as they are typed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import Any

import click

SET_UP, PUBLISH, PROMOTE = "Set up", "Publish", "Promote"
SERVE, LOOK, CHECK, CLEAN = "Pull and serve", "Look", "Check", "Clean up"
SETTINGS = "Settings"


class Setting(click.Option):
    """A flag of a setting, listed apart."""


class Command(click.Command):
    """A command in a panel of the group's help. Its epilog is an example of it."""

    def __init__(self, *args: Any, panel: str, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.panel = panel

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """As it is typed: what must be given, then what may be."""
        arguments = [p for p in self.params if isinstance(p, click.Argument)]
        required = [p for p in self.params if isinstance(p, click.Option) and p.required]
        return [
            *(_metavar(p, ctx) for p in arguments if p.required),
            *(f"{p.opts[0]} {_metavar(p, ctx)}" for p in required),
            "[OPTIONS]",
            *(_metavar(p, ctx) for p in arguments if not p.required),
        ]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        _write_options(self, ctx, formatter)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's
        _write_lines("Example", self.epilog, formatter)


def command(*, panel: str, epilog: str) -> Callable[[Callable[..., Any]], Command]:
    """Makes a function a command of `packtrain`."""
    return click.command(cls=Command, panel=panel, epilog=epilog)


class Group(click.Group):
    """Several commands, in panels if they say so: `packtrain` itself, or one of its commands that has more below it.
    Its epilog is shown under ``example``."""

    command_class = Command

    def __init__(self, *args: Any, panel: str = "", example: str = "Example", **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.panel = panel
        self.example = example

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        panels: dict[str, list[tuple[str, str]]] = {}
        for name, command in self.commands.items():
            assert isinstance(command, Command | Group)
            panels.setdefault(command.panel, []).append((name, command.get_short_help_str(formatter.width)))
        width = max(len(name) for name in self.commands)
        for panel, rows in panels.items():
            with formatter.section(panel):
                formatter.write_dl([(name.ljust(width), text) for name, text in rows])
        _write_options(self, ctx, formatter)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's
        _write_lines(self.example, self.epilog, formatter)


class Lazy(Mapping[str, click.Command]):
    """The commands of a group, by name: each is the variable of that name in a module, which is imported when it is
    asked for, so that no command waits for the others."""

    def __init__(self, modules: Mapping[str, str]) -> None:
        self._modules = modules

    def __getitem__(self, name: str) -> click.Command:
        command: click.Command = getattr(import_module(self._modules[name]), name)
        return command

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)


def _metavar(parameter: click.Parameter, ctx: click.Context) -> str:
    return parameter.metavar or parameter.make_metavar(ctx)


def _write_options(command: click.Command, ctx: click.Context, formatter: click.HelpFormatter) -> None:
    sections: dict[str, list[tuple[str, str]]] = {"Options": [], SETTINGS: []}
    for parameter in command.get_params(ctx):
        if isinstance(parameter, click.Option) and (record := parameter.get_help_record(ctx)):
            sections[SETTINGS if isinstance(parameter, Setting) else "Options"].append(record)
    for title, rows in sections.items():
        if rows:
            with formatter.section(title):
                formatter.write_dl(rows)


def _write_lines(title: str, text: str | None, formatter: click.HelpFormatter) -> None:
    """Text that is not wrapped, because it is copied."""
    if text:
        with formatter.section(title):
            for line in text.splitlines():
                formatter.write(f"  {line}\n")
