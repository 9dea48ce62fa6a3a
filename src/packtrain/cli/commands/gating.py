"""Does it answer right? `gate` and `attest`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from packtrain.cli import completing, documents, options, text
from packtrain.cli.commands.asking import api_key
from packtrain.cli.helptext import PROMOTE, SERVE, command
from packtrain.cli.session import PULL, Session, takes
from packtrain.errors import IntegrityError, Refused

if TYPE_CHECKING:
    from packtrain.flows.attest import Attested
    from packtrain.flows.gate import Gated
    from packtrain.model.golden import Comparison


@command(
    panel=PROMOTE,
    epilog="packtrain gate llama-finetuned/4 --prompts prompts.txt -- --max-model-len 4096",
)
@options.reference
@options.for_vllm
@click.option(
    "--prompts",
    metavar="FILE",
    type=Path,
    shell_complete=completing.file,
    help="What to ask: lines, or JSON. Else the training's evaluation examples, or what is built in.",
)
@click.option("--anew", is_flag=True, help="Record the answers again, even if there are golden ones.")
@takes("vllm", "actor", *PULL)
def gate(session: Session, reference: str, arguments: tuple[str, ...], prompts: Path | None, anew: bool) -> int:
    """Start vLLM on a version, and see that it answers right.

    The first time, its answers become the version's golden outputs, which every node then holds its engine against
    before that takes traffic. Later they must be the same again. A merged model must also answer as its adapter on its
    base does, if both are at hand. Ends with exit code 3 if it failed.
    """
    gated = session.client.gate(reference, arguments, prompts=prompts, anew=anew)
    session.print(gated, text=_gated, document=_gated_document)
    if not gated.failures:
        return 0
    return session.wrong(
        Refused(
            f"{gated.version} failed its gate: {'; '.join(gated.failures)}",
            hint="It is in the ledger, and no gated alias takes it. See docs/gate.md for what each difference means.",
        )
    )


@command(
    panel=SERVE,
    epilog="packtrain attest http://node-7:8000",
)
@click.argument("url", metavar="URL", help="An endpoint of packtrain serve or run.")
@api_key
@takes()
def attest(session: Session, url: str, api_key: str) -> int:
    """Ask an endpoint the golden prompts of the version that it names.

    Whether it answers as that version does. Ends with exit code 6 if not, 4 if the version has no golden outputs.
    """
    from packtrain.model.golden import in_short

    attested = session.client.attest(url, key=api_key)
    session.print(attested, text=_attested, document=_attested_document)
    if attested.holds:
        return 0
    return session.wrong(
        IntegrityError(
            f"{attested.url} does not answer as {attested.version}: {in_short(attested.wrong)}",
            hint=f"See what it serves: packtrain what {attested.url}",
        )
    )


def _gated(gated: Gated) -> str:
    rows = [(str(gated.version), "failed its gate" if gated.failures else "passed its gate")]
    rows += [("holds" if check.passed else "DOES NOT HOLD", f"{check.what}: {check.said}") for check in gated.checks]
    if gated.record is not None and gated.golden is not None:
        rows.append(("golden", f"{gated.record.short}, {'recorded now' if gated.recorded else 'recorded before'}"))
        if gated.recorded:
            rows += [("prompt", str(prompt)) for prompt, _ in gated.golden.answers]
    return text.card(rows)


def _attested(attested: Attested) -> str:
    rows = [(attested.url, f"{attested.version}, by {attested.claim.by}"), ("digest", str(attested.version.digest))]
    if attested.compared is not None:
        rows.append(("golden", str(attested.compared)))
    rows += [("DOES NOT HOLD", wrong) for wrong in attested.wrong] or [("holds", "it answers as that version")]
    return text.card(rows)


def _gated_document(gated: Gated) -> dict[str, Any]:
    return {
        **documents.version(gated.version),
        "passed": not gated.failures,
        "golden": str(gated.record) if gated.record else None,
        "recorded": gated.recorded,
        "prompts": [str(prompt) for prompt, _ in gated.golden.answers] if gated.golden else [],
        "source": gated.golden.source if gated.golden else None,
        "compared": _comparison(gated.compared),
        "unmerged": _comparison(gated.unmerged),
        "checks": [{"what": check.what, "passed": check.passed, "said": check.said} for check in gated.checks],
    }


def _attested_document(attested: Attested) -> dict[str, Any]:
    return {
        "url": attested.url,
        "name": attested.version.name,
        "version": attested.version.number,
        "digest": str(attested.version.digest),
        "by": attested.claim.by,
        "holds": attested.holds,
        "compared": _comparison(attested.compared),
        "wrong": list(attested.wrong),
    }


def _comparison(compared: Comparison | None) -> dict[str, Any] | None:
    if compared is None:
        return None
    return {
        "prompts": compared.prompts,
        "tokens": compared.tokens,
        "equal": compared.equal,
        "distance": compared.distance,
        "shift": compared.shift,
        "differences": list(compared.differences),
    }
