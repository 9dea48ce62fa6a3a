"""Google's identity services, as far as a client of GCS meets them: service accounts' keys, access tokens, the metadata
server of a machine or pod, and the exchange of another cloud's token (workload identity federation). For tests."""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from base64 import urlsafe_b64decode
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qs, parse_qsl, quote, urlsplit

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

READ, WRITE = "read", "write"
HOST = "storage.googleapis.com"  # what a signature covers, wherever the endpoint is
METADATA = "/computeMetadata/v1/instance/service-accounts/default/token"
EXCHANGE, SIGN_IN = "/sts/v1/token", "/oauth2/token"
_SIGNED = ("X-Goog-Signature", "X-Goog-Credential", "X-Goog-Date", "X-Goog-Expires", "X-Goog-SignedHeaders")


class Stranger(Exception):
    """Somebody who is not known, or no longer."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


@dataclass(frozen=True)
class Caller:
    email: str
    may: frozenset[str] = frozenset((READ, WRITE))


@dataclass(frozen=True)
class Said:
    """An answer of one of the services."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


WRITER = Caller("writer@packtrain-test.iam.gserviceaccount.com")
READER = Caller("reader@packtrain-test.iam.gserviceaccount.com", frozenset((READ,)))


class Doorkeeper:
    """Lets in whoever has a token that was issued here and has not ended, or a signature of `key`'s.

    ``machine``: whose tokens the metadata server gives; None: it has none. ``workload``: the token of the other cloud
    that is exchanged. ``anybody`` may do this without credentials. ``lifetime``: seconds of a token.
    """

    def __init__(self) -> None:
        self._key = generate_private_key(public_exponent=65537, key_size=2048)
        self.machine: Caller | None = WRITER
        self.workload = secrets.token_urlsafe(16)
        self.refresh_token = secrets.token_urlsafe(16)
        self.anybody: frozenset[str] = frozenset()
        self.lifetime = 3600.0
        self.issued = 0
        self._tokens: dict[str, tuple[Caller, float]] = {}

    def key(self, caller: Caller = WRITER) -> dict[str, str]:
        """The JSON of a service account's key."""
        pem = self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return {
            "type": "service_account",
            "project_id": "packtrain-test",
            "private_key_id": "key-1",
            "private_key": pem.decode(),
            "client_email": caller.email,
            "client_id": "1",
            "token_uri": "http://oauth2.invalid/token",  # nobody need ask there: a key vouches for itself
        }

    def issue(self, caller: Caller = WRITER) -> str:
        token = secrets.token_urlsafe(24)
        self._tokens[token] = (caller, time.time() + self.lifetime)
        self.issued += 1
        return token

    def caller(self, method: str, target: str, headers: Mapping[str, str]) -> Caller:
        """Who sends a request. Raises Stranger."""
        query = dict(parse_qsl(urlsplit(target).query, keep_blank_values=True))
        if "X-Goog-Signature" in query:
            return self._signer(method, target, query)
        kind, _, token = _named("authorization", headers).partition(" ")
        if kind != "Bearer" or not token:
            return Caller("Anonymous caller", self.anybody)
        if token.count(".") == 2:
            return self._bearer_of(token)
        caller, until = self._tokens.get(token, (None, 0.0))
        if caller is None or until < time.time():
            raise Stranger(401, "AuthenticationRequired", "Authentication required.")
        return caller

    def service(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Said | None:
        """What an identity service answers; None: the request is for none of them."""
        path = urlsplit(target).path
        if path == METADATA:
            if _named("metadata-flavor", headers) != "Google":
                return Said(403, b"Missing Metadata-Flavor:Google header.")
            if self.machine is None:
                return Said(404, b"The requested service account was not found.")
            return self._grant(self.machine)
        if method == "POST" and path in (EXCHANGE, SIGN_IN):
            fields = {name: values[0] for name, values in parse_qs(body.decode()).items()}
            if (
                self.workload not in (fields.get("subject_token"),)
                and fields.get("refresh_token") != self.refresh_token
            ):
                error = {"error": "invalid_grant", "error_description": "Token has been expired or revoked."}
                return Said(400, json.dumps(error).encode())
            return self._grant(WRITER)
        return None

    def _grant(self, caller: Caller) -> Said:
        answer = {
            "access_token": self.issue(caller),
            "expires_in": int(self.lifetime),
            "token_type": "Bearer",
            "issued_token_type": "urn:ietf:params:oauth:token-type:access_token",
        }
        return Said(200, json.dumps(answer).encode())

    def _bearer_of(self, token: str) -> Caller:
        """A service account vouches for itself (https://google.aip.dev/auth/4111)."""
        signed, _, signature = token.rpartition(".")
        self._verify(_unpacked(signature), signed)
        claims = json.loads(_unpacked(signed.partition(".")[2]))
        now = time.time()
        if not claims["iat"] - 60 <= now <= claims["exp"]:
            raise Stranger(401, "AuthenticationRequired", "Authentication required.")
        return _account(claims["iss"])

    def _signer(self, method: str, target: str, query: Mapping[str, str]) -> Caller:
        """V4 signatures: https://cloud.google.com/storage/docs/authentication/canonical-requests."""
        if not all(query.get(name) for name in _SIGNED) or query["X-Goog-SignedHeaders"] != "host":
            raise Stranger(400, "AuthenticationRequired", "A signed URL lacks a parameter.")
        pairs = sorted(
            (quote(name, safe="-_.~"), quote(value, safe="-_.~"))
            for name, value in query.items()
            if name != "X-Goog-Signature"
        )
        canonical = "\n".join(
            (
                method,
                urlsplit(target).path,
                "&".join(f"{name}={value}" for name, value in pairs),
                f"host:{HOST}\n",
                "host",
                "UNSIGNED-PAYLOAD",
            )
        )
        email, _, scope = query["X-Goog-Credential"].partition("/")
        digest = hashlib.sha256(canonical.encode()).hexdigest()
        self._verify(
            bytes.fromhex(query["X-Goog-Signature"]), f"GOOG4-RSA-SHA256\n{query['X-Goog-Date']}\n{scope}\n{digest}"
        )
        begun = time.mktime(time.strptime(query["X-Goog-Date"], "%Y%m%dT%H%M%SZ")) - time.timezone
        if time.time() > begun + int(query["X-Goog-Expires"]):
            raise Stranger(400, "ExpiredToken", "The provided token has expired.")
        return _account(email)

    def _verify(self, signature: bytes, signed: str) -> None:
        try:
            self._key.public_key().verify(signature, signed.encode(), PKCS1v15(), SHA256())
        except InvalidSignature:
            raise Stranger(
                403,
                "SignatureDoesNotMatch",
                "The request signature we calculated does not match the signature you provided.",
            ) from None


def _account(email: str) -> Caller:
    for caller in (WRITER, READER):
        if caller.email == email:
            return caller
    raise Stranger(401, "AuthenticationRequired", "Authentication required.")


def _named(name: str, headers: Mapping[str, str]) -> str:
    return next((value for each, value in headers.items() if each.lower() == name), "")


def _unpacked(text: str) -> bytes:
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))
