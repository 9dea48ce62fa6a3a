"""Where S3 is and who we are there, as AWS's own tools find it out.

obstore reads AWS_* variables, web identity tokens (EKS), container credentials (ECS, EKS Pod Identity) and instance
metadata (EC2) itself. What it does not read are the shared files: ~/.aws/credentials and ~/.aws/config with their
profiles (https://docs.aws.amazon.com/sdkref/latest/guide/file-format.html). Their static keys, region and endpoint
are read here; a variable wins over a file.
"""

from __future__ import annotations

import configparser
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from packtrain.errors import UsageError

if TYPE_CHECKING:
    from obstore.store import S3Config

# Ways to credentials in a profile that need a program or another service to be asked first.
_INDIRECT = ("sso_session", "sso_start_url", "role_arn", "credential_process", "login_session")
# Ways to credentials that obstore knows; the default profile is not asked when one of them is set.
_OWN = ("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI")


def s3_config() -> S3Config:
    """What to give to obstore beyond what it finds in the environment. Raises UsageError for an endpoint that is no
    URL, and for a profile that does not exist or whose credentials must be fetched first."""
    profile = _profile()
    config: S3Config = {}
    endpoint = _variable("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT") or profile.get("endpoint_url")
    if endpoint:
        if not endpoint.startswith(("http://", "https://")):
            raise UsageError(
                f"the S3 endpoint {endpoint!r} is not a URL",
                hint="AWS_ENDPOINT_URL or endpoint_url of the AWS profile looks like https://minio.example.com:9000.",
            )
        config["endpoint"] = endpoint.rstrip("/")
    region = _variable("AWS_REGION", "AWS_DEFAULT_REGION") or profile.get("region")
    if region:
        config["region"] = region
    if not _variable("AWS_ACCESS_KEY_ID") and "aws_access_key_id" in profile:
        config["access_key_id"] = profile["aws_access_key_id"]
        config["secret_access_key"] = profile.get("aws_secret_access_key", "")
        if "aws_session_token" in profile:
            config["session_token"] = profile["aws_session_token"]
    return config


def new_objects() -> dict[str, str | bool]:
    """How new objects are encrypted, as parameters of S3's CreateMultipartUpload; obstore reads the same variables."""
    found: dict[str, str | bool] = {}
    if algorithm := _variable("AWS_SERVER_SIDE_ENCRYPTION"):
        found["ServerSideEncryption"] = algorithm
    if key := _variable("AWS_SSE_KMS_KEY_ID"):
        found["SSEKMSKeyId"] = key
    if (enabled := _variable("AWS_SSE_BUCKET_KEY_ENABLED")) is not None:
        found["BucketKeyEnabled"] = enabled.lower() in ("1", "true", "yes", "on")
    return found


def authorities() -> Path | None:
    """The PEM file with certificate authorities that the AWS settings say are to be believed. Raises UsageError if it
    cannot be read."""
    named = _variable("AWS_CA_BUNDLE") or _profile().get("ca_bundle")
    if not named:
        return None
    path = Path(named).expanduser()
    try:
        path.open("rb").close()
    except OSError as error:
        raise UsageError(
            f"the certificates in {path} cannot be read: {error.strerror}",
            hint="AWS_CA_BUNDLE or ca_bundle of the AWS profile names a PEM file.",
        ) from error
    return path


def where_credentials_are() -> str:
    """Where the credentials come from, in words, and nothing of them. Raises UsageError as `s3_config` does."""
    if (_variable("AWS_SKIP_SIGNATURE") or "").lower() in ("1", "true"):
        return "none: requests are not signed (AWS_SKIP_SIGNATURE)"
    profile = _profile()
    if _variable("AWS_ACCESS_KEY_ID"):
        return "AWS_ACCESS_KEY_ID of the environment"
    if "aws_access_key_id" in profile:
        return f"the AWS profile {_variable('AWS_PROFILE', 'AWS_DEFAULT_PROFILE') or 'default'!r}"
    role = next((name for name in _OWN if _variable(name)), None)
    return f"the role that {role} leads to" if role else "the role of this machine (EC2), if it has one"


def credentials_expire() -> datetime | None:
    """When the credentials of the environment end, if whoever set them says so (``aws configure
    export-credentials --format env`` does)."""
    try:
        return datetime.fromisoformat(os.environ["AWS_CREDENTIAL_EXPIRATION"]).astimezone(UTC)
    except (KeyError, ValueError):
        return None


def _profile() -> Mapping[str, str]:
    """The settings of the profile in force, credentials file over config file. Empty if there is none."""
    chosen = _variable("AWS_PROFILE", "AWS_DEFAULT_PROFILE")
    name = chosen or "default"
    config = _read("AWS_CONFIG_FILE", "config")
    credentials = _read("AWS_SHARED_CREDENTIALS_FILE", "credentials")
    section = "default" if name == "default" else f"profile {name}"
    profile = {**_section(config, section), **_section(credentials, name)}
    if chosen and not profile:
        raise UsageError(
            f"there is no AWS profile {name!r}",
            hint="AWS_PROFILE names it; `aws configure list-profiles` shows what there is.",
        )
    if _variable("AWS_ACCESS_KEY_ID") or "aws_access_key_id" in profile or (not chosen and _variable(*_OWN)):
        return profile
    for way in _INDIRECT:
        if way in profile:
            raise UsageError(
                f"the AWS profile {name!r} gets its credentials through {way}, which Packtrain does not do itself",
                hint=f'Let the AWS CLI fetch them: eval "$(aws configure export-credentials --profile {name} '
                '--format env)"; then unset AWS_PROFILE and try again.',
            )
    return profile


def _variable(*names: str) -> str | None:
    """The first of these environment variables that is set and not empty."""
    return next((value for name in names if (value := os.environ.get(name))), None)


def _read(variable: str, name: str) -> configparser.RawConfigParser:
    path = Path(_variable(variable) or f"~/.aws/{name}").expanduser()
    parser = configparser.RawConfigParser(default_section="", strict=False)
    try:
        parser.read(path, encoding="utf-8")
    except (configparser.Error, OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path} cannot be read: {error}", hint="It must be an INI file as AWS's tools read it."
        ) from None
    return parser


def _section(parser: configparser.RawConfigParser, name: str) -> dict[str, str]:
    return dict(parser[name]) if parser.has_section(name) else {}
