"""Versions -> vLLM: `pull`, `serve`, `run` and `url`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from packtrain.cli import completing, documents, options, text
from packtrain.cli.helptext import SERVE, command
from packtrain.cli.session import FOLLOW, PULL, Session, takes
from packtrain.cli.terminal import say
from packtrain.errors import UsageError
from packtrain.model.amount import size

if TYPE_CHECKING:
    from packtrain.flows.fetch import Outlook


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
@click.option("--dry-run", is_flag=True, help="Say what would be linked, copied and fetched; do nothing.")
@click.option("--unverified", is_flag=True, help="NAME/2 of MLflow's that Packtrain does not know, into --to.")
@takes(*PULL)
def pull(
    session: Session, reference: str, to: Path | None, pin: bool, verify: bool, dry_run: bool, unverified: bool
) -> None:
    """Fetch a version and print the path of it.

    The path is a complete, verified, read-only folder, and nothing else is printed on stdout. What this node has of
    it already, in whatever version, is linked or copied; if it is interrupted, the same command continues. With
    --in-place it is the store's own folder: nothing is copied, and it is checked cheaply.
    """
    if to is not None and pin:
        raise UsageError("--pin is about the cache, and with --to nothing is put there", hint="Leave one of them out.")
    if unverified:
        _pull_unverified(session, reference, to, others=pin or verify or dry_run)
        return
    if dry_run:
        session.print(session.client.foresee(reference, to=to), text=_outlook, document=_outlook_document)
        return
    snapshot = session.client.pull(reference, to=to, keep=pin, verify=verify)
    session.print(snapshot, text=lambda snapshot: str(snapshot.path), document=documents.snapshot)


def _pull_unverified(session: Session, reference: str, to: Path | None, *, others: bool) -> None:
    if to is None or others:
        raise UsageError(
            "--unverified puts bytes that nothing vouches for into a folder of yours, never into the cache",
            hint="Give it --to DIR, and none of --pin, --verify and --dry-run.",
        )
    path = session.client.pull_unverified(reference, to)
    say(f"warning: UNVERIFIED: nothing vouches for what is in {path}: MLflow keeps a place, no digests")
    say(f"         To have {reference} checked, kept and served: packtrain adopt {reference}")
    session.print(path, text=str, document=lambda path: {"path": str(path), "verified": False})


@command(
    panel=SERVE,
    epilog="packtrain serve llama-finetuned@production -- --port 8000 --max-model-len 8192",
)
@options.reference
@options.for_vllm
@options.verify
@takes("vllm", *PULL, *FOLLOW)
def serve(session: Session, reference: str, arguments: tuple[str, ...], verify: bool) -> int:
    """Run vLLM on a version, or on whatever an alias names.

    NAME@alias is followed: behind a proxy that listens where vLLM would, engines change with the alias, and go back by
    themselves from a version that fails. NAME/3 is served by one engine, whose exit code is the command's. An adapter
    is served with its base.
    """
    if "@" in reference:
        from packtrain.cli.logging import configure

        configure(as_json=session.as_json)
    return session.client.serve(reference, arguments, verify=verify)


@command(
    panel=SERVE,
    epilog="packtrain run llama-finetuned@production -- --port 8000",
)
@options.reference
@options.for_vllm
@options.verify
@takes("vllm", *PULL)
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

    The URL never changes. It is for other tools, and for vLLM's own streaming from s3:// and gs://.
    """
    session.print(session.client.url(reference), text=str, document=documents.url)


def _outlook(outlook: Outlook) -> str:
    rows = [
        *([("here already", size(outlook.here))] if outlook.here else []),
        *((f"linked to {name}", size(share.linked)) for name, share in outlook.shares if share.linked),
        *((f"copied from {name}", size(share.copied)) for name, share in outlook.shares if share.copied),
        ("fetched", _fetched(outlook)),
    ]
    return f"{outlook.version}: {size(outlook.version.size)}\n{text.card(rows)}"


def _fetched(outlook: Outlook) -> str:
    if not outlook.manifest:
        return "nothing"
    chunks = text.count(outlook.chunks, "chunk")
    return (
        f"{size(outlook.fetched + outlook.manifest)} in {chunks} and the manifest, "
        f"with {outlook.requests + 1} requests or more"
    )


def _outlook_document(outlook: Outlook) -> dict[str, Any]:
    return {
        **documents.version(outlook.version),
        "here": outlook.here,
        "snapshots": [
            {
                "digest": str(share.snapshot),
                "known_as": name,
                "linked": share.linked,
                "copied": share.copied,
            }
            for name, share in outlook.shares
        ],
        "to_fetch": outlook.fetched,
        "manifest": outlook.manifest,
        "chunks": outlook.chunks,
        "requests": outlook.requests,
    }
