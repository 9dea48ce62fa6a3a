"""Versions -> vLLM: `pull`, `serve`, `run` and `url`."""

from __future__ import annotations

from pathlib import Path

import click

from packtrain.cli import completing, documents, options
from packtrain.cli.helptext import SERVE, command
from packtrain.cli.session import CACHE, Session, takes
from packtrain.errors import UsageError


@command(
    panel=SERVE,
    epilog='vllm serve "$(packtrain pull llama-finetuned@production)"',
)
@options.reference
@click.option(
    "--to", metavar="DIR", type=Path, shell_complete=completing.folder, help="Into this folder, not into the cache."
)
@click.option("--pin", is_flag=True, help="Keep it in the cache for good; else for half an hour.")
@options.verify
@takes("pull", *CACHE)
def pull(session: Session, reference: str, to: Path | None, pin: bool, verify: bool) -> None:
    """Fetch a version and print the path of it.

    The path is a complete, verified, read-only folder, and nothing else is printed on stdout. What this node has
    already is not fetched again; if it is interrupted, the same command continues where it was. With --in-place it is
    the store's own folder: nothing is copied, and it is checked cheaply.
    """
    if to is not None and pin:
        raise UsageError("--pin is about the cache, and with --to nothing is put there", hint="Leave one of them out.")
    snapshot = session.client.pull(reference, to=to, keep=pin, verify=verify)
    session.print(snapshot, text=lambda snapshot: str(snapshot.path), document=documents.snapshot)


@command(
    panel=SERVE,
    epilog="packtrain serve llama-finetuned@production -- --port 8000 --max-model-len 8192",
)
@options.reference
@options.for_vllm
@options.verify
@takes("pull", "vllm", *CACHE)
def serve(session: Session, reference: str, arguments: tuple[str, ...], verify: bool) -> int:
    """Pull a version and run vLLM on it.

    Says when vLLM is ready, passes signals on, leaves nothing behind and ends with vLLM's exit code. An adapter is
    served with its base.
    """
    return session.client.serve(reference, arguments, verify=verify)


@command(
    panel=SERVE,
    epilog="packtrain run llama-finetuned@production -- --port 8000",
)
@options.reference
@options.for_vllm
@options.verify
@takes("pull", "vllm", *CACHE)
def run(session: Session, reference: str, arguments: tuple[str, ...], verify: bool) -> None:
    """Pull a version and become vLLM on it.

    Like serve, but this process is replaced by vLLM: for containers and services, where vLLM is the main process.
    """
    session.client.run(reference, arguments, verify=verify)


@command(
    panel=SERVE,
    epilog="packtrain url llama-finetuned@production",
)
@options.reference
@takes()
def url(session: Session, reference: str) -> None:
    """Print where a version is in the store.

    The URL never changes. It is for other tools, and for vLLM's own streaming from s3://.
    """
    session.print(session.client.url(reference), text=str, document=documents.url)
