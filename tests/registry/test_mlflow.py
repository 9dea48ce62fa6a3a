"""MLflow's REST API as Packtrain asks it: who asks, what errors mean, what is tried again."""

from __future__ import annotations

import base64
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from packtrain.errors import Conflict, NotFound, PacktrainError, Refused, Unavailable, UsageError
from packtrain.registry import mlflow
from packtrain.registry.mlflow import PAUSES, Mlflow, server
from packtrain.testing import fake_mlflow
from packtrain.testing.fake_mlflow import Fake

LOCALHOST = Path(__file__).parent / "localhost.pem"


class Scripted:
    """A server that answers what it is told to, and remembers what it was asked."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.answers: list[tuple[int, str]] = []
        self.headers: list[dict[str, str]] = []
        scripted = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None: ...

            def do_GET(self) -> None:
                scripted.headers.append({key.lower(): value for key, value in self.headers.items()})
                status, body = scripted.answers.pop(0) if scripted.answers else (200, "3.17.2")
                self.send_response(status)
                self.send_header("Content-Length", str(len(body.encode())))
                self.end_headers()
                self.wfile.write(body.encode())

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if context:
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    found = Scripted()
    yield found
    found.stop()


def ask(url: str, **environ: str) -> str:
    return Mlflow(url, environ=environ, sleep=lambda _: None).server_version()


# Who asks


def test_credentials_come_from_mlflows_own_variables(scripted: Scripted) -> None:
    url = f"http://127.0.0.1:{scripted.port}"
    ask(url)
    ask(url, MLFLOW_TRACKING_USERNAME="ada", MLFLOW_TRACKING_PASSWORD="s3cret")
    ask(url, MLFLOW_TRACKING_USERNAME="ada", MLFLOW_TRACKING_TOKEN="t0ken")
    ask(f"http://eve:pw@127.0.0.1:{scripted.port}")
    found = [headers.get("authorization") for headers in scripted.headers]
    basic = "Basic " + base64.b64encode(b"ada:s3cret").decode()
    assert found == [None, basic, "Bearer t0ken", "Basic " + base64.b64encode(b"eve:pw").decode()]


def test_a_password_in_the_address_is_never_shown() -> None:
    client = Mlflow("http://ada:s3cret@127.0.0.1:9", environ={}, sleep=lambda _: None)
    with pytest.raises(Unavailable) as caught:
        client.server_version()
    assert "s3cret" not in f"{caught.value} {caught.value.hint} {client.url}"
    assert "MLflow at http://127.0.0.1:9 cannot be reached" in str(caught.value)


def test_a_certificate_of_ones_own(tmp_path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(LOCALHOST)
    found = Scripted(context)
    url = f"https://localhost:{found.port}"
    try:
        with pytest.raises(Unavailable, match="CERTIFICATE_VERIFY_FAILED") as caught:
            ask(url)
        assert "MLFLOW_TRACKING_SERVER_CERT_PATH" in caught.value.hint
        assert ask(url, MLFLOW_TRACKING_SERVER_CERT_PATH=str(LOCALHOST)) == "3.17.2"
        assert ask(url, MLFLOW_TRACKING_INSECURE_TLS="true") == "3.17.2"
    finally:
        found.stop()
    with pytest.raises(UsageError, match="cannot be used"):
        ask(url, MLFLOW_TRACKING_SERVER_CERT_PATH=str(tmp_path / "nothing.pem"))
    with pytest.raises(UsageError, match="both set"):
        ask(url, MLFLOW_TRACKING_SERVER_CERT_PATH="x", MLFLOW_TRACKING_INSECURE_TLS="true")


def test_which_server_a_setting_names() -> None:
    assert server("http://mlflow:5000/") == "http://mlflow:5000"
    assert server("mlflow", {"MLFLOW_TRACKING_URI": "https://mlflow.example.com"}) == "https://mlflow.example.com"
    with pytest.raises(UsageError, match="MLFLOW_TRACKING_URI is not set"):
        server("mlflow", {})
    for wrong in ("sqlite:///mlflow.db", "http://", "./mlruns"):
        with pytest.raises(UsageError, match="not supported"):
            server(wrong)


# What errors mean

MEANINGS = [
    (404, '{"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "Registered Model with name=x not found"}', NotFound),
    (400, '{"error_code": "INVALID_PARAMETER_VALUE", "message": "Registered model alias nope not found."}', NotFound),
    (400, '{"error_code": "RESOURCE_ALREADY_EXISTS", "message": "x"}', Conflict),
    (400, '{"error_code": "INVALID_PARAMETER_VALUE", "message": "Invalid model version source"}', Refused),
    (401, "You are not authenticated", Refused),
    (403, '{"error_code": "PERMISSION_DENIED", "message": "Permission denied"}', Refused),
    (403, "Invalid Host header - possible DNS rebinding attack detected", Refused),
    (404, "<html>nginx</html>", Refused),
    (500, '{"error_code": "INTERNAL_ERROR", "message": "x"}', Unavailable),
]


@pytest.mark.parametrize(("status", "body", "kind"), MEANINGS)
def test_errors_are_what_they_mean(scripted: Scripted, status: int, body: str, kind: type[PacktrainError]) -> None:
    scripted.answers = [(status, body)]
    with pytest.raises(kind) as caught:
        ask(f"http://127.0.0.1:{scripted.port}")
    assert type(caught.value) is kind
    assert f"MLflow at http://127.0.0.1:{scripted.port}" in str(caught.value)
    assert caught.value.hint or kind in (NotFound, Conflict)
    assert len(scripted.headers) == 1


def test_something_else_at_the_address_is_named(scripted: Scripted) -> None:
    scripted.answers = [(200, "<html>Welcome</html>")]
    client = Mlflow(f"http://127.0.0.1:{scripted.port}", environ={})
    with pytest.raises(Refused, match="not as an MLflow server does"):
        client.model("m")


# What is tried again


def test_a_busy_server_is_asked_again_after_growing_pauses(scripted: Scripted) -> None:
    scripted.answers = [(503, ""), (429, ""), (200, "3")]
    pauses: list[float] = []
    assert Mlflow(f"http://127.0.0.1:{scripted.port}", environ={}, sleep=pauses.append).server_version() == "3"
    assert pauses == list(PAUSES[:2])
    scripted.answers = [(503, "")] * 9
    with pytest.raises(Unavailable):
        ask(f"http://127.0.0.1:{scripted.port}")
    assert len(scripted.answers) == 9 - 1 - len(PAUSES)


def test_what_makes_something_new_is_never_asked_twice(fake: Fake) -> None:
    client = Mlflow(fake.url, environ={}, sleep=lambda _: None)
    client.create_model("m", "")
    client.create_model("m", "")
    fake.faults = lambda call, count: fake_mlflow.LOST
    with pytest.raises(Unavailable):
        client.create_version("m", "s3://b/p", run_id=None, tags={})
    fake.faults = lambda call, count: None
    assert [version.number for version in client.versions("m")] == [1]


def test_pages_are_followed(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    client = Mlflow(fake.url, environ={})
    for name in "abc":
        client.create_model(name, "")
    ask_fake = fake.answer

    def paged(method: str, call: str, asked: dict[str, str]) -> dict[str, object]:
        found = ask_fake(method, call, asked)
        if call == "registered-models/search":
            start = int(asked.get("page_token", 0))
            found = {"registered_models": found["registered_models"][start : start + 2]}
            if start == 0:
                found["next_page_token"] = "2"
        return found  # type: ignore[no-any-return]

    fake.answer = paged  # type: ignore[method-assign]
    assert [name for name, _ in client.models()] == ["a", "b", "c"]
    assert mlflow.PAGE > 2
