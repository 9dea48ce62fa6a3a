"""Containers of Azure storage accounts."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING
from urllib.parse import quote

import obstore
from obstore.exceptions import BaseError
from obstore.store import AzureStore

from packtrain.errors import PacktrainError, Refused, Unavailable, UsageError
from packtrain.storage.failures import Failure
from packtrain.storage.objects import PLAIN, STALL, Connection, Errors, ObjectStore
from packtrain.storage.wire import Link

if TYPE_CHECKING:
    from obstore.store import AzureConfig, ClientConfig, RetryConfig

SIGNED_FOR = timedelta(hours=1)  # for one request, which begins at once
_ACCOUNT = ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT")  # obstore's, and that of Azure's own command line
_KEY = ("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_ACCESS_KEY", "AZURE_STORAGE_MASTER_KEY", "AZURE_STORAGE_KEY")
_OTHERS = {
    "AZURE_STORAGE_SAS_TOKEN": "a shared access signature",
    "AZURE_STORAGE_SAS_KEY": "a shared access signature",
    "AZURE_STORAGE_TOKEN": "an access token",
    "AZURE_FEDERATED_TOKEN_FILE": "a workload identity",
    "AZURE_CLIENT_SECRET": "a service principal",
    "AZURE_USE_AZURE_CLI": "whoever signed in to Azure's command line",
}
SIGN_IN = (
    "Set AZURE_STORAGE_ACCOUNT_KEY, or AZURE_STORAGE_SAS_TOKEN, or AZURE_TENANT_ID, AZURE_CLIENT_ID and "
    "AZURE_CLIENT_SECRET, or AZURE_USE_AZURE_CLI=true after az login. For a public container set "
    "AZURE_SKIP_SIGNATURE=true."
)


def open_azure(container: str, prefix: str, *, stall: float = STALL) -> ObjectStore:
    """A store in a container, by Azure's environment variables. Asks nobody yet.

    ``prefix`` without slashes at its ends, or empty; ``stall`` in seconds. Raises UsageError for bad settings.
    """
    account = _variable(*_ACCOUNT)
    if account is None:
        raise UsageError(
            f"az://{container} says no storage account", hint="Set AZURE_STORAGE_ACCOUNT_NAME to the account's name."
        )
    endpoint = _variable("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT") or f"https://{account}.blob.core.windows.net"
    if not endpoint.startswith(("http://", "https://")):
        raise UsageError(
            f"AZURE_STORAGE_ENDPOINT={endpoint!r} is not a URL", hint="Unset it for the account's own address."
        )
    return ObjectStore(Azure(container, account, endpoint.rstrip("/")), prefix, stall=stall)


def where_credentials_are() -> str:
    """In words, and nothing of them."""
    if _skips():
        return "none: requests are not signed (AZURE_SKIP_SIGNATURE)"
    if name := next((name for name in _KEY if _variable(name)), None):
        return f"the account's key ({name})"
    found = next((name for name in _OTHERS if _variable(name)), None)
    return f"{_OTHERS[found]} ({found})" if found else "the managed identity of this machine, if it has one"


@dataclass(frozen=True)
class Azure:
    """The `Provider` of az://."""

    container: str
    account: str
    endpoint: str

    address = "AZURE_STORAGE_ENDPOINT"
    copies = 0  # Copy Blob may go on after its answer, and obstore does not wait for its end

    @property
    def url(self) -> str:
        return f"az://{self.container}"

    def connect(self, prefix: str | None, client: ClientConfig, retry: RetryConfig) -> AzureStore:
        config: AzureConfig = {"account_name": self.account, "endpoint": self.endpoint}
        if key := _variable(*_KEY):
            config["account_key"] = key
        try:
            return AzureStore(self.container, prefix=prefix, config=config, client_options=client, retry_config=retry)
        except (BaseError, ValueError) as error:
            what = str(error).partition("\n")[0]
            raise UsageError(f"the settings for Azure make no sense: {what}", hint=SIGN_IN) from error

    def multipart(self, prefix: str, silence: float, errors: Errors) -> None:
        """Objects are written whole."""

    def link(self, connection: Connection, key: str, path: str) -> Link | None:
        """Signed with the account's key. Other credentials would ask Azure for each signature."""
        if _skips():
            return Link(f"{self.endpoint}/{self.container}/{quote(path, safe='/~')}")
        if not _variable(*_KEY) or not PLAIN.fullmatch(path):
            return None
        return Link(obstore.sign(connection, "GET", key, expires_in=SIGNED_FOR))

    def is_taken(self, failure: Failure) -> bool:
        return failure.status == 412 or failure.code == "BlobAlreadyExists"

    def is_undone(self, failure: Failure) -> bool:
        """Turned away because the account has too much to do."""
        return failure.code == "ServerBusy"

    def explain(self, failure: Failure, place: str) -> PacktrainError | None:
        code, answer = failure.code, failure.answer
        if code == "ContainerNotFound":
            return Unavailable(
                f"there is no container {self.url} at {self.endpoint}",
                hint="Create the container (az storage container create), or correct its name or "
                "AZURE_STORAGE_ACCOUNT_NAME.",
            )
        if "/metadata/identity/" in failure.text:
            return Refused(f"no credentials for {self.url} were found", hint=SIGN_IN)
        if code == "AuthenticationFailed" or failure.status == 401:
            return Refused(
                f"{place}: the credentials are not accepted, or have expired: {answer}",
                hint=f"They are {where_credentials_are()}. Do they belong to the account {self.account}? They are "
                "refused, too, if this machine's clock is wrong.",
            )
        if code == "InvalidBlockList":
            return Unavailable(
                f"{place}: somebody else wrote it at the same time",
                hint="Azure keeps the parts of one writer only. Run the same command again.",
            )
        if failure.status == 403:
            return Refused(
                f"{place}: Azure refuses: {answer}",
                hint=f"The credentials are {where_credentials_are()}. Grant them a role: Storage Blob Data Reader to "
                "pull and serve, Storage Blob Data Contributor to publish and promote. Does the account's firewall let "
                "this machine in?",
            )
        return None


def _skips() -> bool:
    return os.environ.get("AZURE_SKIP_SIGNATURE", "").lower() in ("1", "true", "yes", "on", "y", "t")


def _variable(*names: str) -> str | None:
    """The first of these environment variables that is set and not empty."""
    return next((value for name in names if (value := os.environ.get(name))), None)
