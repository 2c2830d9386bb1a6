"""The judge: both orders, parsing, position bias; the client with a server that fails in every way."""

from __future__ import annotations

import json
import math
import socket
import sqlite3
import threading
import time
from email.utils import formatdate

import pytest

from rlhf_lightning.errors import UserError
from rlhf_lightning.feedback.judge import (
    judge_by_logprobs,
    judge_by_reasons,
    position_bias,
)
from rlhf_lightning.feedback.records import Response, Task
from rlhf_lightning.judging.comparing import Compared, as_text, parse_verdict
from rlhf_lightning.judging.constitution import read_constitution
from rlhf_lightning.judging.endpoint import ChatEndpoint
from tests.fake_endpoint import serving


def tasks(count):
    texts = [("good", "bad") if i % 2 else ("bad", "good") for i in range(count)]
    return [Task(str(i), "pair", f"p{i}", (Response(a), Response(b))) for i, (a, b) in enumerate(texts)]


def logit(quality, position):
    """Return a model that sees `quality` logits between the answers and `position` for the first one."""

    def logprobs(questions):
        for question in questions:
            first_is_good = question.index("[Answer A]\ngood") if "[Answer A]\ngood" in question else None
            value = position + (quality if first_is_good is not None else -quality)
            yield -math.log1p(math.exp(-value)), -math.log1p(math.exp(value))

    return lambda questions: list(logprobs(questions))


def test_the_average_of_both_orders_has_no_position_bias_where_quality_is_even():
    """The probability of the better answer is (s(q + p) + s(q - p)) / 2, whichever is shown first."""
    verdicts = judge_by_logprobs(tasks(4), logit(1.0, 2.0))
    sigma = [1 / (1 + math.exp(-x)) for x in (1.0 + 2.0, 1.0 - 2.0)]
    for i, verdict in enumerate(verdicts):
        better = verdict.probability if i % 2 else 1 - verdict.probability
        assert better == pytest.approx(sum(sigma) / 2)
        assert verdict.answer().choice == (0 if i % 2 else 1)


@pytest.mark.parametrize("position", [-3.7, -0.1, 1e-9, 0.3, 2.2, 5.0])
def test_a_position_bias_alone_is_a_tie(position):
    for verdict in judge_by_logprobs(tasks(3), logit(0.0, position)):
        assert verdict.probability == 0.5 and verdict.answer().verdict == "tie"


def test_a_bias_that_is_always_the_same_has_an_interval():
    first = position_bias([Compared(0.5, 1.0, 0.0, "p")] * 10).first
    assert first.value == 1.0 and (first.low, first.high) == pytest.approx((0.7225, 1.0), abs=1e-4)
    first = position_bias([Compared(0.5, 1.0, 0.0, "p")] * 4 + [Compared(0.75, 1.0, 0.5, "p")]).first
    assert first.low < first.value and first.high == 1.0


def test_ties_in_both_orders_are_consistent():
    assert position_bias([Compared(0.5, 0.5, 0.5, "p")] * 10).consistent.value == 1.0
    assert position_bias([Compared(0.75, 0.5, 1.0, "p")] * 10).consistent.value == 0.0


@pytest.mark.parametrize(("quality", "position", "consistent"), [(1.0, 0.0, 1), (0.5, 3.0, 0), (0.5, -3.0, 0)])
def test_position_bias_is_measured(quality, position, consistent):
    bias = position_bias(judge_by_logprobs(tasks(20), logit(quality, position)))
    expected = sum(1 / (1 + math.exp(-(position + q))) for q in (quality, -quality)) / 2
    assert bias.first.value == pytest.approx(expected)
    assert bias.consistent.value == consistent
    assert bias.first.low <= bias.first.value <= bias.first.high


