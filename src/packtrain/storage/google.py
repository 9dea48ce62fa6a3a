"""Who we are on Google's cloud, as Google's own libraries find it out (Application Default Credentials,
https://cloud.google.com/docs/authentication/application-default-credentials).

A service account's key signs URLs by itself, in obstore. Everything else gets access tokens that last an hour: from
the metadata server of a machine or pod (Workload Identity on GKE), whose protocol is one GET; or, for the files of
other clouds' workloads (external accounts), people and impersonation, from google-auth, which is the extra ``gcs`` of
this package because a node on Google's own cloud does not need it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.client import HTTPConnection, HTTPException
from importlib.util import find_spec
from pathlib import Path
from socket import gaierror
from threading import Lock
from typing import TYPE_CHECKING, Any

from packtrain.errors import PacktrainError, Refused, Unavailable, UsageError

if TYPE_CHECKING:
    from google.auth.credentials import Credentials
    from obstore.store import GCSConfig, GCSCredential

SCOPE = "https://www.googleapis.com/auth/cloud-platform"  # what an identity may do, IAM says
FRESH = timedelta(minutes=4)  # a token that ends sooner is renewed: it must outlast the request that carries it
METADATA_HOST = "metadata.google.internal"
METADATA_TIMEOUT = 3.0  # seconds
METADATA_PAUSES = (0.5, 1.0, 2.0, 4.0)  # GKE's metadata server may start after the pod that asks it
_METADATA_PATH = "/computeMetadata/v1/instance/service-accounts/default/token"

SIGN_IN = (
    "Set GOOGLE_APPLICATION_CREDENTIALS to a service account's key or a workload identity file, or sign in: "
    "gcloud auth application-default login. On GKE bind a service account to the pod's; for a public bucket set "
    "GOOGLE_SKIP_SIGNATURE=true."
)


@dataclass(frozen=True, slots=True)
class Token:
    value: str
    expires: datetime | None = None


class Tokens:
    """The access token that is in force, fetched anew before it ends. ``trouble`` is what the last fetch failed with:
    obstore, which asks for tokens too, passes on no more than its text."""

    def __init__(self, fetch: Callable[[], Token]) -> None:
        self._fetch = fetch
        self._lock = Lock()
        self._token: Token | None = None
        self.trouble: PacktrainError | None = None

    def get(self) -> Token:
        """Raises Refused, Unavailable, UsageError."""
        with self._lock:
            token = self._token
            if token is None or (token.expires is not None and token.expires - datetime.now(UTC) < FRESH):
                try:
                    token = self._token = self._fetch()
                except PacktrainError as error:
                    self.trouble = error
                    raise
            return token

    def for_obstore(self) -> GCSCredential:
        token = self.get()
        return {"token": token.value, "expires_at": token.expires}


@dataclass(frozen=True)
class Identity:
    """``what`` says for people where it comes from; ``config`` is for obstore, which else is given ``bearer``'s tokens.
    ``signs``: a key is there, by which obstore signs URLs; then ``bearer`` is None where google-auth is not installed.
    ``billed`` is the project that pays for requests, where that is not the bucket's."""

    what: str
    config: GCSConfig | None = None
    bearer: Tokens | None = None
    signs: bool = False
    billed: str = ""

    @property
    def headers(self) -> dict[str, str]:
        return {"x-goog-user-project": self.billed} if self.billed else {}


def identity() -> Identity:
    """Who we are by the environment. Asks nobody yet. Raises UsageError for files that cannot be used."""
    if os.environ.get("GOOGLE_SKIP_SIGNATURE", "").lower() in ("1", "true", "yes", "on", "y", "t"):
        nobody: GCSConfig = {
            "skip_signature": True,
            "bearer_token": "",
        }  # the token: obstore asks for one when it writes
        return Identity("none: requests are not signed (GOOGLE_SKIP_SIGNATURE)", nobody)
    if token := os.environ.get("GOOGLE_BEARER_TOKEN"):
        return Identity("the access token in GOOGLE_BEARER_TOKEN", bearer=Tokens(lambda: Token(token)))
    if key := os.environ.get("GOOGLE_SERVICE_ACCOUNT_KEY"):
        return _of(_parsed(key, "GOOGLE_SERVICE_ACCOUNT_KEY"), "GOOGLE_SERVICE_ACCOUNT_KEY")
    for variable in ("GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_PATH", "GOOGLE_APPLICATION_CREDENTIALS"):
        if path := os.environ.get(variable):
            return _of(_parsed(_read(Path(path), variable), path), f"{variable}={path}")
    folder = Path(os.environ.get("CLOUDSDK_CONFIG") or Path("~/.config/gcloud").expanduser())
    known = folder / "application_default_credentials.json"
    if known.is_file():
        return _of(_parsed(_read(known, "gcloud"), str(known)), str(known))
    return Identity("the service account of this machine or pod (its metadata server)", bearer=Tokens(_of_this_machine))


