"""MLflow's webhooks: who may have sent one, and what it is about. It carries no truth: it says when to look."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

from packtrain.errors import Refused
from packtrain.model.reference import check_name

# Headers, as MLflow 3 sends them. A delivery that is tried again keeps its id, time and signature.
DELIVERY, TIME, SIGNATURE = "X-MLflow-Delivery-Id", "X-MLflow-Timestamp", "X-MLflow-Signature"
WINDOW = 300  # seconds that a delivery may be old, or ahead: MLflow tries again for about ten
REMEMBERED = 10_000  # deliveries


@dataclass
class Gate:
    """Lets deliveries in that somebody signed who knows the secret, each once, and not long ago."""

    secret: bytes
    _seen: OrderedDict[str, None] = field(default_factory=OrderedDict)

    def admit(self, headers: Mapping[str, str], body: bytes, now: float) -> str | None:
        """The registered model that a delivery is about; None if it came before, or is about something else. Raises
        Refused."""
        delivery, time, signature = (headers.get(name, "") for name in (DELIVERY, TIME, SIGNATURE))
        expected = sign(self.secret, delivery, time, body)
        if not hmac.compare_digest(signature.encode(), expected.encode()):
            raise Refused("the signature is not that of the secret", hint="Is it the secret that MLflow was given?")
        if not time.isdecimal() or abs(now - int(time)) > WINDOW:
            raise Refused(f"the delivery is of {time!r}, too long ago or ahead", hint="Set both clocks by NTP.")
        if delivery in self._seen:
            return None
        self._seen[delivery] = None
        if len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)
        return _name(body)


def sign(secret: bytes, delivery: str, time: str, body: bytes) -> str:
    """The signature of a delivery, as MLflow makes it."""
    message = f"{delivery}.{time}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(secret, message, hashlib.sha256).digest()).decode()


def _name(body: bytes) -> str | None:
    try:
        value = json.loads(body)
        entity, name = value["entity"], value["data"]["name"]
    except (ValueError, KeyError, TypeError) as error:
        raise Refused(f"the delivery is not one of MLflow's: {error}") from error
    if not isinstance(entity, str) or not entity.startswith(("registered_model", "model_version")):
        return None
    return check_name(name) if isinstance(name, str) else None
