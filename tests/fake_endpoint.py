"""A server for OpenAI's chat completions, as far as a judge uses them, which fails as a test demands."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Asked = dict[str, Any]


def echo(question: str) -> str:
    return question


def prefers_good(question: str) -> str:
    """Return a verdict for the answer that says `good`; none if a question says `silent`."""
    if "silent" in question:
        return "I would rather not."
    return (
        f"Reasons.\nVerdict: {'A' if 'good' in question.partition('[Answer A]')[2].partition('[Answer B]')[0] else 'B'}"
    )


class FakeServer(ThreadingHTTPServer):
    """Answers from a script of (status, headers, body), then with chat completions that `answer` makes of questions.

    Args:
        answer: question -> text; if log-probabilities are requested, its last letter is the likely token.
        stop_after: after this many answers, further ones wait until `go_on` is set, and do not count until then.
    """

    def __init__(self, answer: Callable[[str], str] = echo, stop_after: int | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer, self.stop_after = answer, stop_after
        self.script: list[tuple[int, dict[str, str], str]] = []
        self.asked: list[Asked] = []
        self.keys: list[str | None] = []
        self.answered: list[str] = []
        self.go_on, self.stopped, self.lock = threading.Event(), threading.Event(), threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: FakeServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server, question = self.server, body["messages"][0]["content"]
        with server.lock:
            server.asked.append(body)
            server.keys.append(self.headers.get("Authorization"))
            waits = server.stop_after is not None and len(server.asked) > server.stop_after
        if waits:
            server.stopped.set()
            server.go_on.wait()
        text = server.answer(question)
        likely = {"A": -0.2, "B": -1.8} if not text.endswith("Verdict: B") else {"A": -1.8, "B": -0.2}
        top = [{"token": f" {token}", "logprob": value} for token, value in {**likely, "the": -4.0, "7": -3.0}.items()]
        answer = {
            "choices": [{"message": {"content": text}, "logprobs": {"content": [{"top_logprobs": top}]}}],
            "usage": {"prompt_tokens": 7, "completion_tokens": 2},
        }
        with server.lock:
            status, headers, content = server.script.pop(0) if server.script else (200, {}, json.dumps(answer))
        with contextlib.suppress(OSError):  # the client may be gone
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if "Content-Length" not in headers:
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content.encode())
            if not waits:
                with server.lock:
                    server.answered.append(question)

    def log_message(self, *arguments: object) -> None:
        pass


@contextlib.contextmanager
def serving(answer: Callable[[str], str] = echo, stop_after: int | None = None) -> Iterator[FakeServer]:
    """Run a server while the block does."""
    with FakeServer(answer, stop_after) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.go_on.set()
            server.shutdown()
            thread.join()