def _of(info: Mapping[str, Any], source: str) -> Identity:
    """By the content of a file."""
    kind = info.get("type")
    billed = os.environ.get("GOOGLE_CLOUD_QUOTA_PROJECT") or info.get("quota_project_id", "")
    if kind in ("service_account", None):  # without a type: obstore's own form, for emulators
        config: GCSConfig = {"service_account_key": json.dumps(dict(info))}
        email = info.get("client_email") or "without a name"
        signs = not info.get("disable_oauth")
        bearer = Tokens(_Library(info, source)) if signs and _has_google_auth() else None
        return Identity(f"the service account {email} ({source})", config, bearer, signs=signs, billed=billed)
    names = {
        "authorized_user": "a person's account",
        "external_account": "a workload of another cloud",
        "external_account_authorized_user": "a person of another organization",
        "impersonated_service_account": "an impersonated service account",
    }
    if kind not in names:
        raise UsageError(
            f"{source}: credentials of the type {kind!r} are not known",
            hint=f"Known are service_account, {', '.join(names)}.",
        )
    if not _has_google_auth():
        raise UsageError(
            f"{source}: credentials of the type {kind} need google-auth, which is not installed",
            hint="Install it beside Packtrain: pip install 'packtrain[gcs]'.",
        )
    return Identity(f"{names[kind]} ({source})", bearer=Tokens(_Library(info, source)), billed=billed)


def _has_google_auth() -> bool:
    return find_spec("google") is not None and find_spec("google.auth") is not None


def _read(path: Path, said_by: str) -> str:
    try:
        return path.expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"the credentials {path} cannot be read: {error}", hint=f"{said_by} names them. {SIGN_IN}"
        ) from None


def _parsed(text: str, source: str) -> Mapping[str, Any]:
    try:
        info = json.loads(text)
    except ValueError:
        info = None
    if not isinstance(info, dict):
        raise UsageError(f"{source} holds no credentials of Google's: they are a JSON object", hint=SIGN_IN)
    return info


# The metadata server


def _of_this_machine() -> Token:
    """https://cloud.google.com/compute/docs/metadata/overview. Raises Refused where there is none, Unavailable."""
    host = os.environ.get("GCE_METADATA_HOST", METADATA_HOST)
    for pause in (*METADATA_PAUSES, None):
        try:
            status, body = _ask_metadata(host)
        except (gaierror, TimeoutError):
            break  # no such name, or nobody at that address: this is no machine of Google's
        except (OSError, HTTPException) as error:
            trouble = str(error)
        else:
            if status == 200:
                return _token(body)
            if status == 404:
                raise Refused(
                    "this machine or pod has no service account, so there are no credentials for gs://",
                    hint="Attach a service account to it (GKE: bind one to the pod's Kubernetes service account). "
                    + SIGN_IN,
                )
            trouble = f"{status} {body[:200].decode(errors='replace')}"
        if pause is None:
            raise Unavailable(f"the metadata server {host} gives no access token: {trouble}", hint="Try again.")
        time.sleep(pause)
    raise Refused("no credentials for gs:// were found", hint=SIGN_IN)


def _ask_metadata(host: str) -> tuple[int, bytes]:
    connection = HTTPConnection(host, timeout=METADATA_TIMEOUT)
    try:
        connection.request("GET", _METADATA_PATH, headers={"Metadata-Flavor": "Google"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def _token(body: bytes) -> Token:
    answer = json.loads(body)
    return Token(answer["access_token"], datetime.now(UTC) + timedelta(seconds=int(answer["expires_in"])))


# google-auth


class _Library:
    """Tokens by google-auth, imported with the first one: it takes half a second."""

    def __init__(self, info: Mapping[str, Any], source: str) -> None:
        self._info = info
        self._source = source
        self._credentials: Credentials | None = None

    def __call__(self) -> Token:
        from google.auth.exceptions import GoogleAuthError, OAuthError, RefreshError, TransportError

        from packtrain.storage.google_auth import ask, credentials

        try:
            if self._credentials is None:
                self._credentials = credentials(self._info, SCOPE)
            self._credentials.refresh(ask)
        except TransportError as error:
            raise Unavailable(
                f"{self._source}: no access token can be got: {error}",
                hint="Check the network and proxies; then try again.",
            ) from error
        except (RefreshError, OAuthError) as error:
            raise _refused(self._source, error) from error
        except (GoogleAuthError, ValueError, KeyError) as error:
            raise UsageError(f"{self._source} cannot be used: {error}", hint=SIGN_IN) from error
        expires = self._credentials.expiry
        return Token(str(self._credentials.token), expires.replace(tzinfo=UTC) if expires else None)


def _refused(source: str, error: Exception) -> Refused:
    text = str(error.args[0]) if error.args else str(error)
    if "invalid_grant" in text or "reauth" in text.lower() or "expired" in text:
        return Refused(
            f"{source}: the credentials have expired or were revoked: {text}",
            hint="Sign in again: gcloud auth application-default login. For a workload identity look at the token that "
            "its file names. If neither is old: is this machine's clock right?",
        )
    return Refused(f"{source}: Google gives no access token: {text}", hint=SIGN_IN)
