"""A chat template is an outside program: it is stopped if it does not end or asks for too much."""

from __future__ import annotations

import signal
import threading
import time

import pytest

from rlhf_lightning.data import template_limits as limits
from rlhf_lightning.data.template_limits import limited, running
from rlhf_lightning.data.templates import assistant_tokens, render_conversation
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


@pytest.mark.parametrize("template", ["{{ 9 ** 9 ** 9 }}", "{% set x = 10**10 %}", "{%- if 2**n -%}{% endif %}"])
def test_a_power_is_refused_before_it_is_computed(template):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(UserError, match=r"was stopped: it raises a number to a power"):
        render_conversation(tokenizer, MESSAGES)


def test_a_small_power_is_refused_as_well():
    with pytest.raises(TimeoutError, match="power"), running("{{ 2 ** 3 }}"):
        pass


@pytest.mark.parametrize("template", ["{% macro f() %}a{% endmacro %}{{ f(**{}) }}", "a ** b", "{{ '**' }}"])
def test_other_stars_are_not_powers(template):
    with running(template):
        pass


def test_a_text_out_of_proportion_is_refused():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ 'a' * 20000000 }}"
    with pytest.raises(UserError, match=r"was stopped: it makes 20,000,000 characters"):
        render_conversation(tokenizer, MESSAGES)


def test_a_template_that_is_slow_row_after_row_is_stopped(monkeypatch):
    monkeypatch.setattr(limits, "SLOW", 0.01)
    monkeypatch.setattr(limits, "PATIENCE", 0.05)

    def render(rows: int) -> None:
        for _ in range(rows):
            with running("a slow one"):
                time.sleep(0.02)

    render(1)
    with pytest.raises(TimeoutError, match="for every row"):
        render(9)


def test_the_mask_of_the_assistant_is_made_within_the_limits(monkeypatch):
    monkeypatch.setattr(limits, "SECONDS", 0.2)
    tokenizer = tiny_tokenizer()
    loop = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    block = "{% generation %}{{ m['content'] }}{% endgeneration %}"
    tokenizer.chat_template = f"{{% for m in messages %}}{block}{loop}{{% endfor %}}"
    messages = [*MESSAGES, {"role": "assistant", "content": "b"}]
    plain = tokenizer.apply_chat_template
    calls = []

    def render(given, **flags):
        calls.append(flags)
        return "a b" if not flags.get("tokenize") else plain(given, **flags)

    monkeypatch.setattr(tokenizer, "apply_chat_template", render, raising=False)
    with pytest.raises(UserError, match=r"chat template of .* was stopped: it has not ended within 0.2 s"):
        assistant_tokens(tokenizer, messages)
    assert calls[-1]["tokenize"]
