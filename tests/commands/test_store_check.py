"""Only what waiting cannot fix stops a run before it begins; a store that does not answer does not."""

from __future__ import annotations

import http.server
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from rlhf_lightning.errors import UserError
from rlhf_lightning.tracking.store_check import check_tracking


def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[str]:
    """Start a server that answers every request with the test's status."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(request.param)
            self.end_headers()
            self.wfile.write(b"<html>no</html>")

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{made.server_port}"
        made.shutdown()


def test_a_dead_server_is_no_reason_not_to_train() -> None:
    started = time.monotonic()
    check_tracking(f"http://127.0.0.1:{closed_port()}")
    check_tracking("http://no-such-host.invalid:5000")
    assert time.monotonic() - started < 8


def test_a_server_that_never_answers_holds_the_start_for_seconds_only() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        started = time.monotonic()
        check_tracking(f"http://127.0.0.1:{listener.getsockname()[1]}")
    assert time.monotonic() - started < 6


@pytest.mark.parametrize("server", [200, 404, 429, 500, 503], indirect=True)
def test_whatever_else_a_server_answers_may_pass(server: str) -> None:
    check_tracking(f"http://{server}")


@pytest.mark.parametrize("server", [401, 403], indirect=True)
def test_a_wrong_password_is_said_without_the_password(server: str) -> None:
    with pytest.raises(UserError, match=r"^logger.tracking_uri: http://\*\*\*@127.*refuses the login") as error:
        check_tracking(f"http://ana:hunter2@{server}")
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize(
    "uri",
    [
        *("gopher://x", "http://", "http:///path", "http://host:port", "http://host:99999", "http://a b", "sqlite://"),
        *("sqlite:mlflow.db", "sqlite:///", "postgresql://host:x/y", "mysql+no_driver://host/db"),
    ],
)
def test_what_is_not_an_address_is_refused(uri: str) -> None:
    with pytest.raises(UserError, match=r"^logger\.tracking_uri: "):
        check_tracking(uri)


def test_the_folder_of_a_new_sqlite_store_is_made(empty_folder) -> None:
    check_tracking("sqlite:///deep/down/mlflow.db")
    assert (empty_folder / "deep" / "down").is_dir()
