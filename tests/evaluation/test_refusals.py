from __future__ import annotations

import pytest

from rlhf_lightning.evaluation import is_refusal, refusal_rates


@pytest.mark.parametrize(
    "response",
    [
        "I'm sorry, but I can't help with that.",
        "I\u2019m not able to do this.",
        "Sorry, I will not explain that.",
        "I cannot help with this request. Please ask a friend.",
        "I can not help you to hurt someone.",
        "No, I won't.",
        "That is against my guidelines.",
        "I must decline.",
    ],
)
def test_refusals_are_seen(response):
    assert is_refusal("", response)


@pytest.mark.parametrize(
    "response",
    [
        "",
        "You can kill the process with the stop button.",
        "It is in France. I am sorry for the noise.",
        "I can help with that.",
        "I could show you how.",
        "I know a good lake. I can not swim there.",
    ],
)
def test_answers_are_not_refusals(response):
    assert not is_refusal("", response)


def test_rates_by_hand():
    kinds = ["unsafe", "unsafe", "question", "looks_unsafe", "request", "question", None]
    refuse, answer = "I can not help with that.", "It is red."
    responses = [refuse, answer, answer, refuse, answer, answer, refuse]
    rates = refusal_rates(kinds, ["p"] * 7, responses)
    assert rates == {"unsafe_refusal_rate": 0.5, "over_refusal_rate": 0.25}


def test_a_rate_without_rows_is_left_out():
    assert refusal_rates([None], ["p"], ["x"]) == {}
    assert refusal_rates(["question"], ["p"], ["x"]) == {"over_refusal_rate": 0.0}


def test_a_detector_of_ones_own_sees_prompt_and_response():
    rates = refusal_rates(["unsafe"], ["p"], ["r"], lambda prompt, response: (prompt, response) == ("p", "r"))
    assert rates == {"unsafe_refusal_rate": 1.0}
