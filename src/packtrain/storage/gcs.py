"""Buckets on Google Cloud Storage, by its XML API."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING
from urllib.parse import quote

import obstore
from obstore.exceptions import BaseError
from obstore.store import GCSStore

from packtrain.errors import PacktrainError, Refused, Unavailable, UsageError
from packtrain.ports import Multipart
from packtrain.storage.failures import Failure
from packtrain.storage.gcs_multipart import GcsMultipart, require_class
from packtrain.storage.google import SIGN_IN, Identity, identity
from packtrain.storage.objects import PLAIN, STALL, Connection, Errors, ObjectStore
from packtrain.storage.wire import Link, Wire

if TYPE_CHECKING:
    from obstore.store import ClientConfig, GCSConfig, RetryConfig

HOST = "storage.googleapis.com"
SIGNED_FOR = timedelta(hours=1)  # for one request, which begins at once


def open_gcs(bucket: str, prefix: str, *, stall: float = STALL, storage_class: str | None = None) -> ObjectStore:
    """A store in a bucket of GCS, by Google's environment variables and files. Asks nobody yet.

    ``prefix`` without slashes at its ends, or empty; ``stall`` in seconds; ``storage_class`` of new files, else the
    bucket's own. Raises UsageError for bad settings.
    """
    if storage_class is not None:
        require_class(storage_class)
    endpoint = os.environ.get("GOOGLE_BASE_URL", f"https://{HOST}").rstrip("/")
    if not endpoint.startswith(("http://", "https://")):
        raise UsageError(
            f"GOOGLE_BASE_URL={endpoint!r} is not a URL",
            hint=f"It looks like https://{HOST}; unset it for Google's own.",
        )
    return ObjectStore(Gcs(bucket, endpoint, identity(), storage_class), prefix, stall=stall)


@dataclass(frozen=True)
class Gcs:
    """The `Provider` of gs://."""

    bucket: str
    endpoint: str
    identity: Identity
    storage_class: str | None

    address = "GOOGLE_BASE_URL"
    copies = 5 << 40  # GCS' limit of an object: within a bucket it copies by reference

    @property
    def url(self) -> str:
        return f"gs://{self.bucket}"

    def connect(self, prefix: str | None, client: ClientConfig, retry: RetryConfig) -> GCSStore:
        bearer = None if self.identity.config else self.identity.bearer
        config: GCSConfig = {**(self.identity.config or {}), "base_url": self.endpoint}
        if self.identity.headers:
            client = {**client, "default_headers": self.identity.headers}
        try:
            return GCSStore(
                self.bucket,
                prefix=prefix,
                config=config,
                client_options=client,
                retry_config=retry,
                credential_provider=bearer.for_obstore if bearer else None,
            )
        except (BaseError, ValueError) as error:
            what = str(error).partition("\n")[0]
            raise UsageError(f"the settings for GCS make no sense: {what}", hint=SIGN_IN) from error

    def multipart(self, prefix: str, silence: float, errors: Errors) -> Multipart | None:
        """With tokens: obstore signs no parts. A key has them by google-auth."""
        bearer = self.identity.bearer
        if bearer is None:
            if self.storage_class:
                raise UsageError("a storage class needs google-auth", hint="pip install 'packtrain[gcs]'")
            return None

        def headers() -> dict[str, str]:
            return {**self.identity.headers, "Authorization": f"Bearer {bearer.get().value}"}

        attributes = {"x-goog-storage-class": self.storage_class} if self.storage_class else {}
        return GcsMultipart(self.endpoint, self.bucket, prefix, headers, Wire(stall=silence), errors, attributes)

    def link(self, connection: Connection, key: str, path: str) -> Link | None:
        """With a token, or signed by a key. A signature covers Google's host, wherever the endpoint is."""
        if self.identity.signs:
            if self.identity.billed or not PLAIN.fullmatch(path):
                return None
            return Link(obstore.sign(connection, "GET", key, expires_in=SIGNED_FOR), {"Host": HOST})
        headers = self.identity.headers
        if self.identity.bearer is not None:
            headers["Authorization"] = f"Bearer {self.identity.bearer.get().value}"
        return Link(f"{self.endpoint}/{self.bucket}/{quote(path, safe='/~')}", headers)

    def is_taken(self, failure: Failure) -> bool:
        """By x-goog-if-generation-match: 0."""
        return failure.status == 412

    def is_undone(self, failure: Failure) -> bool:
        """429: turned away because of too many changes of an object or a bucket."""
        return failure.status == 429

    def explain(self, failure: Failure, place: str) -> PacktrainError | None:
        bearer = self.identity.bearer
        answer = f"{failure.answer}{failure.details and f' ({failure.details})'}"
        if "credential provider" in failure.text and bearer is not None and bearer.trouble is not None:
            return bearer.trouble
        if failure.code == "NoSuchBucket":
            return Unavailable(
                f"there is no bucket {self.url} at {self.endpoint}",
                hint="Create the bucket (gcloud storage buckets create), or correct its name: names of buckets are the "
                "same for all projects.",
            )
        if failure.code == "RequestTimeTooSkewed" or "Token must be a short-lived token" in failure.text:
            return Refused(f"{place}: {answer}", hint="This machine's clock is wrong. Set it (chrony, ntpd).")
        if failure.code.startswith("UserProject") or failure.code == "AccountProblem":
            return Refused(
                f"{place}: the project to be billed is missing or wrong: {answer}",
                hint="Set GOOGLE_CLOUD_QUOTA_PROJECT to a project of yours that has billing, and in which you have "
                "serviceusage.services.use.",
            )
        if failure.status == 401 or failure.code in ("ExpiredToken", "AuthenticationRequired", "InvalidSecurity"):
            return Refused(
                f"{place}: the credentials are not accepted, or have expired: {answer}",
                hint=f"They are {self.identity.what}. Get new ones: gcloud auth application-default login, or another "
                "key. A key is refused, too, if this machine's clock is wrong.",
            )
        if failure.status == 403:
            return Refused(
                f"{place}: GCS refuses: {answer}",
                hint=f"The credentials are {self.identity.what}. Grant them a role on the bucket: "
                "roles/storage.objectViewer to pull and serve, roles/storage.objectUser to publish and promote. Or is "
                "the bucket another one, in another project?",
            )
        return None
