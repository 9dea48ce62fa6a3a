"""What a store in an Azure container promises beyond the laws that all stores share (tests/conformance)."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from packtrain.errors import AlreadyExists, PacktrainError, Refused, Unavailable, UsageError
from packtrain.storage import azure, objects
from packtrain.storage.azure import open_azure
from packtrain.storage.objects import ObjectStore
from packtrain.testing.azurite import ACCOUNT, KEY, AzureServer
from tests.storage.scripted import Answer, ScriptedServer, answer, run, xml


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """No Azure variables, and short pauses."""
    monkeypatch.setattr(objects, "PAUSES", (0.01, 0.01))
    for name in [name for name in os.environ if name.startswith("AZURE_")]:
        monkeypatch.delenv(name)


@contextmanager
def scripted(monkeypatch: pytest.MonkeyPatch, *answers: Answer) -> Iterator[tuple[ScriptedServer, ObjectStore]]:
    with run(*answers) as script:
        for name, value in AzureServer(f"{script.url}/{ACCOUNT}", "container").environment.items():
            monkeypatch.setenv(name, value)
        yield script, open_azure("container", "prefix")


def test_an_account_must_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="says no storage account") as caught:
        open_azure("container", "")
    assert "AZURE_STORAGE_ACCOUNT_NAME" in caught.value.hint
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT", "account")  # as Azure's command line has it
    assert open_azure("container", "a").url == "az://container/a"
    monkeypatch.setenv("AZURE_STORAGE_KEY", "no base64!")
    with pytest.raises(UsageError, match="no sense"):
        open_azure("container", "")
    monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", "blob.example.com")
    with pytest.raises(UsageError, match=r"blob\.example\.com"):
        open_azure("container", "")


@pytest.mark.parametrize(
    ("variable", "what"),
    [
        ("AZURE_SKIP_SIGNATURE", "not signed"),
        ("AZURE_STORAGE_ACCOUNT_KEY", "the account's key"),
        ("AZURE_STORAGE_SAS_TOKEN", "a shared access signature"),
        ("AZURE_FEDERATED_TOKEN_FILE", "a workload identity"),
        ("NOTHING", "managed identity"),
    ],
)
def test_where_credentials_are(monkeypatch: pytest.MonkeyPatch, variable: str, what: str) -> None:
    monkeypatch.setenv(variable, "true")
    assert what in azure.where_credentials_are()


@pytest.mark.parametrize(
    ("status", "code", "expected", "hint"),
    [
        ("404 Not Found", "ContainerNotFound", Unavailable, "az storage container create"),
        ("403 Forbidden", "AuthenticationFailed", Refused, "clock"),
        ("403 Forbidden", "AuthorizationPermissionMismatch", Refused, "Storage Blob Data Contributor"),
        ("400 Bad Request", "InvalidBlockList", Unavailable, "again"),
        ("418 Teapot", "Surprise", Unavailable, "Try again"),
    ],
)
@pytest.mark.parametrize(
    "ask", [lambda store: store.get("k"), lambda store: store.create("k", b"x")], ids=["get", "create"]
)
def test_what_azure_says_becomes_a_hint(
    monkeypatch: pytest.MonkeyPatch,
    ask: Callable[[ObjectStore], object],
    status: str,
    code: str,
    expected: type[PacktrainError],
    hint: str,
) -> None:
    with scripted(monkeypatch, answer(status, xml(code))) as (_, store), pytest.raises(expected) as caught:
        ask(store)
    assert hint in caught.value.hint


def test_creating(monkeypatch: pytest.MonkeyPatch) -> None:
    busy, taken = answer("503 Busy", xml("ServerBusy")), answer("409 Conflict", xml("BlobAlreadyExists"))
    with scripted(monkeypatch, busy, taken) as (server, store), pytest.raises(AlreadyExists):
        store.create("k", b"x")
    assert len(server.requests) == 2
    lost = answer("500 Internal Server Error", xml("OperationTimedOut"))
    with scripted(monkeypatch, lost, taken) as (server, store), pytest.raises(Unavailable):
        store.create("k", b"x")
    assert len(server.requests) == 1


@pytest.mark.slow
def test_the_server_does_not_copy(azure_environment: AzureServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its copies may go on after the answer, so the caller streams."""
    for name, value in azure_environment.environment.items():
        monkeypatch.setenv(name, value)
    store = open_azure(azure_environment.container, uuid.uuid4().hex)
    store.create("source", b"text")
    told: list[int] = []
    assert not store.copy_from(store.locate("source"), "k", 4, told.append)
    assert [info.key for info in store.list("")] == ["source"] and sum(told) == 0


@pytest.mark.slow
def test_a_wrong_key(azure_environment: AzureServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**azure_environment.environment, "AZURE_STORAGE_ACCOUNT_KEY": f"{KEY[1:-2]}A=="}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Refused, match="403") as caught:
        open_azure(azure_environment.container, "x").get("k")
    assert "the account's key (AZURE_STORAGE_ACCOUNT_KEY)" in caught.value.hint
