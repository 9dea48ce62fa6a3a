"""The commands. Each reads its arguments, asks the `Client`, and prints the result.

Only typer is imported at start: everything else is imported by the command that needs it, so that help is quick.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from packtrain.client import Client

PUBLISH, PROMOTE, SERVE, LOOK = "Publish", "Promote", "Pull and serve", "Look and check"

app = typer.Typer(
    name="packtrain",
    help="Carries fine-tuned models from LLaMA-Factory to vLLM: the right version, whole, verified, with a way back.",
    epilog="The straight line:  packtrain publish DIR --name NAME;  packtrain promote NAME/1 --to production;  "
    "packtrain serve NAME@production;  packtrain rollback NAME.  "
    "Versions are named NAME (the newest), NAME@alias, NAME/3 or NAME@sha256:DIGEST.",
    rich_markup_mode=None,
    add_completion=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# Settings as flags: the same on every command. docs/settings.md says where else they come from.
Store = Annotated[str | None, typer.Option("--store", metavar="URL", help="Where models are: file:///..., s3://...")]
RegistryUrl = Annotated[str | None, typer.Option("--registry", metavar="URL", help="Where versions are registered.")]
CacheDir = Annotated[Path | None, typer.Option("--cache-dir", metavar="DIR", help="This node's snapshots.")]
Actor = Annotated[str | None, typer.Option("--actor", help="Who is written into the ledger (default: the OS user).")]
Json = Annotated[bool, typer.Option("--json", help="The result as JSON on stdout, progress as JSON lines on stderr.")]
Vllm = Annotated[str | None, typer.Option("--vllm", metavar="COMMAND", help="The command that starts vLLM.")]
LlamaFactory = Annotated[
    str | None, typer.Option("--llamafactory", metavar="COMMAND", help="The command that starts LLaMA-Factory.")
]

# Arguments that several commands share.
Name = Annotated[str, typer.Argument(metavar="NAME", help="A registered model.")]
OptionalName = Annotated[str | None, typer.Argument(metavar="[NAME]", help="A registered model; without it, all.")]
Ref = Annotated[str, typer.Argument(metavar="REFERENCE", help="NAME, NAME@alias, NAME/3 or NAME@sha256:DIGEST.")]
Reason = Annotated[str, typer.Option("--reason", help="Why; it is written into the ledger.")]
Expect = Annotated[
    int | None,
    typer.Option("--expect", metavar="VERSION", help="Only if the alias is at this version now (0: not set)."),
]
ModelName = Annotated[str, typer.Option("--name", help="The registered model that gets a new version.")]
Alias = Annotated[str | None, typer.Option("--alias", help="Also point this alias at the version.")]
TrainingConfig = Annotated[
    Path | None, typer.Option("--training-config", metavar="YAML", help="The training's YAML, for the lineage.")
]
TrainingDir = Annotated[
    Path | None,
    typer.Option("--training-dir", metavar="DIR", help="The training's output folder, for losses and metrics."),
]
Base = Annotated[str | None, typer.Option("--base", help="The base model: NAME/2, a folder, or hf:ORG/NAME@REVISION.")]
Force = Annotated[bool, typer.Option("--force", help="A new version even if these bytes are one already.")]
AllowCode = Annotated[bool, typer.Option("--allow-code", help="Allow custom code (*.py, auto_map); recorded.")]
VllmArguments = Annotated[list[str] | None, typer.Argument(metavar="[-- VLLM ARGUMENTS]", help="For vllm serve.")]


def _version(wanted: bool) -> None:
    if wanted:
        from packtrain._version import __version__

        typer.echo(f"packtrain {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None: ...


@app.command(rich_help_panel=PUBLISH)
def publish(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A merged model or a LoRA adapter.")],
    name: ModelName,
    alias: Alias = None,
    training_config: TrainingConfig = None,
    training_dir: TrainingDir = None,
    base: Base = None,
    allow_code: AllowCode = False,
    force: Force = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and hash; write nothing.")] = False,
    store: Store = None,
    registry: RegistryUrl = None,
    cache_dir: CacheDir = None,
    actor: Actor = None,
    json: Json = False,
) -> None:
    """Publish a directory as a new version.

    DIR is what LLaMA-Factory wrote: a merged model or an adapter. It is checked, hashed, uploaded and only then
    named. Interrupted, the same command goes on where it was.

    Example: packtrain publish output/merged --name llama-finetuned --alias staging --training-config sft.yaml
    """
    published = _client(json, store, registry, cache_dir, actor).publish(
        directory,
        name,
        alias=alias,
        training_config=training_config,
        training_dir=training_dir,
        base=base,
        allow_code=allow_code,
        force=force,
        dry_run=dry_run,
    )
    _print(json, published, "published")


@app.command(rich_help_panel=PUBLISH)
def export(
    config: Annotated[Path, typer.Argument(metavar="YAML", help="A configuration of llamafactory-cli export.")],
    name: ModelName,
    alias: Alias = None,
    training_config: TrainingConfig = None,
    training_dir: TrainingDir = None,
    base: Base = None,
    allow_code: AllowCode = False,
    force: Force = False,
    store: Store = None,
    registry: RegistryUrl = None,
    cache_dir: CacheDir = None,
    actor: Actor = None,
    llamafactory: LlamaFactory = None,
    json: Json = False,
) -> None:
    """Merge with LLaMA-Factory, then publish.

    Runs `llamafactory-cli export YAML` and publishes its export_dir with the lineage that the YAML gives.

    Example: packtrain export merge.yaml --name llama-finetuned --training-config sft.yaml
    """
    published = _client(json, store, registry, cache_dir, actor, llamafactory=llamafactory).export(
        config,
        name,
        alias=alias,
        training_config=training_config,
        training_dir=training_dir,
        base=base,
        allow_code=allow_code,
        force=force,
    )
    _print(json, published, "published")


@app.command(rich_help_panel=PROMOTE)
def promote(
    reference: Ref,
    to: Annotated[str, typer.Option("--to", metavar="ALIAS", help="The alias to move: production, staging, ...")],
    expect: Expect = None,
    reason: Reason = "",
    store: Store = None,
    registry: RegistryUrl = None,
    cache_dir: CacheDir = None,
    actor: Actor = None,
    json: Json = False,
) -> None:
    """Point an alias at a version.

    With --expect, only if nobody moved it meanwhile; else nothing changes and the exit code is 5.

    Example: packtrain promote llama-finetuned/3 --to production --expect 2 --reason "eval accuracy 0.87"
    """
    move = _client(json, store, registry, cache_dir, actor).promote(reference, to=to, expect=expect, reason=reason)
    _print(json, move, "move")


@app.command(rich_help_panel=PROMOTE)
def rollback(
    name: Name,
    alias: Annotated[str, typer.Option("--alias", help="The alias to move back.")] = "production",
    to: Annotated[int | None, typer.Option("--to", metavar="VERSION", help="Further back, to this version.")] = None,
    expect: Expect = None,
    reason: Reason = "",
    store: Store = None,
    registry: RegistryUrl = None,
    cache_dir: CacheDir = None,
    actor: Actor = None,
    json: Json = False,
) -> None:
    """Point an alias back at where it was before.

    That is the version promoted before the current one. A second rollback goes further back, never to and fro.
    Archived versions are skipped.

    Example: packtrain rollback llama-finetuned --reason "answers in the wrong language"
    """
    client = _client(json, store, registry, cache_dir, actor)
    _print(json, client.rollback(name, alias=alias, to=to, expect=expect, reason=reason), "move")


@app.command(rich_help_panel=PROMOTE)
def archive(
    reference: Ref,
    reason: Reason = "",
    store: Store = None,
    registry: RegistryUrl = None,
    cache_dir: CacheDir = None,
    actor: Actor = None,
    json: Json = False,
) -> None:
    """Retire a version: it can no longer be promoted.

    Refused while an alias points at it.

    Example: packtrain archive llama-finetuned/1 --reason "superseded"
    """
    version = _client(json, store, registry, cache_dir, actor).archive(reference, reason=reason)
    _print(json, version, "version", lambda _: f"{version} is archived")


@app.command(rich_help_panel=SERVE)
def pull(
    reference: Ref,
    to: Annotated[Path | None, typer.Option("--to", metavar="DIR", help="Here instead of the cache.")] = None,
    store: Store = None,
    registry: RegistryUrl = None,
    cache_dir: CacheDir = None,
    actor: Actor = None,
    json: Json = False,
) -> None:
    """Fetch a version and print its directory.

    The directory is complete, verified and read-only. Nothing else is printed on stdout, so that scripts can
    use it. A second pull finds it at once.

    Example: vllm serve "$(packtrain pull llama-finetuned@production)"
    """
    snapshot = _client(json, store, registry, cache_dir, actor).pull(reference, to=to)
    _print(json, snapshot, "snapshot", lambda _: str(snapshot.path))


@app.command(rich_help_panel=SERVE)
def url(
    reference: Ref,
    store: Store = None,
    registry: RegistryUrl = None,
    cache_dir: CacheDir = None,
    actor: Actor = None,
    json: Json = False,
) -> None:
    """Print a version's URL in the store.

    It never changes. For vLLM's own s3:// streaming, and for any other tool.

    Example: packtrain url llama-finetuned@production
    """
    found = _client(json, store, registry, cache_dir, actor).url(reference)
    _print(json, found, "url", lambda _: found)


@app.command(rich_help_panel=SERVE)
def serve(
    reference: Ref,
    arguments: VllmArguments = None,
    store: Store = None,
    registry: RegistryUrl = None,
    cache_dir: CacheDir = None,
    actor: Actor = None,
    vllm: Vllm = None,
) -> None:
    """Pull a version and run vLLM on it until it ends.

    Says when it is ready, passes signals on, and ends with vLLM's exit code. An adapter starts its base.

    Example: packtrain serve llama-finetuned@production -- --port 8000 --max-model-len 8192
    """
    client = _client(False, store, registry, cache_dir, actor, vllm=vllm)
    raise typer.Exit(client.serve(reference, arguments or ()))


@app.command(rich_help_panel=SERVE)
def run(
    reference: Ref,
    arguments: VllmArguments = None,
    store: Store = None,
    registry: RegistryUrl = None,
    cache_dir: CacheDir = None,
    actor: Actor = None,
    vllm: Vllm = None,
) -> None:
    """Pull a version and become vLLM on it: the process is replaced.

    For containers and systemd, where vLLM should be the main process.

    Example: packtrain run llama-finetuned@production -- --port 8000
    """
    _client(False, store, registry, cache_dir, actor, vllm=vllm).run(reference, arguments or ())


@app.command(rich_help_panel=LOOK)
def models(
    name: OptionalName = None,
    store: Store = None,
    registry: RegistryUrl = None,
    cache_dir: CacheDir = None,
    actor: Actor = None,
    json: Json = False,
) -> None:
    """List versions with aliases, losses and sizes.

    Example: packtrain models llama-finetuned
    """
    entries = _client(json, store, registry, cache_dir, actor).models(name)
    _print(json, entries, "models")


@app.command(rich_help_panel=LOOK)
def show(
    reference: Ref,
    store: Store = None,
    registry: RegistryUrl = None,
    cache_dir: CacheDir = None,
    actor: Actor = None,
    json: Json = False,
) -> None:
    """Show one version and where it came from.

    Example: packtrain show llama-finetuned@production
    """
    from packtrain.cli import render

    client = _client(json, store, registry, cache_dir, actor)
    entry = client.show(reference)
    where = client.url(f"{entry.version.name}/{entry.version.number}")
    typer.echo(render.as_json({**render.entry_json(entry), "url": where}) if json else render.show_text(entry, where))


@app.command(rich_help_panel=LOOK)
def history(
    name: Name,
    store: Store = None,
    registry: RegistryUrl = None,
    cache_dir: CacheDir = None,
    actor: Actor = None,
    json: Json = False,
) -> None:
    """Show what happened to a model, and who did it.

    Example: packtrain history llama-finetuned
    """
    _print(json, _client(json, store, registry, cache_dir, actor).history(name), "history")


@app.command(rich_help_panel=LOOK)
def verify(
    name: OptionalName = None,
    every_byte: Annotated[bool, typer.Option("--bytes", help="Read every byte, too.")] = False,
    store: Store = None,
    registry: RegistryUrl = None,
    cache_dir: CacheDir = None,
    actor: Actor = None,
    json: Json = False,
) -> None:
    """Check that all is there and unchanged.

    Walks the ledger's chain, the records and the manifests. Names the first thing that does not hold; exit code 6.

    Example: packtrain verify llama-finetuned --bytes
    """
    verified = _client(json, store, registry, cache_dir, actor).verify(name, every_byte=every_byte)
    _print(json, verified, "verified")


def _client(
    as_json: bool,
    store: str | None,
    registry: str | None,
    cache_dir: Path | None,
    actor: str | None,
    **programs: str | None,
) -> Client:
    from packtrain.cli.progress import reporter
    from packtrain.client import Client

    return Client(
        store=store,
        registry=registry,
        cache_dir=cache_dir,
        actor=actor,
        reporter=reporter(as_json=as_json),
        **programs,
    )


def _print(as_json: bool, result: Any, kind: str, text: Callable[[Any], str] | None = None) -> None:
    """Prints a result by the renderers of its kind."""
    from packtrain.cli import render

    to_json: dict[str, Callable[[Any], Any]] = {
        "published": render.published_json,
        "move": render.move_json,
        "version": render.version_json,
        "snapshot": render.snapshot_json,
        "url": lambda found: {"url": found},
        "models": lambda entries: [render.entry_json(entry) for entry in entries],
        "history": lambda events: [render.event_json(event) for event in events],
        "verified": lambda verified: [render.verified_json(each) for each in verified],
    }
    to_text: dict[str, Callable[[Any], str]] = {
        "published": render.published_text,
        "move": render.move_text,
        "models": render.models_text,
        "history": render.history_text,
        "verified": render.verified_text,
    }
    typer.echo(render.as_json(to_json[kind](result)) if as_json else (text or to_text[kind])(result))
