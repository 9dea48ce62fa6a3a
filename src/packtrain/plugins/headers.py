"""Says who asks, in every request of an MLflow client: the actor of Packtrain's settings.

MLflow loads this wherever Packtrain is installed beside it, so it imports next to nothing, and never fails.
"""

from __future__ import annotations

import getpass
import os

ACTOR = "X-Packtrain-Actor"  # as packtrain.registry.mlflow says it


class ActorHeader:
    """A request header provider, as MLflow asks for one."""

    def in_context(self) -> bool:
        return bool(_actor())

    def request_headers(self) -> dict[str, str]:
        return {ACTOR: _actor()}


def _actor() -> str:
    """What a header can hold of it; empty where nobody is known."""
    try:
        actor = os.environ.get("PACKTRAIN_ACTOR") or getpass.getuser()
    except (KeyError, OSError):
        return ""
    return actor.encode("ascii", "replace").decode().strip() if actor.isprintable() else ""
