"""What a team already has, in a folder or in a bucket, becomes a version. The source is only read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from packtrain.flows.publish import Published, Request, publish, publish_checkpoint
from packtrain.flows.staging import staged
from packtrain.model.lineage import Lineage
from packtrain.ports import Clock, Registry, Reporter, Store
from packtrain.training.checkpoint import inspect


def adopt(
    store: Store,
    registry: Registry,
    source: Path | Store,
    request: Request,
    *,
    scratch: Path,
    reporter: Reporter,
    clock: Clock,
) -> Published:
    """`publish`, from a folder or from everything that another store (a bucket's prefix) holds.

    ``request.directory`` is not looked at. The source is hashed, copied (by the store itself where it can), and must
    be what it was when it was listed before the copy gets a name. ``scratch`` is a folder of this machine for the
    headers and small files of a prefix.
    """
    if isinstance(source, Path):
        request = replace(request, directory=source)
        published = publish(store, registry, request, reporter=reporter, clock=clock)
    else:
        with staged(source, scratch, reporter, clock) as (directory, origin):
            request = replace(request, directory=directory)
            published = publish_checkpoint(store, registry, request, inspect(directory), origin, reporter, clock)
    if (published.created or published.version is None) and _is_unknown(published.lineage):
        reporter.note(
            "its lineage is unknown: no records of the training lie there (--training-config, --training-dir)"
        )
    return published


def _is_unknown(lineage: Lineage) -> bool:
    """Whether nothing is known of the training."""
    return not (lineage.base or lineage.datasets or lineage.metrics or lineage.training_config)
