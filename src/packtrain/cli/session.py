"""What every command is given: its settings, its `Client`, and where its result goes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property, update_wrapper
from typing import TYPE_CHECKING, Any, TypeVar

import click

from packtrain.cli import completing
from packtrain.cli.helptext import Setting
from packtrain.cli.terminal import answer, say
from packtrain.errors import PacktrainError, UsageError, disk_error, exit_code

if TYPE_CHECKING:
    from pathlib import Path

    from packtrain.client import Client

Result = TypeVar("Result")
Function = Callable[..., Any]

_META = "packtrain.flags"


def _keep(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    """What was given is kept for the command. Flags after the command's name are read last, so they win."""
    if value is not None and value is not False:
        context.meta.setdefault(_META, {})[parameter.name] = value


def _keep_pull(context: click.Context, parameter: click.Parameter, value: bool | None) -> None:
    """The flag is the setting of two values."""
    if value is not None:
        _keep(context, parameter, "in-place" if value else "cache")


def _setting(flag: str, metavar: str, text: str, **more: Any) -> Callable[[Function], Function]:
    return click.option(flag, cls=Setting, metavar=metavar, help=text, expose_value=False, callback=_keep, **more)


# Every setting, and --json. They may stand before the command's name or after it.
FLAGS: Mapping[str, Callable[[Function], Function]] = {
    "json": click.option(
        "--json",
        is_flag=True,
        help="The result as JSON on stdout, progress as JSON lines on stderr.",
        expose_value=False,
        callback=_keep,
    ),
    "store": _setting("--store", "URL", "Where models are: file:///PATH, s3://BUCKET/PREFIX, gs:// or az://."),
    "registry": _setting("--registry", "URL", "Where versions are registered; 'store': in the store itself."),
    "cache_dir": _setting(
        "--cache-dir", "DIR", "Where this node keeps its snapshots.", shell_complete=completing.folder
    ),
    "storage_class": _setting("--storage-class", "CLASS", "The S3 storage class of new versions."),
    "cache_quota": _setting("--cache-quota", "AMOUNT", "How much they may take: 500GB, or 80% of their disk."),
    "cache_free": _setting("--cache-free", "AMOUNT", "How much of their disk stays free."),
    "pull": click.option(
        "--in-place/--no-in-place",
        "pull",
        default=None,
        cls=Setting,
        help="Use the store's own directory, without a copy.",
        expose_value=False,
        callback=_keep_pull,
    ),
    "pull_memory": _setting("--pull-memory", "AMOUNT", "How much of a pull may be in flight."),
    "pull_bandwidth": _setting("--pull-bandwidth", "AMOUNT", "How many bytes a second a pull may fetch: 200MB."),
    "actor": _setting("--actor", "WHO", "Who is written into the ledger."),
    "vllm": _setting("--vllm", "COMMAND", "The command that starts vLLM.", shell_complete=completing.file),
    "llamafactory": _setting(
        "--llamafactory", "COMMAND", "The command that starts LLaMA-Factory.", shell_complete=completing.file
    ),
    "strategy": _setting("--strategy", "HOW", "How versions change: auto, blue-green or replace."),
    "devices": _setting("--devices", "SETS", "Sets of devices for engines: '0,1;2,3'."),
    "poll": _setting("--poll", "SECONDS", "Between two looks at the alias; else 10."),
    "watch_window": _setting("--watch-window", "SECONDS", "In which a version must prove itself; else 120."),
    "error_limit": _setting("--error-limit", "SHARE", "Of requests that may fail meanwhile; else 10%."),
    "latency_limit": _setting("--latency-limit", "SECONDS", "Until half of the answers begin, meanwhile."),
    "drain": _setting("--drain", "SECONDS", "For requests to end when their engine stops; else 60."),
    "keep_versions": _setting("--keep-versions", "COUNT", "That proved themselves stay in the cache; else 2."),
}
EVERYWHERE = ("json", "store", "registry", "cache_dir")
PULL = ("pull", "pull_memory", "pull_bandwidth", "cache_quota", "cache_free")  # of commands that may pull
FOLLOW = (  # of the command that follows an alias
    "strategy",
    "devices",
    "poll",
    "watch_window",
    "error_limit",
    "latency_limit",
    "drain",
    "keep_versions",
)
CACHE = ("cache_quota", "cache_free")  # of commands that may evict, or say how much room there is


class Session:
    """One run of one command."""

    def __init__(self, flags: Mapping[str, Any]) -> None:
        self.as_json: bool = flags.get("json", False)
        self.settings: dict[str, str] = {name: value for name, value in flags.items() if name != "json"}
        for name, value in self.settings.items():
            if not value:
                raise UsageError(
                    f"--{name.replace('_', '-')} is empty", hint="Leave it out to use the setting that you have."
                )

    @classmethod
    def of(cls, context: click.Context) -> Session:
        return cls(context.meta.get(_META, {}))

    @cached_property
    def client(self) -> Client:
        from packtrain.cli.progress import reporter
        from packtrain.client import Client

        return Client(**self.settings, reporter=reporter(as_json=self.as_json))

    def print(self, result: Result, *, text: Callable[[Result], str], document: Callable[[Result], Any]) -> None:
        """The result on stdout: as a document of JSON if it was asked for. An empty text is not printed."""
        if self.as_json:
            import json

            answer(json.dumps(document(result), indent=2))
        elif shown := text(result):
            answer(shown)

    def tell(self, result: Result, *, text: Callable[[Result], str], document: Callable[[Result], Any]) -> None:
        """One of many results, as soon as it is there: a document of JSON is one line."""
        if self.as_json:
            import json

            answer(json.dumps(document(result)))
        else:
            answer(text(result))

    def wrong(self, error: PacktrainError) -> int:
        """What was printed is not as it should be. Programs read that in it, and get the exit code; people are told."""
        if self.as_json:
            return exit_code(error)
        raise error

    def draw(self, path: Path, picture: str) -> None:
        """A picture, into a file of the user's."""
        try:
            path.write_text(picture, encoding="utf-8")
        except OSError as error:
            raise disk_error(error, f"cannot write {path}") from error
        self.note(f"drawn: {path}")

    def note(self, line: str) -> None:
        """What people may want to know next, on stderr. Programs do not."""
        if not self.as_json:
            say(line)


def takes(*flags: str) -> Callable[[Function], Function]:
    """Gives a command the flags that all have and these, which it sees only through the `Session` that becomes its
    first argument."""

    def decorate(function: Function) -> Function:
        @click.pass_context
        def command(context: click.Context, /, **values: Any) -> Any:
            return function(Session.of(context), **values)

        wrapped: Function = update_wrapper(command, function)
        for name in reversed([name for name in FLAGS if name in EVERYWHERE or name in flags]):
            wrapped = FLAGS[name](wrapped)
        return wrapped

    return decorate
