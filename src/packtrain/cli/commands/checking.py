"""Whether it is right: `verify`."""

from __future__ import annotations

import click

from packtrain.cli import documents, options, text
from packtrain.cli.helptext import CHECK, command
from packtrain.cli.session import Session, takes


@command(
    panel=CHECK,
    epilog="packtrain verify llama-finetuned --bytes",
)
@options.any_model
@click.option("--bytes", "every_byte", is_flag=True, help="Read every byte in the store, too.")
@takes()
def verify(session: Session, name: str | None, every_byte: bool) -> None:
    """Check that everything is there and unchanged.

    Walks the ledger's chain, the records and the manifests, and names the first thing that does not hold (exit
    code 6).
    """
    verified = session.client.verify(name, every_byte=every_byte)
    session.print(verified, text=text.verified, document=documents.verified)
    if not verified:
        session.note("there are no models yet, so there is nothing to verify")
