"""New versions and archived ones in the storage class that was asked for, as a real S3 server has them."""

from __future__ import annotations

import uuid
from pathlib import Path

import botocore.session

from packtrain.flows.colder import SMALLEST
from packtrain.testing.servers import REGION, S3Server
from tests.conftest import Models
from tests.programs.conftest import Cli, environment


def classes(s3: S3Server, prefix: str) -> dict[str, set[str]]:
    """Of the large and of the small objects of versions."""
    client = botocore.session.Session().create_client(
        "s3",
        region_name=REGION,
        endpoint_url=s3.endpoint,
        aws_access_key_id=s3.access_key,
        aws_secret_access_key=s3.secret_key,
    )
    found: dict[str, set[str]] = {"large": set(), "small": set()}
    for each in client.list_objects_v2(Bucket=s3.bucket, Prefix=f"{prefix}/models/")["Contents"]:
        found["large" if each["Size"] >= SMALLEST else "small"].add(each["StorageClass"])
    return found


def test_archive_moves_large_files_to_another_class(tmp_path: Path, models: Models, s3_environment: S3Server) -> None:
    prefix = uuid.uuid4().hex
    cli = Cli(tmp_path, environment(tmp_path) | s3_environment.environment)
    cli.environment["PACKTRAIN_STORE"] = f"{s3_environment.url}/{prefix}"
    cli.run("publish", models.first, "--name", "llama")
    assert classes(s3_environment, prefix) == {"large": {"STANDARD"}, "small": {"STANDARD"}}
    archived = cli.json("archive", "llama/1", "--storage-class", "GLACIER_IR")
    assert archived["archived"] is True
    assert classes(s3_environment, prefix) == {"large": {"GLACIER_IR"}, "small": {"STANDARD"}}
    cli.run("archive", "llama/1", "--storage-class", "STANDARD_IA")  # as after an interruption
    assert classes(s3_environment, prefix)["large"] == {"STANDARD_IA"}
    cli.run("pull", "llama/1")


def test_new_versions_have_the_class_that_was_asked_for(
    tmp_path: Path, models: Models, s3_environment: S3Server
) -> None:
    prefix = uuid.uuid4().hex
    cli = Cli(tmp_path, environment(tmp_path) | s3_environment.environment)
    cli.environment["PACKTRAIN_STORE"] = f"{s3_environment.url}/{prefix}"
    cli.run("publish", models.first, "--name", "llama", "--storage-class", "STANDARD_IA")
    assert classes(s3_environment, prefix)["large"] == {"STANDARD_IA"}


def test_a_directory_has_no_storage_classes(cli: Cli, models: Models) -> None:
    cli.run("publish", models.first, "--name", "llama")
    refused = cli.run("archive", "llama/1", "--storage-class", "GLACIER_IR", code=2)
    assert "has no storage classes" in refused.stderr
    assert cli.json("models")[0]["archived"] is False
