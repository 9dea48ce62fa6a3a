"""botocore: S3's calls that obstore does not have, and signatures for what goes over the wire.

It takes a third of a second to import and to make a client of. Publishing and garbage collection need it; what pulls
and serves never does.
"""

from __future__ import annotations

import os
import ssl
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from packtrain.errors import Refused
from packtrain.storage.wire import Link, Rejected

if TYPE_CHECKING:
    from botocore.session import Session

_SIGNED_FOR = 3600  # seconds; for one request, which begins at once
_ATTEMPTS = 5


class Boto:
    """One bucket, as botocore speaks to it. Finds the same credentials as AWS's own tools, and renews them.

    ``silence``: seconds without a byte after which a request has failed; ``signs``: there are credentials;
    ``authorities``: a PEM file with those to believe. Asks nobody before its first call. Safe from many threads.
    """

    def __init__(
        self, bucket: str, endpoint: str, region: str, *, silence: float, signs: bool, authorities: Path | None
    ) -> None:
        self.bucket = bucket
        self._endpoint = endpoint
        self._region = region
        self._silence = silence
        self._signs = signs
        self._authorities = authorities
        self._making = threading.Lock()
        self._made: tuple[Session, Any] | None = None

    def warm(self) -> None:
        """Does beside other work what the first call would wait for."""

        def make() -> None:
            with suppress(Exception):  # the first call meets it again, and says so
                self._make()

        threading.Thread(target=make, name="boto", daemon=True).start()

    @property
    def s3(self) -> Any:
        """botocore's client. What its calls raise is `translated`."""
        return self._make()[1]

    def link(self, key: str, query: Mapping[str, str], headers: Mapping[str, str]) -> Link:
        """Where to PUT the body of a request that begins now, signed with its headers. Raises as the calls do."""
        from botocore.auth import S3SigV4QueryAuth
        from botocore.awsrequest import AWSRequest
        from botocore.exceptions import NoCredentialsError

        url = f"{self._endpoint}/{self.bucket}/{quote(key, safe='/~')}"
        request = AWSRequest(method="PUT", url=f"{url}?{urlencode(query)}" if query else url, headers=dict(headers))
        if self._signs:
            credentials = self._make()[0].get_credentials()
            if credentials is None:
                raise NoCredentialsError
            S3SigV4QueryAuth(credentials, "s3", self._region, expires=_SIGNED_FOR).add_auth(request)
        return Link(request.url, headers)

    def _make(self) -> tuple[Session, Any]:
        with self._making:
            if self._made is None:
                self._made = self._new()
            return self._made

    def _new(self) -> tuple[Session, Any]:
        import botocore.session
        from botocore import UNSIGNED
        from botocore.config import Config

        system = os.environ.get("SSL_CERT_FILE") or ssl.get_default_verify_paths().cafile  # botocore has its own list
        session = botocore.session.Session()
        client = session.create_client(
            "s3",
            region_name=self._region,
            endpoint_url=self._endpoint,
            verify=str(self._authorities) if self._authorities else system,
            config=Config(
                signature_version="s3v4" if self._signs else UNSIGNED,
                s3={"addressing_style": "path"},
                connect_timeout=min(5.0, self._silence),
                read_timeout=self._silence,
                retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )
        return session, client


def translated(error: Exception, place: str) -> Exception:
    """What botocore raised, as the wire says it, or as our error."""
    from botocore import exceptions

    if isinstance(error, exceptions.ClientError):
        code = error.response.get("Error", {}).get("Code", "")
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") or 500
        return Rejected(status, "", f"<Code>{code}</Code> {error}", None)
    if isinstance(error, exceptions.NoCredentialsError | exceptions.PartialCredentialsError):
        return Refused(
            f"no credentials for {place} were found",
            hint="Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE.",
        )
    if isinstance(error, exceptions.CredentialRetrievalError):
        return Refused(f"{place}: the credentials could not be had: {error}", hint="Sign in again (aws sso login).")
    if isinstance(error, exceptions.ReadTimeoutError | exceptions.ConnectTimeoutError):
        return TimeoutError(str(error))
    if isinstance(error, exceptions.HTTPClientError | exceptions.ConnectionError):
        return ConnectionError(str(error))
    return error
