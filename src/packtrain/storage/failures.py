"""What a request to a bucket failed with, as a value: read once, from whatever obstore or the wire raised."""

from __future__ import annotations

import re
from dataclasses import dataclass
from http.client import HTTPException
from socket import gaierror

from obstore.exceptions import BaseError

from packtrain.errors import NotFound, PacktrainError, Unavailable
from packtrain.storage.wire import Rejected

RAISED = (BaseError, OSError, HTTPException, Rejected)  # obstore's errors include FileNotFoundError


@dataclass(frozen=True, slots=True)
class Failure:
    """``status`` 0: there was no answer. ``code`` is the provider's own word for what is wrong, and ``details`` what it
    adds for people, both from the XML of the answer's body; empty where it has none."""

    error: Exception
    text: str
    status: int
    reason: str
    code: str
    details: str

    @classmethod
    def of(cls, error: Exception) -> Failure:
        """obstore's exceptions have no fields: their text carries the server's answer and the kind of a failure."""
        text = str(error)
        status = re.search(r"non-2xx status code: (\d+) ?([A-Za-z ]*)", text)
        return cls(
            error=error,
            text=text,
            status=int(status[1]) if status else 0,
            reason=status[2].strip() if status else "",
            code=_first(r"<Code>([\w.]+)</Code>", text),
            details=_first(r"<Details>([^<]+)</Details>", text),
        )

    @property
    def answer(self) -> str:
        """For people: 403 Forbidden AccessDenied. Empty without an answer."""
        return " ".join(part for part in (str(self.status or ""), self.reason, self.code) if part)

    @property
    def missing(self) -> bool:
        return isinstance(self.error, FileNotFoundError) or (isinstance(self.error, Rejected) and self.status == 404)

    @property
    def late(self) -> bool:
        return "kind: Timeout" in self.text or isinstance(self.error, TimeoutError)

    @property
    def unconnected(self) -> bool:
        """Nobody was spoken to, so nothing was done; unlike ConnectionReset."""
        return re.search(r"kind: Connect\b", self.text) is not None or "dns error" in self.text

    @property
    def passing(self) -> bool:
        """Whether what failed to be read may be there a moment later: the server or the connection was at fault."""
        return not isinstance(self.error, Rejected) or self.error.status >= 500

    def explained(self, place: str, endpoint: str, address: str) -> PacktrainError:
        """What it means where the provider has nothing special to say. ``address`` names what says where it is."""
        if self.missing:
            return NotFound(f"there is no {place}")
        if self.late or self.unconnected or isinstance(self.error, (ConnectionError, gaierror)):
            did = "did not answer in time" if self.late else "cannot be reached"
            return Unavailable(
                f"{place}: {endpoint} {did}",
                hint=f"Check {address}, the network and proxies, and that the server runs; then try again.",
            )
        return Unavailable(
            f"{place}: {self.answer or self.text.partition('Debug source')[0].strip()}",
            hint=f"Try again. If it stays, look at the logs of {endpoint}.",
            busy=self.status in (429, 503) or self.code == "SlowDown",
            retry_after=self.error.retry_after if isinstance(self.error, Rejected) else None,
        )


def _first(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    return found[1].strip() if found else ""
