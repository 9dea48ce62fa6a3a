"""Aliases: `promote`, `rollback`, `archive` and `policy`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from packtrain.cli import completing, documents, options, text
from packtrain.cli.helptext import PROMOTE, command
from packtrain.cli.session import Session, takes
from packtrain.errors import UsageError
from packtrain.model.reference import Reference

if TYPE_CHECKING:
    from packtrain.serving.journal import Hold

Function = Callable[..., Any]


def _alias(means: str) -> Callable[[Function], Function]:
    return click.option("--alias", metavar="ALIAS", default="production", shell_complete=completing.aliases, help=means)


@command(
    panel=PROMOTE,
    epilog='packtrain promote llama-finetuned/3 --to production --expect 2 --reason "accuracy 0.87 on the eval set"',
)
@options.reference
@click.option(
    "--to",
    metavar="ALIAS",
    required=True,
    shell_complete=completing.aliases,
    help="The alias to move: production, staging, ...",
)
@options.expect
@options.reason
@takes("actor")
def promote(session: Session, reference: str, to: str, expect: int | None, reason: str) -> None:
    """Point an alias at a version.

    The ledger keeps who did it, when, from where and why. With --expect nothing is changed if somebody else has
    moved the alias meanwhile (exit code 5).
    """
    move = session.client.promote(reference, to=to, expect=expect, reason=reason)
    session.print(move, text=text.move, document=documents.move)


@command(
    panel=PROMOTE,
    epilog='packtrain rollback llama-finetuned --reason "answers in the wrong language"',
)
@options.model
@_alias("The alias to move back; else production.")
@click.option("--to", metavar="VERSION", type=int, help="Back to this version; else to the one before.")
@options.expect
@options.reason
@takes("actor")
def rollback(session: Session, name: str, alias: str, to: int | None, expect: int | None, reason: str) -> None:
    """Point an alias back at the version before.

    A second rollback goes further back, never to and fro. Archived versions are skipped.
    """
    move = session.client.rollback(name, alias=alias, to=to, expect=expect, reason=reason)
    session.print(move, text=text.move, document=documents.move)


@command(
    panel=PROMOTE,
    epilog='packtrain hold llama-finetuned/2 --local --reason "the store is away, and 3 answers in riddles"',
)
@options.reference
@click.option("--local", is_flag=True, help="On this node alone; every other one is told with promote and rollback.")
@click.option("--release", is_flag=True, help="Follow the alias again.")
@_alias("What this node follows; else production.")
@options.reason
@takes("actor")
def hold(session: Session, reference: str, local: bool, release: bool, alias: str, reason: str) -> None:
    """Keep this node at a version, whatever its alias names.

    It works while the registry and the store are away, if the version is here. The alias does not move. The ledger is
    told when it can be reached. What follows the alias on this node changes at once, or when it is started.
    """
    if not local:
        raise UsageError(
            "a hold is for this node alone",
            hint=f"Say so with --local. For every node: packtrain promote {reference} --to {alias}",
        )
    client, name = session.client, Reference.parse(reference).name
    held = (
        client.release(name, alias=alias, reason=reason)
        if release
        else client.hold(reference, alias=alias, reason=reason)
    )
    session.print(held, text=partial(_held, name, alias), document=_hold_document)


def _held(name: str, alias: str, held: Hold | None) -> str:
    if held is None:
        return f"{name}@{alias} was not held on this node"
    if held.target is None:
        return f"this node follows {name}@{alias} again"
    return f"this node is held at version {held.target.number}, whatever @{alias} names"


def _hold_document(held: Hold | None) -> dict[str, Any]:
    target = held.target if held else None
    return {
        "version": target.number if target else None,
        "digest": str(target.digest) if target else None,
        "changed": held is not None,
    }


@command(
    panel=PROMOTE,
    epilog='packtrain archive llama-finetuned/1 --reason "superseded"',
)
@options.reference
@options.reason
@click.option("--storage-class", metavar="CLASS", help="Move its files there (S3): GLACIER_IR or another.")
@takes("actor")
def archive(session: Session, reference: str, reason: str, storage_class: str | None) -> None:
    """Retire a version, so that it cannot be promoted.

    Refused while an alias points at it. Its bytes stay in the store until `packtrain gc` frees them; on S3 they may be
    moved to a colder storage class. Interrupted, the same command goes on.
    """
    version = session.client.archive(reference, reason=reason, storage_class=storage_class)
    session.print(version, text=text.archived, document=documents.version)


def _of_alias(flag: str, text: str) -> Callable[[Function], Function]:
    return click.option(flag, metavar="ALIAS", multiple=True, shell_complete=completing.aliases, help=text)


@command(
    panel=PROMOTE,
    epilog="packtrain policy llama-finetuned --protect production",
)
@options.model
@_of_alias("--protect", "What is moved in MLflow is moved back.")
@_of_alias("--unprotect", "What is moved in MLflow is taken over.")
@_of_alias("--gate", "Only versions that passed a gate may be promoted to it.")
@_of_alias("--ungate", "Any version may.")
@takes("actor")
def policy(
    session: Session,
    name: str,
    protect: tuple[str, ...],
    unprotect: tuple[str, ...],
    gate: tuple[str, ...],
    ungate: tuple[str, ...],
) -> None:
    """Show or set what moving aliases demands.

    The policy is in the ledger, so that it holds for everybody. Without options it is shown. Each option may be given
    several times.
    """
    holds = session.client.policy(name, protect=protect, unprotect=unprotect, gate=gate, ungate=ungate)
    session.print(
        holds,
        text=text.policy,
        document=lambda policy: {"protected": sorted(policy.protected), "gated": sorted(policy.gated)},
    )
