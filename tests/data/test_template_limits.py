"""A chat template is a program from outside: it is stopped where it does not end or asks for too much."""

from __future__ import annotations

import signal
import threading
import time

import pytest

from rlhf_lightning.data import template_limits as limits
from rlhf_lightning.data.template_limits import limited
from rlhf_lightning.data.templates import render_conversation
from rlhf_lightning.errors import UserError
from tests.tiny import tiny_tokenizer

MESSAGES = [{"role": "user", "content": "a"}]


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(1000000000) %}{% endfor %}",
        "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
        "{% set ns = namespace(s='x') %}{% for i in range(64) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
        "{{ 'x' * 10000000000 }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_a_template_that_does_not_end_or_grows_is_one_line(template, monkeypatch):
    monkeypatch.setattr(limits, "SECONDS", 0.5)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template + "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    started = time.monotonic()
    with pytest.raises(UserError, match="chat template"):
        render_conversation(tokenizer, MESSAGES)
    assert time.monotonic() - started < 30


def test_the_limits_end_with_the_block():
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGALRM)
    with pytest.raises(TimeoutError), limited(seconds=0.01):
        time.sleep(1)
    assert (resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGALRM)) == before
    time.sleep(0.05)


def test_an_alarm_of_the_users_rings_all_the_same():
    rung = []
    former = signal.signal(signal.SIGALRM, lambda *_: rung.append(1))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with limited():
            pass
        time.sleep(0.1)
    finally:
        signal.signal(signal.SIGALRM, former)
    assert rung == [1]


def test_other_threads_may_render():
    done = []

    def render() -> None:
        with limited():
            done.append(1)

    thread = threading.Thread(target=render)
    thread.start()
    thread.join()
    assert done == [1]
