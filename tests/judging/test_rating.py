"""Ratings and revisions, by a model that says what a test demands."""

from __future__ import annotations

import math

import pytest

from rlhf_lightning.errors import UserError
from rlhf_lightning.judging.comparing import Comparison, compare_by_reasons
from rlhf_lightning.judging.constitution import read_constitution
from rlhf_lightning.judging.rating import RATINGS, mean_rating, parse_rating, rate_by_logprobs, rate_by_reasons
from rlhf_lightning.judging.revising import revise
from rlhf_lightning.judging.settings import DEFAULTS, JudgeSettings, check_judge


def sure(rating):
    return [0.0 if each == rating else -math.inf for each in RATINGS]


def test_a_score_is_the_mean_rating_scaled():
    weights = [0.1, 0, 0, 0, 0.2, 0, 0, 0, 0.7]
    expected = (0.1 * 1 + 0.2 * 5 + 0.7 * 9 - 5) / 4
    assert mean_rating([math.log(w) if w else -math.inf for w in weights]) == pytest.approx(expected)
    assert [mean_rating(sure(each)) for each in "159"] == [-1.0, 0.0, 1.0]
    for wrong in ([0.0] * 8, [math.nan] * 9, [-math.inf] * 9):
        with pytest.raises(UserError, match="ratings 1 to 9"):
            mean_rating(wrong)


def test_answers_to_one_prompt_are_rated_by_one_principle():
    asked: list[str] = []

    def logprobs(questions):
        asked.extend(questions)
        return [sure("9") for _ in questions]

    principles = [f"principle {i}" for i in range(5)]
    prompts = [f"p{i}" for i in range(12)]
    assert rate_by_logprobs(prompts * 2, [f"x{i}" for i in range(24)], logprobs, principles, seed=1) == [1.0] * 24
    drawn = [next(each for each in principles if each in question) for question in asked]
    assert drawn[:12] == drawn[12:] and len(set(drawn)) > 1


@pytest.mark.parametrize(
    ("text", "value"),
    [("Rating: 7", 7), ("**Rating:** 3/9", 3), ("Rating: 10", None), ("Rating: 0", None), ("7", None), ("", None)],
)
def test_parse_rating(text, value):
    assert parse_rating(text) == value


def test_generated_ratings_are_scaled_alike():
    assert rate_by_reasons(["p", "q"], ["a", "b"], lambda questions: ["Rating: 9", "no"]) == [1.0, None]


def test_a_revision_follows_from_a_critique_by_a_principle():
    asked = []

    def generate(questions):
        asked.append(list(questions))
        return ["" if "bad" in each else f"said {len(asked)}" for each in questions]

    first, second = revise(["p", [{"role": "user", "content": "q"}]], ["x {y}", "z"], generate, ["be kind"], rounds=2)
    assert [(step.critique, step.revision) for step in first.steps] == [("said 1", "said 2"), ("said 3", "said 4")]
    assert "x {y}" in asked[0][0] and "said 1" in asked[1][0] and "said 2" in asked[2][0]
    assert second.row() == {
        "prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "said 4"}]
    }  # fmt: skip
    assert first.chain()["response"] == "x {y}"
    assert revise(["p"], ["bad"], generate) == [None]


def test_no_principle_comes_again_before_all_have():
    for number in range(20):
        (found,) = revise(["p"], [f"a{number}"], lambda asked: ["said"] * len(asked), ["x", "y", "z"], rounds=7)
        drawn = [step.principle for step in found.steps]
        assert set(drawn[:3]) == set(drawn[3:6]) == {"x", "y", "z"}


def test_the_shipped_constitution_is_one():
    principles = read_constitution()
    assert len(principles) >= 5 and len(set(principles)) == len(principles)


def test_the_defaults_are_all_the_settings():
    assert set(DEFAULTS) == set(JudgeSettings.__annotations__)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "judge.model: missing"),
        ({"model": "m", "url": "localhost:8000"}, 'judge.url: found "localhost:8000"; it must begin with http'),
        ({"model": "m", "per_minute": 5.0}, "judge.per_minute: it has no effect here, as there is no judge.url"),
        ({"model": "m", "url": "http://h/v1", "dtype": "bfloat16"}, "judge.dtype: it has no effect here"),
        ({"model": "m", "temperature": 0.5}, "judge.temperature: nothing is generated"),
        (
            {"model": "m", "url": "http://h/v1", "key_env": "NO_SUCH_VARIABLE"},
            "judge.key_env: the environment variable NO_SUCH",
        ),
        ({"model": "m", "constitution": "none.yaml"}, "judge.constitution: none.yaml does not exist"),
        ({"model": "m", "constitution": "/"}, "judge.constitution: / is a folder"),
        ({"model": "m", "constitution": "/dev/null"}, "judge.constitution: /dev/null is not a file"),
        ({"model": "m", "constitution": "a" * 5000}, "judge.constitution: a+ does not exist"),
        ({"model": "m", "url": "http://h:99999/v1"}, "judge.url: found .*its port must be from 1 to 65535"),
    ],
)
def test_settings_that_cannot_be_right_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        check_judge(settings)


@pytest.mark.parametrize(
    "ask",
    [
        lambda model: rate_by_logprobs(["p", "q"], ["a", "b"], model),
        lambda model: rate_by_reasons(["p", "q"], ["a", "b"], model),
        lambda model: compare_by_reasons([Comparison("p", "a", "b")], model),
        lambda model: revise(["p", "q"], ["a", "b"], model),
    ],
)
def test_a_model_that_answers_less_than_it_was_asked_is_refused(ask) -> None:
    with pytest.raises(UserError, match=r"^judge: 1 answers to 2 questions; the model must give one for each$"):
        ask(lambda questions: [None])
