"""Where S3 is and who we are there, from variables and the files of AWS's tools."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from packtrain.errors import UsageError
from packtrain.storage.aws import s3_config
from packtrain.storage.s3 import open_s3
from packtrain.testing.servers import S3Server


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home directory and no AWS variables."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".aws").mkdir()
    return tmp_path


def write(home: Path, *, credentials: str = "", config: str = "") -> None:
    (home / ".aws/credentials").write_text(credentials)
    (home / ".aws/config").write_text(config)


def test_nothing_is_set() -> None:
    assert s3_config() == {}


def test_the_default_profile(home: Path) -> None:
    write(
        home,
        credentials="[default]\naws_access_key_id = AK\naws_secret_access_key = S%K\n",
        config="[default]\nregion = eu-west-3\nendpoint_url = http://minio:9000/\n",
    )
    assert s3_config() == {
        "access_key_id": "AK",
        "secret_access_key": "S%K",
        "region": "eu-west-3",
        "endpoint": "http://minio:9000",
    }


def test_a_named_profile(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "team")
    write(
        home,
        credentials="[default]\naws_access_key_id = no\n[team]\naws_access_key_id = AK\naws_secret_access_key = SK\n"
        "aws_session_token = T\n",
        config="[default]\nregion = no\n[team]\nregion = no\n[profile team]\nregion = eu-west-3\n",
    )
    assert s3_config() == {
        "access_key_id": "AK",
        "secret_access_key": "SK",
        "session_token": "T",
        "region": "eu-west-3",
    }


def test_a_variable_wins_over_a_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(
        home,
        credentials="[default]\naws_access_key_id = file\naws_secret_access_key = file\n",
        config="[default]\nregion = file\nendpoint_url = http://file\n",
    )
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "variable")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "variable")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://all-services")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://s3")
    assert s3_config() == {"region": "variable", "endpoint": "http://s3"}  # obstore reads the keys itself


def test_the_files_may_be_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "c1").write_text("[default]\naws_access_key_id = AK\naws_secret_access_key = SK\n")
    (tmp_path / "c2").write_text("[default]\nregion = r\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "c1"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "c2"))
    assert s3_config() == {"access_key_id": "AK", "secret_access_key": "SK", "region": "r"}


def test_a_profile_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(UsageError, match="nobody"):
        s3_config()


@pytest.mark.parametrize("way", ["sso_session", "role_arn", "credential_process"])
@pytest.mark.parametrize("name", ["default", "team"])
def test_credentials_that_must_be_fetched_first(
    home: Path, monkeypatch: pytest.MonkeyPatch, way: str, name: str
) -> None:
    write(home, config=f"[default]\n{way} = x\n[profile team]\n{way} = x\n")
    if name != "default":
        monkeypatch.setenv("AWS_PROFILE", name)
    with pytest.raises(UsageError, match=way) as caught:
        s3_config()
    assert f"aws configure export-credentials --profile {name}" in caught.value.hint

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AK")  # as that command sets it
    assert s3_config() == {}


def test_a_service_account_does_not_ask_the_default_profile(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(home, config="[default]\nrole_arn = x\n")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", "/var/run/token")
    assert s3_config() == {}


def test_a_file_that_is_none(home: Path) -> None:
    write(home, config="no section\n")
    with pytest.raises(UsageError, match="config"):
        s3_config()


def test_settings_that_make_no_sense(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "minio:9000")
    with pytest.raises(UsageError, match="minio:9000"):
        open_s3("bucket", "")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://minio:9000")
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "perhaps")
    with pytest.raises(UsageError, match="perhaps"):
        open_s3("bucket", "")


def test_a_profile_opens_a_real_store(home: Path, s3: S3Server) -> None:
    write(
        home,
        credentials=f"[default]\naws_access_key_id = {s3.access_key}\naws_secret_access_key = {s3.secret_key}\n",
        config=f"[default]\nendpoint_url = {s3.endpoint}/\n",
    )
    store = open_s3(s3.bucket, "by-profile")
    store.create("k", b"text")
    assert store.get("k") == b"text"
