"""HTTP to a vLLM server: JSON in, JSON out, retries, and errors that say what to do."""

from __future__ import annotations

import base64
import http.client
import json
import os
import time
from typing import Any
from urllib.parse import unquote, urlsplit

from rlhf_lightning.errors import UserError
from rlhf_lightning.secret_text import shown

CONNECT_SECONDS = 10.0
TRANSIENT = {502, 503, 504}  # from a proxy whose server is unavailable


class RefusedError(UserError):
    """The server refused. `status` is HTTP's; `unknown_path`: there is no such endpoint."""

    def __init__(self, message: str, status: int, unknown_path: bool) -> None:
        super().__init__(message)
        self.status, self.unknown_path = status, unknown_path


class VLLMClient:
    """Requests to one server.

    A request that cannot be delivered, or whose connection breaks, is sent again: every request here may be repeated.
    A request that takes too long is not, since the server may still be working on it.

    Args:
        address: such as `http://localhost:8000`, optionally with a user and password before the host, which are sent as
            HTTP basic authentication. Without them, the environment variable VLLM_API_KEY is sent if it is set.
        timeout: most seconds per answer.
        attempts: attempts per request.
        pause: seconds before the second attempt; doubled before each further one.
        key: where the user named the server.
        remedy: how the user can continue once it answers.
    """

    def __init__(
        self,
        address: str,
        timeout: float = 600.0,
        attempts: int = 5,
        pause: float = 1.0,
        key: str = "rollout.server",
        remedy: str = "go on with ckpt=last",
    ) -> None:
        self._address, self.timeout = address.rstrip("/"), timeout
        self.key, self.remedy = key, remedy
        self.address = shown(self._address)  # as shown in messages
        self.attempts, self.pause = attempts, pause

    def get(self, path: str) -> Any:
        """Return the answer to GET."""
        return self._ask("GET", path, None)

    def post(self, path: str, body: Any = None) -> Any:
        """Return the answer to POST; None if it is empty.

        Raises:
            RefusedError: the server refuses.
            UserError: it does not answer, or not with JSON.
        """
        return self._ask("POST", path, body)

    def _ask(self, method: str, path: str, body: Any) -> Any:
        trouble = ""
        for attempt in range(self.attempts):
            if attempt:
                time.sleep(self.pause * 2 ** (attempt - 1))
            try:
                status, text = self._send(method, path, body)
            except TimeoutError as error:
                raise UserError(
                    f"{self.key}: {self.address} has not answered {method} {path} within {self.timeout:g} s; "
                    f"{self._longer}{self.remedy} once it is well"
                ) from error
            except (OSError, http.client.HTTPException) as error:
                trouble = f"{type(error).__name__}: {error}"
                continue
            if status not in TRANSIENT:
                return self._read(method, path, status, text)
            trouble = f"HTTP {status}"
        raise UserError(
            f"{self.key}: {self.address} does not answer {method} {path} ({trouble}; {self.attempts} attempts); "
            f"start it again, then {self.remedy}"
        )

    @property
    def _longer(self) -> str:
        return "raise rollout.timeout, or " if self.key.startswith("rollout.") else ""

    def _send(self, method: str, path: str, body: Any) -> tuple[int, str]:
        parts = urlsplit(self._address)
        credentials, _, host = parts.netloc.rpartition("@")
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(host, timeout=min(CONNECT_SECONDS, self.timeout))
        headers = {"Content-Type": "application/json"}
        if credentials:
            headers["Authorization"] = f"Basic {base64.b64encode(unquote(credentials).encode()).decode()}"
        elif key := os.environ.get("VLLM_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        try:
            try:
                connection.connect()
            except TimeoutError as error:
                raise ConnectionError("no connection in time") from error
            connection.sock.settimeout(self.timeout)
            connection.request(method, parts.path + path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode("utf-8", "replace")
        finally:
            connection.close()

    def _read(self, method: str, path: str, status: int, text: str) -> Any:
        try:
            answer = json.loads(text) if text else None
        except ValueError:
            answer = text
        if status >= 400:
            unknown = status in (404, 405) and isinstance(answer, dict) and answer.get("detail") in _NO_ROUTE
            raise RefusedError(
                f"{self.key}: {self.address} refuses {method} {path}: HTTP {status}: {_short(_reason(answer))}",
                status,
                unknown,
            )
        return answer


_NO_ROUTE = ("Not Found", "Method Not Allowed")


def _reason(answer: Any) -> str:
    """Return the message in an error of OpenAI's form, or of FastAPI's, or else the whole answer."""
    if isinstance(answer, dict):
        error = answer.get("error", answer)
        if isinstance(error, dict):
            return str(error.get("message") or error.get("detail") or error)
        return str(error)
    return str(answer)


def _short(text: str, limit: int = 300) -> str:
    line = " ".join(text.split())
    return line if len(line) <= limit else line[:limit] + " ..."
