"""What every command is given: its settings, its `Client`, and where its result goes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from packtrain.cli.helptext import SETTINGS
from packtrain.cli.terminal import answer, say
from packtrain.errors import UsageError

if TYPE_CHECKING:
    from packtrain.client import Client

Result = TypeVar("Result")


def _setting(flag: str, metavar: str, text: str) -> Any:
    return Annotated[str | None, typer.Option(flag, metavar=metavar, help=text, rich_help_panel=SETTINGS)]


# Every setting, and --json. They may stand before the command's name or after it.
FLAGS: Mapping[str, Any] = {
    "store": _setting("--store", "URL", "Where models are: file:///PATH or s3://BUCKET/PREFIX."),
    "registry": _setting("--registry", "URL", "Where versions are registered; 'store': in the store itself."),
    "cache_dir": _setting("--cache-dir", "DIR", "Where this node keeps its snapshots."),
    "actor": _setting("--actor", "WHO", "Who is written into the ledger."),
    "vllm": _setting("--vllm", "COMMAND", "The command that starts vLLM."),
    "llamafactory": _setting("--llamafactory", "COMMAND", "The command that starts LLaMA-Factory."),
    "json": Annotated[
        bool,
        typer.Option("--json", help="The result as JSON on stdout, progress as JSON lines on stderr."),
    ],
}
EVERYWHERE = ("store", "registry", "cache_dir", "json")


class Session:
    """One run of one command."""

    def __init__(self, flags: Mapping[str, Any]) -> None:
        self.as_json: bool = flags.get("json", False)
        self._settings = {name: value for name, value in flags.items() if name != "json"}
        for name, value in self._settings.items():
            if not value:
                raise UsageError(
                    f"--{name.replace('_', '-')} is empty", hint="Leave it out to use the setting that you have."
                )

    @cached_property
    def client(self) -> Client:
        from packtrain.cli.progress import reporter
        from packtrain.client import Client

        return Client(**self._settings, reporter=reporter(as_json=self.as_json))

    def print(self, result: Result, *, text: Callable[[Result], str], document: Callable[[Result], Any]) -> None:
        """The result on stdout: as a document of JSON if it was asked for. An empty text is not printed."""
        if self.as_json:
            import json

            answer(json.dumps(document(result), indent=2))
        elif shown := text(result):
            answer(shown)

    def note(self, line: str) -> None:
        """What people may want to know next, on stderr. Programs do not."""
        if not self.as_json:
            say(line)


def with_settings(*more: str) -> Callable[[Callable[..., int | None]], Callable[..., int | None]]:
    """Makes a command of a function that takes a `Session` first: it gets the flags of the settings that it uses."""
    flags = [name for name in FLAGS if name in EVERYWHERE or name in more]

    def decorate(function: Callable[..., int | None]) -> Callable[..., int | None]:
        _session, *own = inspect.signature(function, eval_str=True).parameters.values()

        def command(context: typer.Context, **values: Any) -> int | None:
            given = {name: values.pop(name) for name in flags}
            return function(Session({**before_the_command(context), **_given(given)}), **values)

        return _declared(command, function, [*own, *(_parameter(name) for name in flags)])

    return decorate


def root(function: Callable[..., None]) -> Callable[..., Any]:
    """Makes the group's own callback, which keeps the flags that stand before the command's name."""

    def callback(context: typer.Context, **values: Any) -> None:
        context.obj = _given({name: values.pop(name) for name in FLAGS})
        function(**values)

    own = inspect.signature(function, eval_str=True).parameters.values()
    return _declared(callback, function, [*own, *(_parameter(name) for name in FLAGS)])


def before_the_command(context: typer.Context) -> dict[str, Any]:
    """The flags that stood before the command's name."""
    return context.obj or {}


def _declared(
    command: Callable[..., Any], function: Callable[..., Any], parameters: list[inspect.Parameter]
) -> Callable[..., Any]:
    """``command`` with the name and help of ``function``, and the parameters that typer shall make of it."""
    context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    keyword_only = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    command.__name__, command.__doc__ = function.__name__, function.__doc__
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in [context, *keyword_only]}
    command.__signature__ = inspect.Signature([context, *keyword_only])  # type: ignore[attr-defined]
    return command


def _parameter(name: str) -> inspect.Parameter:
    default = False if name == "json" else None
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=FLAGS[name])


def _given(flags: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in flags.items() if value is not None and value is not False}
