"""What a merged version was made from, the adapter and the base, where both are at hand."""

from __future__ import annotations

from pathlib import Path

from packtrain.errors import PacktrainError
from packtrain.flows import bases
from packtrain.flows.serve import Supply
from packtrain.model.digest import Digest
from packtrain.model.lineage import Lineage, Parent
from packtrain.model.reference import Reference
from packtrain.model.version import ModelVersion
from packtrain.ports import Registry, Reporter
from packtrain.serving import Adapter, Arguments, Launch, adapter_rank
from packtrain.training.documents import is_file, is_folder

_BASE_NAME = "base"


def unmerged(
    registry: Registry,
    supply: Supply,
    version: ModelVersion,
    lineage: Lineage | None,
    arguments: Arguments,
    reporter: Reporter,
) -> Launch | None:
    """An engine with the adapter on its base, under the version's name and with the adapter's own tokenizer and chat
    template: those that it was trained with. None if they are not at hand, or more than one adapter was merged."""
    if version.kind != "merged" or lineage is None or lineage.base is None or len(lineage.adapters) != 1:
        return None
    adapter = _at_hand(registry, supply, lineage.adapters[0], "adapter", reporter)
    base = adapter and _at_hand(registry, supply, lineage.base, "base model", reporter)
    if adapter is None or base is None:
        return None
    its_own = [*arguments.given]
    if is_file(adapter / "tokenizer.json") and not arguments.has("--tokenizer"):
        its_own += ["--tokenizer", str(adapter)]
    if is_file(adapter / "chat_template.jinja") and not arguments.has("--chat-template"):
        its_own += ["--chat-template", str(adapter / "chat_template.jinja")]
    return Launch(
        name=version.name,
        model=str(base),
        fingerprint=f"{version}, not merged",
        arguments=Arguments(tuple(its_own), arguments.configured),
        adapter=Adapter(adapter, adapter_rank(adapter), _BASE_NAME),
    )


def _at_hand(registry: Registry, supply: Supply, parent: Parent, what: str, reporter: Reporter) -> Path | None:
    """The directory of exactly the bytes that went into a version: a published version's, or the one that training
    used if it is still what it was."""
    if parent.payload is None:
        return None
    try:
        if (published := _published(registry, parent)) is not None:
            reporter.note(f"with its {what} {published}")
            return supply.open(published)
        place = Path(parent.name)
        if is_folder(place) and str(bases.payload_of(place, what, reporter)) == parent.payload:
            reporter.note(f"with its {what} in {place}")
            return place.absolute()
    except PacktrainError as error:
        reporter.note(f"warning: its {what} cannot be had: {error}")
    return None


def _published(registry: Registry, parent: Parent) -> ModelVersion | None:
    assert parent.payload is not None
    if parent.version is not None:
        reference = Reference.parse(parent.version)
        version = registry.read(reference.name).state.resolve(reference)
        if str(version.digest) == parent.digest and not version.archived:
            return version
    return bases.holder(registry, Digest.parse(parent.payload))