def test_generated_verdicts_are_parsed_or_refused():
    def generate(questions):
        for question in questions:
            if "p2" in question:
                yield "I would rather not."
            else:
                yield f"Reasons.\nVerdict: {'A' if '[Answer A]' + chr(10) + 'good' in question else 'B'}"

    verdicts, refused = judge_by_reasons(tasks(4), lambda questions: list(generate(questions)))
    assert refused == ["2"]
    assert [verdict.probability for verdict in verdicts] == [0.0, 1.0, 1.0]
    assert verdicts[0].answer().choice == 1


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Verdict: A", 1.0),
        ("**Verdict:** B", 0.0),
        ("verdict - tie", 0.5),
        ("Verdict: (B)", 0.0),
        ("Verdict: A\nVerdict: B", None),
        ("Verdict: A or B", None),
        ("Verdict: Apple", None),
        ("The answer A", None),
        ("", None),
    ],
)
def test_parse_verdict(text, value):
    assert parse_verdict(text) == value


def test_principles_are_drawn_by_task_and_seed(tmp_path):
    path = tmp_path / "constitution.yaml"
    path.write_text("principles:\n  - be kind\n  - be true\n")
    principles = read_constitution(path)
    drawn = [verdict.principle for verdict in judge_by_logprobs(tasks(30), logit(1, 0), principles, seed=1)]
    assert set(drawn) == {"be kind", "be true"}
    assert drawn == [verdict.principle for verdict in judge_by_logprobs(tasks(30), logit(1, 0), principles, seed=1)]
    wrong = ("", "[]", "principles: 3", "- 1", ": :", "principles: [a]\nprinciples: [b]", "principles: [a]\nmore: [b]")
    for content in (*wrong, '- "a\\ud800"'):
        path.write_text(content)
        with pytest.raises(UserError, match=r"judge\.constitution"):
            read_constitution(path)


def test_a_judge_without_numbers_or_for_a_ranking_is_refused():
    with pytest.raises(UserError, match="finite"):
        judge_by_logprobs(tasks(1), lambda questions: [(math.nan, 0.0)] * len(questions))
    ranking = Task("r", "ranking", "p", tuple(map(Response, "abc")))
    with pytest.raises(UserError, match="compares pairs"):
        judge_by_logprobs([ranking], logit(1, 0))


@pytest.fixture
def server():
    with serving() as server:
        yield server


@pytest.fixture
def waits():
    return []


def endpoint(server, waits, **settings):
    return ChatEndpoint(server.url, "m", sleep=waits.append, **settings)


def test_answers_come_in_order_and_a_second_run_asks_nothing(server, waits, tmp_path):
    questions = [f"question {i}" for i in range(20)]
    first = endpoint(server, waits, cache=tmp_path / "new" / "cache.db", key="secret-key")
    assert first.generate(questions) == questions
    assert (first.usage.requests, first.usage.prompt_tokens, first.usage.completion_tokens) == (20, 140, 40)
    assert set(server.keys) == {"Bearer secret-key"}
    again = endpoint(server, waits, cache=tmp_path / "new" / "cache.db")
    assert again.generate([*questions, "new"]) == [*questions, "new"]
    assert (again.usage.requests, again.usage.cached, len(server.asked)) == (1, 20, 21)
    warmer = endpoint(server, waits, cache=tmp_path / "new" / "cache.db", settings={"temperature": 1.0})
    warmer.generate(questions[:1])
    assert warmer.usage.requests == 1


def test_what_may_pass_is_tried_again_after_the_time_that_the_server_names(server, waits):
    server.script = [
        (429, {"Retry-After": "7"}, "slow down"),
        (503, {}, ""),
        (200, {}, "<html>"),
        (200, {}, '{"choices": []}'),
    ]
    client = endpoint(server, waits)
    assert client.generate(["hello"]) == ["hello"]
    assert client.usage.retries == 4
    assert waits == [7.0, 14.0, 28.0, 56.0]


