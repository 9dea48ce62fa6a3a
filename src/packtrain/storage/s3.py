"""Buckets on S3 servers: AWS's, and everybody's who speaks as they do."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from packtrain.errors import PacktrainError, Refused, Unavailable, UsageError
from packtrain.ports import Multipart
from packtrain.storage.aws import authorities, new_objects, s3_config
from packtrain.storage.boto import Boto
from packtrain.storage.failures import Failure
from packtrain.storage.multipart import S3Multipart
from packtrain.storage.objects import STALL, Connection, Errors, ObjectStore
from packtrain.storage.wire import Link, Wire

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig, S3Config

SIGNED_FOR = timedelta(hours=1)  # for one request, which begins at once


def open_s3(bucket: str, prefix: str, *, stall: float = STALL, storage_class: str | None = None) -> ObjectStore:
    """A store in an S3 bucket, by AWS's environment variables and profiles. Asks nobody yet.

    ``prefix`` without slashes at its ends, or empty; ``stall`` in seconds. Raises UsageError for bad settings.
    """
    config, believed = s3_config(), authorities()
    return ObjectStore(
        S3(
            bucket,
            config,
            endpoint=config.get("endpoint") or f"https://s3.{config.get('region', 'us-east-1')}.amazonaws.com",
            signs=os.environ.get("AWS_SKIP_SIGNATURE", "").lower() not in ("1", "true", "yes", "on", "y", "t"),
            authorities=believed,
            storage_class=storage_class,
        ),
        prefix,
        stall=stall,
        authorities=believed,
    )


@dataclass(frozen=True)
class S3:
    """The `Provider` of s3://. ``signs``: there are credentials to sign with; ``authorities`` as for `ObjectStore`."""

    bucket: str
    config: S3Config
    endpoint: str
    signs: bool
    authorities: Path | None
    storage_class: str | None

    address = "AWS_ENDPOINT_URL"
    copies = 5 * 10**9  # CopyObject's limit

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}"

    def connect(self, prefix: str | None, client: ClientConfig, retry: RetryConfig) -> S3Store:
        try:
            return S3Store(self.bucket, prefix=prefix, config=self.config, client_options=client, retry_config=retry)
        except (BaseError, ValueError) as error:
            what = str(error).partition("\n")[0]
            raise UsageError(f"the settings for S3 make no sense: {what}", hint="Check the AWS_* variables.") from error

    def multipart(self, prefix: str, silence: float, errors: Errors) -> Multipart:
        region = self.config.get("region", "us-east-1")
        boto = Boto(self.bucket, self.endpoint, region, silence=silence, signs=self.signs, authorities=self.authorities)
        wire = Wire(stall=silence, authorities=self.authorities)
        attributes = new_objects() | ({"StorageClass": self.storage_class} if self.storage_class else {})
        return S3Multipart(boto, wire, prefix, attributes, errors)

    def link(self, connection: Connection, key: str, path: str) -> Link | None:  # noqa: ARG002
        return Link(obstore.sign(connection, "GET", key, expires_in=SIGNED_FOR)) if self.signs else None

    def is_taken(self, failure: Failure) -> bool:
        return failure.status == 412

    def is_undone(self, failure: Failure) -> bool:
        return failure.code in ("ConditionalRequestConflict", "SlowDown")

    def explain(self, failure: Failure, place: str) -> PacktrainError | None:
        code, answer = failure.code, failure.answer
        if code == "NoSuchBucket":
            return Unavailable(
                f"there is no bucket {self.url} at {self.endpoint}",
                hint="Create the bucket, or correct its name, AWS_ENDPOINT_URL or AWS_REGION.",
            )
        if "/latest/api/token" in failure.text or "/latest/meta-data" in failure.text:
            return Refused(
                f"no credentials for {self.url} were found",
                hint="Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; for a public bucket "
                "AWS_SKIP_SIGNATURE=true.",
            )
        if code == "RequestTimeTooSkewed":
            return Refused(f"{place}: {answer}", hint="This machine's clock is wrong. Set it (chrony, ntpd).")
        if code in ("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"):
            return Refused(
                f"{place}: the credentials have expired: {answer}",
                hint="Get new ones from where these came from: sign in again (aws sso login), assume the role again, "
                "or have the token renewed.",
            )
        if code == "NotImplemented" or failure.status == 501:
            return Refused(
                f"{place}: {self.endpoint} does not support what was asked: {answer}",
                hint="Packtrain needs an S3 server with conditional puts (If-None-Match: *), which AWS S3 and "
                "SeaweedFS are. Update the server, or use another one.",
            )
        if failure.status in (401, 403):
            signed = code == "SignatureDoesNotMatch"
            proxy = " Or a proxy on the way changes what was signed, such as If-None-Match." if signed else ""
            return Refused(
                f"{place}: the server refuses: {answer}",
                hint=f"Check the credentials (AWS_ACCESS_KEY_ID, AWS_SESSION_TOKEN, AWS_PROFILE), that they belong to "
                f"{self.endpoint}, and what they may do in this bucket.{proxy}",
            )
        if "redirect without LOCATION" in failure.text or code == "AuthorizationHeaderMalformed":
            return Unavailable(
                f"{place}: the server sends us elsewhere", hint="The bucket is in another region. Set AWS_REGION to it."
            )
        return None
