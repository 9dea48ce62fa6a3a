"""What is there: `models`, `show` and `history`."""

from __future__ import annotations

from packtrain.cli import documents, options, text
from packtrain.cli.helptext import LOOK, command
from packtrain.cli.session import Session, takes


@command(
    panel=LOOK,
    epilog="packtrain models llama-finetuned",
)
@options.any_model
@takes()
def models(session: Session, name: str | None) -> None:
    """List versions with aliases, losses and sizes.

    Newest first. The loss is that of the evaluation, or else of the training; `-` is what is not known.
    """
    entries = session.client.models(name)
    session.print(entries, text=text.models, document=documents.models)
    if not entries:
        session.note("there are no models yet; publish one: packtrain publish DIR --name NAME")


@command(
    panel=LOOK,
    epilog="packtrain show llama-finetuned@production",
)
@options.reference
@takes()
def show(session: Session, reference: str) -> None:
    """Show a version and where it came from.

    Its digest, its place in the store, and the base model, data, settings and results of its training.
    """
    entry = session.client.show(reference)
    url = session.client.url(f"{entry.version.name}@{entry.version.digest}")
    session.print(
        entry,
        text=lambda entry: text.show(entry, url),
        document=lambda entry: {**documents.entry(entry), "url": url},
    )


@command(
    panel=LOOK,
    epilog="packtrain history llama-finetuned",
)
@options.model
@takes()
def history(session: Session, name: str) -> None:
    """Show what happened to a model, who did it and why.

    The events of its ledger, oldest first.
    """
    session.print(session.client.history(name), text=text.history, document=documents.history)
