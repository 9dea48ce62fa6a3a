"""An ancestry as a Mermaid flowchart, which GitHub, GitLab and many wikis draw."""

from __future__ import annotations

from collections.abc import Iterator

from packtrain.model.ancestry import Ancestry, Generation
from packtrain.model.lineage import Lineage
from packtrain.pictures import words
from packtrain.pictures.spark import spark
from packtrain.pictures.words import Label

# Fills with a text colour of their own stay readable whatever the page's theme is.
_CLASSES = """\
  classDef input fill:#f6f8fa,stroke:#8c959f,color:#1f2328
  classDef training fill:#ddf4ff,stroke:#0969da,color:#1f2328
  classDef adapter fill:#fff8c5,stroke:#9a6700,color:#1f2328
  classDef version fill:#dafbe1,stroke:#1a7f37,color:#1f2328
  classDef alias fill:#8250df,stroke:#6639ba,color:#ffffff"""


def draw(ancestry: Ancestry) -> str:
    """A flowchart from what is oldest, at the top, to the aliases of the version."""
    lines = ["flowchart TD"]
    before: str | None = None
    for number, generation in enumerate(reversed(ancestry)):
        lines += _generation(generation, number, before)
        before = f"version{number}"
    return "\n".join([*lines, _CLASSES])


def _generation(generation: Generation, number: int, before: str | None) -> Iterator[str]:
    version, lineage = f"version{number}", generation.lineage
    yield _node(version, words.version(generation.version), "version")
    if lineage is None or not lineage.known:
        yield _node(f"unknown{number}", Label("lineage", ("unknown",)), "input")
        yield f"  unknown{number} -.-> {version}"
        if before:
            yield f"  {before} --> {version}"
    else:
        yield from _training(generation, lineage, number, before)
    for index, promotion in enumerate(generation.promotions):
        yield _node(f"alias{number}_{index}", words.promotion(promotion), "alias")
        yield f"  alias{number}_{index} -.-> {version}"


def _training(generation: Generation, lineage: Lineage, number: int, before: str | None) -> Iterator[str]:
    training, last = f"training{number}", f"training{number}"
    label = words.training(lineage)
    yield _node(training, Label(label.title, (*label.lines, *_curves(lineage))), "training")
    if before:
        yield f"  {before} --> {training}"
    for index, each in enumerate(words.inputs(generation, oldest=before is None)):
        yield _node(f"input{number}_{index}", each, "input")
        yield f"  input{number}_{index} --> {training}"
    for index, adapter in enumerate(lineage.adapters):
        node = f"adapter{number}_{index}"
        yield _node(node, words.parent(adapter, "adapter"), "adapter")
        yield f"  {last} --> {node}"
        last = node
    yield f"  {last} --> version{number}"


def _curves(lineage: Lineage) -> Iterator[str]:
    for name, curve in sorted(lineage.curves.items(), key=lambda pair: (pair[0] != "loss", pair[0])):
        if curve:
            yield f"{name} {words.number(curve[0][1])} {spark(curve)} {words.number(curve[-1][1])}"
    if not lineage.curves:
        yield "loss curve unknown"


def _node(name: str, label: Label, kind: str) -> str:
    text = "<br>".join([f"<b>{_escape(label.title)}</b>", *map(_escape, label.lines)])
    return f'  {name}["{text}"]:::{kind}'


def _escape(text: str) -> str:
    """As Mermaid's entity codes: everything that it or HTML could act upon."""
    return "".join(c if c.isalnum() or c in " .,:+-_/@“”…▁▂▃▄▅▆▇█()" else f"#{ord(c)};" for c in text)
