"""A lease in the store: somebody reads a version's directory where it is, until a moment.

It is an object ``leases/<name>/<64 hex of the digest>/<id>.json``, written anew to renew it, removed when its holder is
done. One whose moment is over counts no more.

The law of garbage collection and readers, by which one of the two always sees the other:

    gc        first condemns a digest in the ledger; then lists the leases of it, and leaves its files while one lives.
    a reader  first writes its lease; then reads the ledger, and fails if the digest is condemned; and only then looks
              at the files. One that slept past its lease takes a new one, in the same order.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from packtrain.errors import IntegrityError
from packtrain.model import canonical
from packtrain.model.digest import Digest

SCHEMA = "packtrain.lease/1"

_TIMESTAMP = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z")


@dataclass(frozen=True, slots=True)
class Holder:
    """Who reads: a process ``pid`` on ``host``, of ``user``."""

    host: str
    pid: int
    user: str

    def __str__(self) -> str:
        return f"{self.user} on {self.host} (process {self.pid})"


@dataclass(frozen=True, slots=True)
class Lease:
    """``until`` is a timestamp as `packtrain.model.ledger.timestamp` writes it, so leases compare as text."""

    holder: Holder
    until: str

    def encode(self) -> bytes:
        holder = {"host": self.holder.host, "pid": self.holder.pid, "user": self.holder.user}
        return canonical.encode({"holder": holder, "schema": SCHEMA, "until": self.until})

    @classmethod
    def decode(cls, data: bytes, *, what: str) -> Lease:
        """``what`` names the object in the error. Raises IntegrityError."""
        value = canonical.decode(data, what=what)
        if not isinstance(value, dict) or value.get("schema") != SCHEMA:
            raise IntegrityError(
                f"{what} is not a lease of the schema {SCHEMA}",
                hint="It was written by a newer Packtrain, or by something else: upgrade this one.",
            )
        holder, until = value.get("holder"), value.get("until")
        if (
            value.keys() != {"holder", "schema", "until"}
            or not isinstance(holder, dict)
            or {key: type(each) for key, each in holder.items()} != {"host": str, "pid": int, "user": str}
            or not isinstance(until, str)
            or not _TIMESTAMP.fullmatch(until)
        ):
            raise IntegrityError(f"{what} is not a valid lease")
        return cls(Holder(**holder), until)


def lease_prefix(name: str, digest: Digest) -> str:
    """Where the leases of a version are, with a slash at its end."""
    return f"leases/{name}/{digest.hex}/"


def lease_key(name: str, digest: Digest, lease_id: str) -> str:
    """Where a lease is. ``lease_id`` is 32 random hex digits."""
    return f"{lease_prefix(name, digest)}{lease_id}.json"
