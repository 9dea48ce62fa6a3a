"""`packtrain doctor` as a process: a line a check, exit codes, and no secrets."""

from __future__ import annotations

from packtrain.testing.servers import S3Server
from tests.programs.conftest import Cli
from tests.programs.test_commands import documented, shape


def test_a_line_a_check(published: Cli) -> None:
    done = published.run("doctor", "--vllm", "sh")
    lines = done.stdout.splitlines()
    assert {line.split()[0] for line in lines} == {"ok", "warning", "->"}
    assert any(line.startswith("ok       packtrain           0.") for line in lines)
    assert [line.split()[1] for line in lines if line.startswith("warning")] == ["llamafactory"]
    assert done.stderr == "1 warning\n"
    checks = published.json("doctor")
    assert shape(checks) == shape(documented("doctor"))
    settings = next(check["what"] for check in checks if check["about"] == "settings")
    assert settings == (
        "store from PACKTRAIN_STORE; cache_dir from PACKTRAIN_CACHE_DIR; actor from PACKTRAIN_ACTOR; "
        "the others are defaults"
    )


def test_settings_that_are_wrong(cli: Cli) -> None:
    cli.environment["PACKTRAIN_STOER"] = "x"
    checks = cli.json("doctor")
    assert ("warning", "Is PACKTRAIN_STORE meant? Otherwise unset it.") in [(c["level"], c["fix"]) for c in checks]
    cli.environment["PACKTRAIN_STORE"] = "ftp://models"
    done = cli.run("doctor", code=2)
    assert "failure  settings            'ftp://models' is not a store" in done.stdout
    assert done.stderr == "1 failure and 1 warning\n"
    (cli.home / "packtrain.toml").write_text("store = 3\n")
    assert str(cli.home / "packtrain.toml") in cli.run("doctor", code=2).stdout


def test_the_exit_code_is_that_of_the_first_failure_and_secrets_stay_secret(cli: Cli, s3: S3Server) -> None:
    cli.environment |= s3.environment
    cli.environment["PACKTRAIN_STORE"] = f"{s3.url}/doctor-program"
    assert s3.secret_key not in cli.out("doctor")
    cli.environment["AWS_SECRET_ACCESS_KEY"] = "not-the-key"
    refused = cli.run("doctor", code=3)
    assert "not-the-key" not in refused.stdout + refused.stderr
    cli.environment["AWS_ENDPOINT_URL"] = "http://127.0.0.1:9"
    away = cli.run("doctor", code=7)
    assert "ok       cache " in away.stdout  # what does not rest on the store is looked at all the same
    cli.environment["AWS_PROFILE"] = "nobody"
    assert "there is no AWS profile 'nobody'" in cli.run("doctor", code=2).stdout
