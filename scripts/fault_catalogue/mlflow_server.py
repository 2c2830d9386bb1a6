"""MLflow's own server in a separate process, behind a proxy that answers badly when told to."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
import traceback
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

HTML = b"<html><body>welcome</body></html>"
ANSWERS = {  # mode -> status and body
    "500": ("500 Internal Server Error", b"<html>oops</html>"),
    "401": ("401 Unauthorized", b"You are not authenticated."),
    "403": ("403 Forbidden", b"Permission denied"),
    "429": ("429 Too Many Requests", b'{"error_code": "REQUEST_LIMIT_EXCEEDED", "message": "slow down"}'),
    "HTML": ("200 OK", HTML),
    "another JSON": ("200 OK", b'{"hello": 1}'),
    "a JSON list": ("200 OK", b"[1, 2]"),
}


class Server:
    """An MLflow server that can be killed, restarted, and told how to answer.

    Args:
        folder: has its existing database `mlflow.db` and its artifacts.
    """

    def __init__(self, folder: Path) -> None:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.port = int(listener.getsockname()[1])
        self.folder, self._mode, self._pid = folder, folder / "mode", 0
        self.uri = f"http://ana:hunter2@127.0.0.1:{self.port}"
        self.answer("as ever")

    def answer(self, mode: str) -> None:
        """From now on answer in this way: one of `ANSWERS`, `slowly`, `never`, `500 for artifacts` or `as ever`."""
        self._mode.write_text(mode)

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self._pid = os.fork()
        if self._pid == 0:
            try:
                os.setsid()
                self._serve()
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        address, end = f"http://127.0.0.1:{self.port}/health", time.monotonic() + 120
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(address, timeout=5).close()
                return
            time.sleep(0.05)
        raise TimeoutError("the MLflow server does not start")

    def kill(self) -> None:
        """Kill it with SIGKILL."""
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            self._pid = 0

    def mend(self) -> None:
        """Run it and let it answer normally."""
        self.answer("as ever")
        if not self._pid:
            self.start()

    def _serve(self) -> None:
        os.environ.update(
            _MLFLOW_SERVER_FILE_STORE=f"sqlite:///{self.folder}/mlflow.db",
            _MLFLOW_SERVER_ARTIFACT_ROOT="mlflow-artifacts:/",
            _MLFLOW_SERVER_ARTIFACT_DESTINATION=str(self.folder / "artifacts"),
            _MLFLOW_SERVER_SERVE_ARTIFACTS="true",
            MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE="true",
        )
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        from mlflow.server import app
        from werkzeug.serving import make_server

        make_server("127.0.0.1", self.port, self._faulty(app), threaded=True).serve_forever()

    def _faulty(self, app: Any) -> Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]:
        def answer(request: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
            mode = self._mode.read_text()
            if request["PATH_INFO"] == "/health":
                mode = "as ever"
            if mode == "500 for artifacts":
                mode = "500" if "artifacts" in request["PATH_INFO"] else "as ever"
            if mode in ANSWERS:
                status, body = ANSWERS[mode]
                start(status, [("Content-Type", "text/html"), ("Content-Length", str(len(body)))])
                return [body]
            if mode == "slowly":
                time.sleep(5)
            while self._mode.read_text() == "never":
                time.sleep(0.1)
            taken: Iterable[bytes] = app(request, start)
            return taken

        return answer
