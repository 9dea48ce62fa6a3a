"""What Packtrain takes of google-auth. Imported only where a file of credentials needs it."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

from google.auth import aws, identity_pool, impersonated_credentials, pluggable
from google.auth import external_account_authorized_user as people
from google.auth.credentials import Credentials
from google.auth.exceptions import TransportError
from google.auth.transport import Response
from google.oauth2.credentials import Credentials as UserCredentials
from google.oauth2.service_account import Credentials as KeyCredentials

TIMEOUT = 30.0  # seconds


def credentials(info: Mapping[str, Any], scope: str) -> Credentials:
    """By the content of a file. Raises ValueError, GoogleAuthError."""
    scopes = [scope]
    found: Any
    match info["type"]:
        case "service_account":
            found = KeyCredentials.from_service_account_info(info, scopes=scopes).with_always_use_jwt_access(True)
            found._create_self_signed_jwt(None)  # else it would exchange the key for a token
        case "authorized_user":
            found = UserCredentials.from_authorized_user_info(info, scopes=scopes)
        case "external_account_authorized_user":
            found = people.Credentials.from_info(info)
        case "impersonated_service_account":
            found = impersonated_credentials.Credentials.from_impersonated_service_account_info(info, scopes=scopes)
        case _:
            if "aws" in info.get("subject_token_type", ""):
                kind: Any = aws
            else:
                kind = pluggable if "executable" in info.get("credential_source", {}) else identity_pool
            found = kind.Credentials.from_info(info, scopes=scopes)
    result: Credentials = found
    return result


class _Answer(Response):
    def __init__(self, status: int, headers: Mapping[str, str], data: bytes) -> None:
        self._status, self._headers, self._data = status, headers, data

    @property
    def status(self) -> int:
        return self._status

    @property
    def headers(self) -> Mapping[str, str]:
        return self._headers

    @property
    def data(self) -> bytes:
        return self._data


def ask(
    url: str,
    method: str = "GET",
    body: bytes | str | None = None,
    headers: Mapping[str, str] | None = None,
    timeout: float | None = None,
    **_: object,
) -> Response:
    """google-auth's way to the network (google.auth.transport.Request), by the standard library, which takes proxies
    and trusted certificates from the same variables as the rest of Packtrain. Raises TransportError."""
    data = body.encode() if isinstance(body, str) else body
    request = urllib.request.Request(url, data, dict(headers or {}), method=method)  # noqa: S310 - of a file we trust
    try:
        with urllib.request.urlopen(request, timeout=timeout or TIMEOUT) as answer:  # noqa: S310
            return _Answer(answer.status, dict(answer.headers), answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return _Answer(error.code, dict(error.headers), error.read())
    except OSError as error:
        raise TransportError(str(error)) from error
