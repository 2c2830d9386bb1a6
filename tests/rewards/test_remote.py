"""A reward behind an address: what is sent, what is accepted, and one line for everything else."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from rlhf_lightning.errors import UserError
from rlhf_lightning.rewards import RemoteReward, make_reward, remote

Answer = tuple[int, dict[str, str], bytes]


def lengths(body: dict[str, Any]) -> list[float | None]:
    return [float(len(each)) if each else None for each in body["completions"]]


class Server(ThreadingHTTPServer):
    """Answers from a script of (status, headers, body), then with what `answer` makes of a request."""

    def __init__(self, answer: Callable[[dict[str, Any]], Any]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer, self.script, self.asked, self.lock = answer, [], [], threading.Lock()  # type: ignore[var-annotated]
        self.keys: list[str | None] = []
        self.url = f"http://127.0.0.1:{self.server_port}/score"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.asked.append(body)
            self.server.keys.append(self.headers.get("Authorization"))
            status, headers, content = self.server.script.pop(0) if self.server.script else (200, {}, None)
        if content is None:
            content = json.dumps(self.server.answer(body)).encode()
        with contextlib.suppress(OSError):
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        pass


@contextlib.contextmanager
def serving(answer: Callable[[dict[str, Any]], Any] = lengths) -> Iterator[Server]:
    with Server(answer) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as found:
        yield found


def asking(server: Server, **settings: Any) -> RemoteReward:
    return RemoteReward(server.url, sleep=lambda seconds: None, **settings)


def test_requests_carry_texts_messages_and_columns_and_scores_keep_their_order(server: Server) -> None:
    talk = [{"role": "user", "content": "hi"}]
    texts = [str(10**i) for i in range(7)]
    scores = asking(server, batch_size=3)(
        ["p"] * 7, texts, messages=[talk, *[None] * 6], answer=[*range(7)], ended=[True] * 7
    )
    first = next(each for each in server.asked if each["columns"]["answer"][0] == 0)
    assert first == {
        "prompts": [talk, "p", "p"],
        "completions": [[{"role": "assistant", "content": "1"}], "10", "100"],
        "columns": {"answer": [0, 1, 2]},
    }
    assert scores == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    assert sorted(len(each["prompts"]) for each in server.asked) == [1, 3, 3]


def test_errors_that_pass_are_repeated_and_nothing_is_lost(server: Server) -> None:
    server.script += [(503, {}, b"busy"), (429, {"Retry-After": "2"}, b""), (500, {}, b"oops")]
    waits: list[float] = []
    reward = RemoteReward(server.url, batch_size=1, concurrency=1, attempts=4, sleep=waits.append)
    assert reward(["p", "q"], ["a", "bb"]) == [1.0, 2.0]
    assert waits == [1.0, 2.0, 4.0]
    server.script += [(503, {"Retry-After": "120"}, b""), (503, {}, b""), (429, {"Retry-After": "86400"}, b"")]
    with pytest.raises(UserError, match=r"^reward\.url: .*it asks to wait 86400 s \(HTTP 429\), longer than 3600 s"):
        reward(["p"], ["a"])
    assert waits[3:] == [120.0, 60.0]


def test_null_is_not_applicable_in_a_sum_and_an_object_may_hold_the_list() -> None:
    parts: Any = {
        "remote": {"url": "", "weight": 2.0},
        "words": {"function": "tests.rewards.test_rewards.count_words"},
    }
    with serving(lambda body: {"rewards": lengths(body)}) as server:
        parts["remote"]["url"] = server.url
        reward = make_reward(components=parts, attempts=2)
        assert reward(["p", "q"], ["abc", ""]) == [7.0, 0.0]
        assert reward.parts == {"remote": [3.0, None], "words": [1.0, 0.0]}  # type: ignore[attr-defined]


def test_the_key_is_sent_and_never_shown(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCORE_KEY", "secret-of-the-server")
    reward = asking(server, key_env="SCORE_KEY")
    assert reward(["p"], ["a"]) == [1.0] and server.keys == ["Bearer secret-of-the-server"]
    server.script.append((403, {}, b"bad key secret-of-the-server"))
    with pytest.raises(UserError, match=r"HTTP 403: bad key \*\*\*; check the address and the key") as error:
        reward(["p"], ["a"])
    assert "secret" not in str(error.value)
    with pytest.raises(UserError, match=r"^reward\.key_env: the environment variable NO_SUCH_KEY is not set"):
        asking(server, key_env="NO_SUCH_KEY")


BAD: dict[str, tuple[Answer, str]] = {
    "too few": ((200, {}, b"[1.0]"), "returned 1 scores for 2 responses"),
    "nan": ((200, {}, b"[NaN, 1]"), "score 0 is nan"),
    "infinite": ((200, {}, b"[1, 1e999]"), "score 1 is inf"),
    "text": ((200, {}, b'["1", 1]'), "score 0 is '1'"),
    "not json": ((200, {}, b"<html>"), "the answer is not JSON: b'<html>'"),
    "deep": ((200, {}, b"[" * 100_000), "the answer is not JSON"),
    "no list": ((200, {}, b'{"score": 1}'), "the answer has no list of numbers"),
    "two lists": (
        (200, {}, b'{"scores": [1, 1], "rewards": [2, 2]}'),
        "the answer has scores and rewards, which differ",
    ),
    "empty": ((200, {}, b""), "the answer is not JSON: b''"),
    "not found": ((404, {}, b"no such page"), "HTTP 404: no such page; check the address"),
    "redirect": ((307, {"Location": "http://elsewhere/"}, b""), r"it redirects to http://elsewhere/ \(HTTP 307\)"),
    "moved": ((301, {"Location": "/there"}, b""), r"it redirects to /there \(HTTP 301\)"),
    "large": ((200, {}, b" " * 3000), "the answer is larger than 0 MiB"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_answer_is_one_line_at_once(kind: str, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    answer, message = BAD[kind]
    server.script += [answer, (200, {}, b"[1, 1]")]
    if kind == "large":
        monkeypatch.setattr(remote, "LARGEST_ANSWER", 2048)
    with pytest.raises(UserError, match=rf"^reward\.url: {server.url}: {message}") as error:
        asking(server)(["p", "q"], ["a", "b"])
    assert "\n" not in str(error.value) and len(server.asked) == 1


def test_a_server_that_is_gone_or_cuts_its_answers_is_one_line(server: Server) -> None:
    server.script += [(200, {"Content-Length": "900"}, b"[1")] * 2
    with pytest.raises(
        UserError, match=rf"^reward\.url: {server.url}: no answer in 2 attempts \(.*check that the serv"
    ):
        asking(server, attempts=2, timeout=0.2)(["p"], ["a"])
    with serving() as gone:
        url = gone.url
    with pytest.raises(UserError, match=rf"^reward\.url: {url}: no answer in 1 attempt \(.*refused"):
        RemoteReward(url, attempts=1)(["p"], ["a"])


def test_what_json_cannot_express_is_refused(server: Server) -> None:
    with pytest.raises(UserError, match="a column holds NaN or infinity"):
        asking(server)(["p"], ["\ud800"], weight=[float("nan")])
    assert asking(server)(["p"], ["\ud800"]) == [1.0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"url": "ftp://a"}, r'^reward\.url: found "ftp://a"; it must begin with http://'),
        ({"function": "a.b", "key_env": "K"}, r"^reward\.key_env: only a server asks for a key"),
        ({"url": "http://a", "function": "a.b"}, r"^reward\.function and reward\.url: only one source"),
        ({"url": "http://a", "dtype": "bfloat16"}, r"^reward\.dtype: only a reward model"),
        ({"components": {"a": {"url": "a"}}}, r"^reward\.components\.a\.url: found"),
        ({"components": {"a": {"url": "http://h:65536"}}}, r"^reward\.components\.a\.url: .*from 1 to 65535"),
        (
            {"url": "http://u:pw@h/x"},
            r"^reward\.url: found .*http://\*\*\*@h/x.* leave them out, .* by reward\.key_env; ",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_reward(**settings)
