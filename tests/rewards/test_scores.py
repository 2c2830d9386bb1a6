"""One number per response, or one per token: what a reward may return."""

from typing import Any

import numpy as np
import pytest
import torch

from rlhf_lightning.data import PromptRow
from rlhf_lightning.errors import UserError
from rlhf_lightning.rewards import FunctionReward, WeightedSum, check_result, check_scores, sample_scores, score_samples
from tests.tiny import tiny_tokenizer

TOKENS = [[3, 4, 1], [5, 1]]


def of_tokens(prompts: list[str], responses: list[str], **columns: Any) -> list[list[float]]:
    return [[float(token) for token in each] for each in columns["sampled"].responses]


of_tokens.reads_tokens = True  # type: ignore[attr-defined]


def whole(prompts: list[str], responses: list[str], **columns: Any) -> list[float]:
    return [10.0, 20.0]


@pytest.mark.parametrize("kind", [list, lambda rows: tuple(map(tuple, rows)), lambda rows: [*map(np.array, rows)]])
def test_a_list_per_response_has_one_number_per_token_and_adds_up_to_the_score(kind: Any) -> None:
    scores = kind([[1.0, 2, 3], [0.5, 0.25]])
    assert check_result(scores, 2, "mine", lengths=[3, 2]) == [[1.0, 2.0, 3.0], [0.5, 0.25]]
    assert check_scores(scores, 2, "mine") == [6.0, 0.75]


def test_a_matrix_is_one_list_per_response() -> None:
    assert check_result(torch.ones(2, 3), 2, "mine", lengths=[3, 3]) == [[1.0] * 3] * 2
    with pytest.raises(UserError, match="returned 3 numbers for response 1, which has 2 tokens, its EOS included"):
        check_result(torch.ones(2, 3), 2, "mine", lengths=[3, 2])


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([[1.0, 2.0], [1.0]], "returned 1 numbers for response 1, which has 2 tokens, its EOS included"),
        ([[1.0, 2.0, 3.0], [1.0, 2.0]], "returned 3 numbers for response 0, which has 2 tokens"),
        ([[1.0, 2.0], 3.0], "returned a list for response 0 and 3.0 for response 1; return one number for"),
        ([1.0, [3.0, 1.0]], "returned a list for response 1 and 1.0 for response 0"),
        ([None, [3.0, 1.0]], "returned a list for response 1 and None for response 0"),
        ([[1.0, float("nan")], [1.0, 2.0]], "score 1 of response 0 is nan, expected a finite number"),
        ([[1.0, 2.0], ["1", 2.0]], "score 0 of response 1 is '1', expected a number"),
        ([[1.0, [2.0]], [1.0, 2.0]], r"score 1 of response 0 is \[2.0\], expected a number"),
        ([[1.0, 2.0], []], "returned 0 numbers for response 1"),
        ([[1.0, 2.0]], "returned 1 scores for 2 responses"),
        ([{"a": 1.0}, {"a": 2.0}], "score 0 is {'a': 1.0}, expected a number"),
    ],
)
def test_wrong_numbers_per_token_are_refused_in_one_line(scores: Any, message: str) -> None:
    with pytest.raises(UserError, match=f"^reward.function: mine: {message}") as found:
        check_result(scores, 2, "mine", "reward.function", lengths=[2, 2])
    assert "\n" not in str(found.value)


def test_without_lengths_only_an_empty_list_is_wrong() -> None:
    assert check_scores([[1.0], [1.0, 2.0]], 2, "mine") == [1.0, 3.0]
    with pytest.raises(UserError, match="an empty list for response 1"):
        check_scores([[1.0], []], 2, "mine")


def test_a_function_that_reads_tokens_is_given_them_and_its_lengths_are_checked() -> None:
    rows = [PromptRow([7], "p", {}, "rows.jsonl", 4), PromptRow([8], "q", {}, "rows.jsonl", 9)]
    asked = (tiny_tokenizer(), rows, TOKENS, [True, True])
    reward = FunctionReward(f"{__name__}.of_tokens")
    assert sample_scores(reward, *asked) == [[3.0, 4.0, 1.0], [5.0, 1.0]]
    assert score_samples(reward, *asked) == [8.0, 6.0]
    with pytest.raises(UserError, match=r"returned 2 numbers for response 0, which has 3.*prompt: rows.jsonl, row 4"):
        sample_scores(lambda prompts, responses, **columns: [[1.0, 2.0], [1.0, 2.0]], *asked)


def test_a_sum_places_whole_scores_on_the_last_token_beside_numbers_per_token() -> None:
    rows = [PromptRow([7], "p", {}), PromptRow([8], "q", {})]
    reward = WeightedSum({"tokens": of_tokens, "whole": whole}, {"tokens": 2.0, "whole": -1.0})
    found = sample_scores(reward, tiny_tokenizer(), rows, TOKENS, [True, True])
    assert found == [[6.0, 8.0, 2.0 - 10.0], [10.0, 2.0 - 20.0]]
    assert reward.parts == {"tokens": [8.0, 6.0], "whole": [10.0, 20.0]}


def test_parts_of_a_sum_cannot_disagree_about_the_number_of_tokens() -> None:
    parts = {"a": lambda p, r, **c: [[1.0, 2.0]], "b": lambda p, r, **c: [[1.0]]}
    with pytest.raises(UserError, match=r"^reward\.components\.b: returned 1 numbers for response 0, and another part"):
        WeightedSum(parts, {"a": 1.0, "b": 1.0})(["p"], ["r"])