@pytest.mark.parametrize(
    ("named", "waits_for"),
    [
        ("120", 120.0),
        ("3600", 3600.0),
        ("0", 1.0),
        ("-5", 1.0),
        ("nan", 1.0),
        ("inf", 1.0),
        ("soon", 1.0),
        ("30", 30.0),
    ],
)
def test_the_time_that_the_server_names_is_kept(server, waits, named, waits_for, caplog):
    server.script = [(429, {"Retry-After": named}, ""), (503, {}, "")]
    assert endpoint(server, waits).generate(["hello"]) == ["hello"]
    assert waits == [waits_for, min(2 * waits_for, 60.0)]
    assert (f"asks to wait {named} s (HTTP 429)" in caplog.text) == (waits_for > 60)


@pytest.mark.parametrize(("ahead", "expected"), [(30, 30), (300, 300), (-30, 1)])
def test_the_server_may_name_a_date(server, waits, ahead, expected):
    server.script = [(503, {"Retry-After": formatdate(time.time() + ahead, usegmt=True)}, "")]
    assert endpoint(server, waits).generate(["hello"]) == ["hello"]
    assert waits == [pytest.approx(expected, abs=2)]


@pytest.mark.parametrize("named", ["3601", "1e300", "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_a_server_that_asks_for_hours_is_one_line(server, waits, named):
    server.script = [(429, {"Retry-After": named}, "")]
    with pytest.raises(UserError, match=r"^judge\.url: .* it asks to wait \d+ s \(HTTP 429\), longer than 3600 s; run"):
        endpoint(server, waits).generate(["hello"])
    assert waits == []


def test_what_does_not_pass_is_one_line_without_the_key(server, waits):
    server.script = [(401, {}, '{"error":\n"wrong key"}')]
    with pytest.raises(UserError, match=r"HTTP 401.*wrong key") as raised:
        endpoint(server, waits, key="sk-1234567890abcdefghijklmn").generate(["hello"])
    assert "sk-1234567890" not in str(raised.value)
    assert "\n" not in str(raised.value)
    assert waits == []


def test_a_dead_endpoint_is_one_line(waits):
    dead = ChatEndpoint("http://127.0.0.1:9/v1", "m", attempts=3, sleep=waits.append)
    with pytest.raises(UserError, match=r"judge\.url: .*it does not answer .*check that the server is running"):
        dead.generate(["hello"])
    assert waits == []
    with pytest.raises(UserError, match="must begin with http"):
        ChatEndpoint("ftp://x", "m")


def test_an_endpoint_that_fails_for_good_is_given_up_and_what_it_has_answered_is_kept(server, waits, tmp_path):
    client = endpoint(server, waits, attempts=3, cache=tmp_path / "cache.db", parallel=1)
    client.generate(["one"])
    server.script = [(503, {}, "")] * 3
    with pytest.raises(UserError, match=r"no answer in 3 attempts.*HTTP 503.*check that the server is running"):
        client.generate(["one", "two"])
    assert len(waits) == 2
    again = endpoint(server, waits, cache=tmp_path / "cache.db")
    assert again.generate(["one", "two"]) == ["one", "two"] and again.usage.requests == 1


def test_requests_keep_a_pace(server, waits):
    client = endpoint(server, waits, per_minute=60, parallel=1)
    client.generate(["a", "b", "c"])
    assert len(waits) == 2
    assert all(0 < wait <= 2 for wait in waits)


def test_log_probabilities_are_those_of_the_first_token(server, waits):
    client = endpoint(server, waits)
    assert client.logprobs(["hello"]) == [(-0.2, -1.8)]
    assert server.asked[-1]["max_tokens"] == 1
    assert client.logprobs(["hello"], ("A", "C")) == [(-0.2, -4.0)]
    with pytest.raises(UserError, match="none of C, D"):
        client.logprobs(["hello"], ("C", "D"))
    server.script = [(200, {}, '{"choices": [{"message": {"content": "A"}}]}')]
    with pytest.raises(UserError, match="generated verdicts"):
        client.logprobs(["hello"])


@pytest.mark.parametrize("top", [5, 0.5, math.nan, math.inf])
def test_probabilities_above_1_are_none(server, waits, top):
    listed = [{"token": "A", "logprob": top}, {"token": "B", "logprob": -1.0}]
    answer = {"choices": [{"message": {"content": "A"}, "logprobs": {"content": [{"top_logprobs": listed}]}}]}
    server.script = [(200, {}, json.dumps(answer))]
    with pytest.raises(UserError, match="log-probabilities above 0"):
        endpoint(server, waits).logprobs(["hello"])


@pytest.mark.parametrize(
    "usage", [5, [1], "x", {"prompt_tokens": "x"}, {"prompt_tokens": -5, "completion_tokens": 1e300}]
)
def test_what_is_no_count_of_tokens_is_not_counted(server, waits, usage):
    server.script = [(200, {}, json.dumps({"choices": [{"message": {"content": "a"}}], "usage": usage}))]
    client = endpoint(server, waits)
    assert client.generate(["hello"]) == ["a"]
    assert (client.usage.requests, client.usage.prompt_tokens, client.usage.completion_tokens) == (1, 0, 0)


@pytest.mark.parametrize("content", [5, {"a": 1}, [{"type": "text", "text": "a"}]])
def test_content_that_is_no_text_is_a_malformed_answer(server, waits, content):
    server.script = [(200, {}, json.dumps({"choices": [{"message": {"content": content}}]}))]
    client = endpoint(server, waits)
    assert client.generate(["hello"]) == ["hello"] and client.usage.retries == 1


def test_an_answer_without_text_is_silence(server, waits):
    server.script = [(200, {}, json.dumps({"choices": [{"message": {"content": None}}]}))]
    assert endpoint(server, waits).generate(["hello"]) == [""]


def test_an_answer_that_is_cut_short_or_nested_without_end_is_tried_again(server, waits):
    server.script = [(200, {"Content-Length": "1000"}, '{"a"'), (200, {}, "[" * 100_000)]
    client = endpoint(server, waits)
    assert client.generate(["hello"]) == ["hello"] and client.usage.retries == 2


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_named_and_not_followed(server, waits, status):
    server.script = [(status, {"Location": "http://elsewhere/v1"}, "")]
    with pytest.raises(UserError, match=rf"redirects to http://elsewhere/v1 \(HTTP {status}\), which is not followed"):
        endpoint(server, waits).generate(["hello"])
    assert waits == [] and len(server.asked) == 1


def test_a_damaged_answer_in_the_cache_is_asked_again(server, waits, tmp_path):
    cache = tmp_path / "cache.db"
    for damaged in ("{bad", "null", "[]", "{}", "5"):
        endpoint(server, waits, cache=cache).generate(["hello"])
        with sqlite3.connect(cache) as opened:
            opened.execute("UPDATE answers SET answer = ?", (damaged,))
        client = endpoint(server, waits, cache=cache)
        assert client.generate(["hello"]) == ["hello"] and client.usage.requests == 1


def test_what_does_not_speak_http_is_one_line(waits):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]

        def answer():
            with listening.accept()[0] as opened:
                opened.recv(1000)
                opened.sendall(b"garbage\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(UserError, match=r"^judge\.url: .*it does not answer \(BadStatusLine: garbage"):
            ChatEndpoint(f"http://127.0.0.1:{port}/v1", "m", sleep=waits.append).generate(["hello"])
        thread.join()


def test_the_same_judge_runs_on_an_endpoint(server, waits):
    (verdict,) = judge_by_logprobs(tasks(1), endpoint(server, waits).logprobs)
    assert verdict.probability == pytest.approx(0.5)
    assert position_bias([verdict]).consistent.value == 0


def test_a_judge_reads_the_tools_that_a_message_calls():
    called = {"role": "assistant", "tool_calls": [{"function": {"name": "add", "arguments": '{"a": 1}'}}]}
    given = {"role": "assistant", "content": "Adding.", "tool_calls": [{"name": "add", "arguments": {"a": 2}}]}
    text = as_text([{"role": "user", "content": "1 + 1?"}, called, given, {"role": "tool", "content": None}])
    assert text == ('user: 1 + 1?\nassistant: [calls add({"a": 1})]\nassistant: Adding.\n[calls add({"a": 2})]\ntool: ')
