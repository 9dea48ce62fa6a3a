"""What a node must remember of an alias that it follows, whatever becomes of the supervisor: a small file."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from packtrain.errors import PacktrainError, disk_error
from packtrain.model.digest import Digest
from packtrain.model.rollout import Bad, Target, WentBack

SCHEMA = "packtrain.journal/1"


@dataclass(frozen=True, slots=True)
class Hold:
    """Somebody's word that this node is to serve a version whatever the alias names, or, with None, no longer."""

    target: Target | None
    by: str
    reason: str
    at: str


Unposted = WentBack | Hold


@dataclass(frozen=True, slots=True)
class Memory:
    """``bad`` and ``proven`` as `Rollout` has them. ``hold``: the last one. ``unposted``: what is not in the ledger
    yet."""

    bad: Mapping[Digest, Bad] = field(default_factory=dict)
    proven: tuple[Target, ...] = ()
    hold: Hold | None = None
    unposted: tuple[Unposted, ...] = ()

    def went_back(self, went: WentBack) -> Memory:
        bad = {**self.bad, went.target.digest: Bad(went.target.promotion, went.reason)}
        return replace(self, bad=bad, unposted=(*self.unposted, went))

    def held(self, hold: Hold) -> Memory:
        bad = {digest: mark for digest, mark in self.bad.items() if not hold.target or digest != hold.target.digest}
        return replace(self, bad=bad, hold=hold, unposted=(*self.unposted, hold))

    def posted(self, posted: Unposted) -> Memory:
        return replace(self, unposted=tuple(each for each in self.unposted if each != posted))

    def encode(self) -> bytes:
        document = {
            "schema": SCHEMA,
            "bad": {digest.hex: [bad.promotion, bad.reason] for digest, bad in self.bad.items()},
            "proven": [_target(each) for each in self.proven],
            "hold": _hold(self.hold) if self.hold else None,
            "unposted": [
                _hold(each) if isinstance(each, Hold) else [_target(each.target), _target(each.to), each.reason]
                for each in self.unposted
            ],
        }
        return json.dumps(document, indent=1).encode()

    @classmethod
    def decode(cls, data: bytes) -> Memory:
        """Raises ValueError, KeyError, TypeError, PacktrainError."""
        value = json.loads(data)
        if value["schema"] != SCHEMA:
            raise ValueError(f"its schema is {value['schema']!r}")
        return cls(
            {Digest(digest): Bad(promotion, reason) for digest, (promotion, reason) in value["bad"].items()},
            tuple(map(_read_target, value["proven"])),
            _read_hold(value["hold"]) if value["hold"] else None,
            tuple(map(_read_unposted, value["unposted"])),
        )


class Journal:
    """The file. Several supervisors of one node may follow the same alias: each change is read, made and written under
    a lock."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def stamp(self) -> int:
        """Another number whenever somebody has changed it."""
        try:
            return self.path.stat().st_mtime_ns
        except OSError:
            return 0

    def read(self) -> Memory:
        """Empty if there is none, or if it is not what it should be. Raises LocalDiskError."""
        try:
            return Memory.decode(self.path.read_bytes())
        except FileNotFoundError:
            return Memory()
        except OSError as error:
            raise disk_error(error, f"could not read {self.path}") from error
        except (ValueError, KeyError, TypeError, PacktrainError):
            return Memory()

    def change(self, change: Callable[[Memory], Memory]) -> Memory:
        """Raises LocalDiskError."""
        try:
            with self._alone():
                memory = change(self.read())
                beside = self.path.with_suffix(".new")
                with beside.open("wb") as file:
                    file.write(memory.encode())
                    file.flush()
                    os.fsync(file.fileno())
                beside.rename(self.path)
                return memory
        except OSError as error:
            raise disk_error(error, f"could not write {self.path}") from error

    @contextmanager
    def _alone(self) -> Iterator[None]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)


def _hold(hold: Hold) -> dict[str, Any]:
    target = _target(hold.target) if hold.target else None
    return {"target": target, "by": hold.by, "reason": hold.reason, "at": hold.at}


def _read_hold(value: Mapping[str, Any]) -> Hold:
    target = _read_target(value["target"]) if value["target"] else None
    return Hold(target, value["by"], value["reason"], value["at"])


def _read_unposted(value: Any) -> Unposted:
    if isinstance(value, dict):
        return _read_hold(value)
    target, to, reason = value
    return WentBack(_read_target(target), _read_target(to), reason)


def _target(target: Target) -> list[Any]:
    return [target.number, target.digest.hex, target.promotion]


def _read_target(value: list[Any]) -> Target:
    number, digest, promotion = value
    return Target(int(number), Digest(digest), int(promotion))
