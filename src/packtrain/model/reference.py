"""How people name a version.

NAME                 the newest version            (the same as NAME@latest)
NAME@ALIAS           the version an alias points at
NAME/3               version 3
NAME@sha256:<hex>    the version with this digest
models:/...  packtrain://...   the same behind MLflow's and our own scheme
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from packtrain.errors import UsageError
from packtrain.model.digest import Digest

LATEST = "latest"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_ALIAS = re.compile(r"[A-Za-z0-9_-]{1,255}")
_VERSION = re.compile(r"[1-9][0-9]{0,14}")
_VERSION_LIKE = re.compile(r"v[0-9]+", re.IGNORECASE)
_SCHEMES = ("models:/", "packtrain://")


def check_name(name: str) -> str:
    """The name, if a registered model may have it. Raises UsageError."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} is not a name for a registered model",
            hint="Use letters, digits, '.', '_' and '-', starting with a letter or digit, at most 128 in all.",
        )
    return name


def check_alias(alias: str) -> str:
    """The alias, if it may be set. Raises UsageError. The rules are MLflow's, so that both can hold it."""
    if not _ALIAS.fullmatch(alias):
        raise UsageError(
            f"{alias!r} is not an alias",
            hint="Use letters, digits, '_' and '-', at most 255 in all: production, staging, candidate.",
        )
    if alias.lower() == LATEST or _VERSION_LIKE.fullmatch(alias):
        raise UsageError(
            f"the alias {alias!r} is reserved",
            hint="'latest' always means the newest version, and 'v3' would read like one.",
        )
    return alias


@dataclass(frozen=True, slots=True)
class Reference:
    """A parsed reference. At most one of ``alias``, ``version`` and ``digest`` is set; none means the newest.

    ``str()`` gives the short form, which `parse` reads back.
    """

    name: str
    alias: str | None = None
    version: int | None = None
    digest: Digest | None = None

    def __post_init__(self) -> None:
        check_name(self.name)
        if sum(x is not None for x in (self.alias, self.version, self.digest)) > 1:
            raise UsageError("a reference has an alias, a version or a digest: one of them")
        if self.alias is not None:
            check_alias(self.alias)
        if self.version is not None and not _VERSION.fullmatch(str(self.version)):
            raise UsageError(f"{self.version!r} is not a version number")

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Raises UsageError, which shows the forms."""
        body = text
        for scheme in _SCHEMES:
            if text.startswith(scheme):
                body = text.removeprefix(scheme)
        name, at, selector = body.partition("@")
        if at:
            if selector == LATEST:
                return cls(name)
            if selector.startswith("sha256:"):
                return cls(name, digest=Digest.parse(selector))
            return cls(name, alias=selector)
        name, slash, number = body.partition("/")
        if not slash or number == LATEST:
            return cls(name)
        if not _VERSION.fullmatch(number):
            raise UsageError(
                f"{text!r} does not name a version",
                hint="Write NAME, NAME@alias, NAME/3 or NAME@sha256:<digest>.",
            )
        return cls(name, version=int(number))

    def __str__(self) -> str:
        if self.alias is not None:
            return f"{self.name}@{self.alias}"
        if self.version is not None:
            return f"{self.name}/{self.version}"
        if self.digest is not None:
            return f"{self.name}@{self.digest}"
        return self.name
