"""Stores: where models are kept for good.

directory  file:///path, /path   a directory, an NFS or JuiceFS mount
objects    s3://bucket/prefix    a bucket on any S3 server (s3; aws: where it is and who we are there)
           gs://bucket/prefix    a bucket on Google Cloud Storage (gcs; google, google_auth: who we are there)
           az://container/prefix a container of an Azure storage account (azure)
           over obstore (threads: where it may block; wire: reading past it; failures: what went wrong)
"""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

from packtrain.errors import UsageError
from packtrain.ports import Store

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
_FORMS = (
    "A store is a directory (file:///srv/models or /srv/models), or a bucket with or without a prefix "
    "(s3://bucket/prefix, gs://bucket/prefix, az://container/prefix)."
)
BUCKETS = ("s3", "gs", "az")


def open_store(url: str, *, storage_class: str | None = None) -> Store:
    """The store at a URL. Nothing is read or made yet. ``storage_class``: of new files on S3 or GCS, else its own.
    Raises UsageError, which shows the forms."""
    scheme, separator, rest = url.partition("://")
    if url.startswith("/"):
        return _directory(url)
    if scheme == "file" and separator:
        host, slash, path = rest.partition("/")
        if not slash or host not in ("", "localhost"):
            raise UsageError(f"{url!r} names no directory of this machine", hint=_FORMS)
        _refuse_query(url, rest)
        return _directory(unquote(f"/{path}"))
    if scheme in BUCKETS and separator:
        _refuse_query(url, rest)
        return _bucket(url, scheme, rest, storage_class)
    raise UsageError(f"{url!r} is not a store", hint=_FORMS)


def where_credentials_are(url: str) -> str | None:
    """Where those for the store at a URL come from, in words, and nothing of them. None: it needs none. Raises
    UsageError for profiles and files that cannot be used."""
    scheme = url.partition("://")[0]
    if scheme == "s3":
        from packtrain.storage import aws

        return aws.where_credentials_are()
    if scheme == "gs":
        from packtrain.storage import google

        return google.identity().what
    if scheme == "az":
        from packtrain.storage import azure

        return azure.where_credentials_are()
    return None


def _directory(path: str) -> Store:
    from packtrain.storage.directory import DirectoryStore

    if "\0" in path:
        raise UsageError(f"{path!r} is not a path", hint=_FORMS)
    return DirectoryStore(Path(path))


def _bucket(url: str, scheme: str, rest: str, storage_class: str | None) -> Store:
    bucket, _, path = rest.partition("/")
    if not _BUCKET.fullmatch(bucket):
        raise UsageError(f"{url!r} names no bucket", hint=_FORMS)
    parts = [part for part in path.split("/") if part]
    if not {".", ".."}.isdisjoint(parts) or not path.isprintable():
        raise UsageError(f"{url!r} has a prefix that no object can have", hint=_FORMS)
    prefix = "/".join(parts)
    if scheme == "s3":  # each imports obstore: 40 ms that a help page must not pay
        from packtrain.storage.s3 import open_s3

        return open_s3(bucket, prefix, storage_class=storage_class)
    if scheme == "gs":
        from packtrain.storage.gcs import open_gcs

        return open_gcs(bucket, prefix, storage_class=storage_class)
    from packtrain.storage.azure import open_azure

    return open_azure(bucket, prefix)


def _refuse_query(url: str, rest: str) -> None:
    if "?" in rest or "#" in rest:
        raise UsageError(
            f"{url!r} has a query or a fragment, which a store does not",
            hint="Endpoint, region and credentials come from variables such as AWS_ENDPOINT_URL, AWS_PROFILE and "
            "GOOGLE_APPLICATION_CREDENTIALS.",
        )
