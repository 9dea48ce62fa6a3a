"""What moving the aliases of a model demands, kept in its ledger: nobody's local settings weaken it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from packtrain.errors import NotFound, UsageError
from packtrain.model.ledger import Draft, State
from packtrain.model.mirror import Policy
from packtrain.model.reference import check_name
from packtrain.ports import Registry


@dataclass(frozen=True, slots=True)
class Change:
    """Aliases to protect or not, and those whose versions must pass a gate first or need not."""

    protect: Collection[str] = ()
    unprotect: Collection[str] = ()
    gate: Collection[str] = ()
    ungate: Collection[str] = ()

    def apply(self, policy: Policy) -> Policy:
        return replace(
            policy,
            protected=(policy.protected | {*self.protect}) - {*self.unprotect},
            gated=(policy.gated | {*self.gate}) - {*self.ungate},
        )


def policy(registry: Registry, name: str, change: Change) -> Policy:
    """Makes the change, if it is one, and returns what holds then. Raises NotFound."""
    check_name(name)
    for alias in ({*change.protect} & {*change.unprotect}) | ({*change.gate} & {*change.ungate}):
        raise UsageError(f"the alias {alias!r} is given both ways", hint="Give it once.")
    if change == Change():
        return _existing(registry.read(name).state).policy

    def decide(state: State) -> Draft | None:
        return _existing(state).set_policy(change.apply(state.policy))

    log, _ = registry.change(name, decide)
    return log.state.policy


def _existing(state: State) -> State:
    if not state.versions:
        raise NotFound(f"there is no registered model {state.name}", hint="packtrain models lists what exists.")
    return state
