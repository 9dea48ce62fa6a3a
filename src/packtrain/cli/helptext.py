"""How help is laid out: commands in the order of the job, settings apart from options, examples as they are typed."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand, TyperGroup

SETTINGS = "Settings"


class Command(TyperCommand):
    """A command whose epilog is an example of it."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """As it is typed: what must be given, then what may be."""
        parameters: list[Any] = self.get_params(ctx)
        arguments = [p for p in parameters if p.param_type_name == "argument"]
        return [
            *(p.metavar for p in arguments if p.required),
            *(f"{p.opts[0]} {p.metavar}" for p in parameters if p.required and p not in arguments),
            "[OPTIONS]",
            *(p.metavar for p in arguments if not p.required),
        ]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        _write_parameters(self, ctx, formatter)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002 - typer's signature
        _write_lines("Example", self.epilog, formatter)


class Group(TyperGroup):
    """`packtrain` itself. Its epilog is the straight line."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        panels: dict[str, list[tuple[str, str]]] = {}
        for name, command in self.commands.items():
            panel = command.rich_help_panel if isinstance(command, TyperCommand) else None
            panels.setdefault(panel or "Commands", []).append((name, command.get_short_help_str(formatter.width)))
        width = max(len(name) for name in self.commands)
        for panel, rows in panels.items():
            with formatter.section(panel):
                formatter.write_dl([(name.ljust(width), text) for name, text in rows])
        _write_parameters(self, ctx, formatter)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002 - typer's signature
        _write_lines("The straight line", self.epilog, formatter)


def _write_parameters(command: TyperCommand | TyperGroup, ctx: Any, formatter: Any) -> None:
    sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": [], SETTINGS: []}
    parameters: list[Any] = command.get_params(ctx)
    for parameter in parameters:
        if parameter.param_type_name == "argument":
            sections["Arguments"].append((parameter.metavar, parameter.help))
        else:
            usage, _ = parameter.get_help_record(ctx)
            text = f"{parameter.help} (required)" if parameter.required else parameter.help
            sections[parameter.rich_help_panel or "Options"].append((usage, text))
    for title, rows in sections.items():
        if rows:
            with formatter.section(title):
                formatter.write_dl(rows)


def _write_lines(title: str, text: str | None, formatter: Any) -> None:
    """Text that is not wrapped, because it is copied."""
    if text:
        with formatter.section(title):
            for line in text.splitlines():
                formatter.write(f"  {line}\n")
