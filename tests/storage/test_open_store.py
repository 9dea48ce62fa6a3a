"""URLs of stores."""

from __future__ import annotations

import subprocess
import sys

import pytest

from packtrain.errors import UsageError
from packtrain.storage import open_store


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("/srv/models", "file:///srv/models"),
        ("/srv/models/", "file:///srv/models"),
        ("/srv/50% ready?", "file:///srv/50%25%20ready%3F"),
        ("file:///srv/models", "file:///srv/models"),
        ("file:///srv/models/", "file:///srv/models"),
        ("file://localhost/srv/models", "file:///srv/models"),
        ("file:///srv/with%20space", "file:///srv/with%20space"),
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/", "s3://bucket"),
        ("s3://bucket/a/b", "s3://bucket/a/b"),
        ("s3://bucket//a//b/", "s3://bucket/a/b"),
        ("gs://bucket//a//b/", "gs://bucket/a/b"),
        ("az://container/a", "az://container/a"),
        ("s3://my.bucket-1/with space/50%", "s3://my.bucket-1/with space/50%"),
    ],
)
def test_a_url_has_one_form(given: str, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    store = open_store(given)
    assert store.url == url
    assert open_store(store.url).url == url


@pytest.mark.parametrize(
    "url",
    [
        "", "models", "./models", "~/models", "file:", "file://", "file://models", "file://server/share",
        "file:///srv/a?b=c", "file:///srv/a#b", "file:///srv/a%00b", "s3:", "s3://", "s3:///prefix", "s3:bucket",
        "s3://bucket/a?region=b", "s3://bucket/a#b", "s3://key:secret@bucket/a", "s3://bucket/../other",
        "s3://bucket/a\nb", "S3://bucket", "gs://", "gs://bucket/a?b", "az://", "http://host/bucket", "hf://org/name",
    ],
)  # fmt: skip
def test_what_is_no_store(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_store(url)
    assert caught.value.hint


def test_a_directory_does_not_load_what_a_bucket_needs() -> None:
    """A help page must stay quick."""
    program = "import sys; from packtrain.storage import open_store; open_store('/x'); print('obstore' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "False"
