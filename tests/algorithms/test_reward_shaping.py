from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf_lightning.algorithms import KLPenalty, RewardShaping, RunningMoments
from rlhf_lightning.errors import UserError
from rlhf_lightning.experience.reward_shaping import per_token, shape_scores
from rlhf_lightning.experience.score_checks import ConstantScores, check_scale
from rlhf_lightning.setting_rules import check_lengths
from tests.algorithms.conftest import ppo, trainer


def test_moments_of_batches_are_the_moments_of_all() -> None:
    values = torch.randn(100, generator=torch.Generator().manual_seed(0)) * 3 + 7
    moments = RunningMoments()
    for batch in values.split([1, 30, 69]):
        moments.update(batch)
    assert moments.mean == pytest.approx(float(values.double().mean()), abs=1e-12)
    assert moments.std == pytest.approx(float(values.double().std(correction=0)), abs=1e-12)
    again = RunningMoments()
    again.load_state_dict(moments.state_dict())
    assert vars(again) == vars(moments)


def test_constant_scores_do_not_divide_by_zero() -> None:
    moments = RunningMoments()
    moments.update(torch.ones(4))
    shaped = shape_scores(torch.ones(4), torch.ones(4).bool(), torch.ones(4), RewardShaping(normalize=True), moments)
    assert shaped.tolist() == [0.0] * 4


def test_scores_that_differ_by_rounding_are_constant() -> None:
    """Otherwise 0.1 + 0.2 and 0.3 would become scores of 1 and -1."""
    scores = torch.tensor([0.3, 0.3, 0.3, 0.3]) + torch.tensor([0.0, 3e-8, 0.0, -3e-8])
    assert scores.std() > 0
    moments = RunningMoments()
    moments.update(scores)
    shaped = shape_scores(scores, torch.ones(4).bool(), torch.ones(4), RewardShaping(normalize=True), moments)
    assert shaped.abs().max() < 1e-6


def test_normalise_then_clip_then_charge_for_a_missing_eos() -> None:
    moments = RunningMoments()
    moments.load_state_dict({"count": 2.0, "mean": 1.0, "m2": 8.0})  # std 2
    shaping = RewardShaping(normalize=True, clip=1.5, missing_eos_penalty=0.25)
    ended, lengths = torch.tensor([True, True, False]), torch.tensor([3.0, 3.0, 3.0])
    shaped = shape_scores(torch.tensor([2.0, 9.0, 9.0]), ended, lengths, shaping, moments)
    assert shaped.tolist() == [0.5, 1.5, 1.25]


LENGTHS = torch.tensor([1.0, 6.0, 7.0, 8.0, 10.0])


def shaped(shaping: RewardShaping, max_new_tokens: int | None = None) -> list[float]:
    scores, ended = torch.full((5,), 2.0), torch.ones(5).bool()
    return shape_scores(scores, ended, LENGTHS, shaping, RunningMoments(), max_new_tokens).tolist()


def test_tokens_beyond_the_allowed_length_cost_the_same_each() -> None:
    assert shaped(RewardShaping(length_penalty=0.5, length_allowed=6)) == [2.0, 2.0, 1.5, 1.0, 0.0]


def test_the_overlong_penalty_rises_over_its_buffer_up_to_the_length_limit() -> None:
    """Yu et al. 2025: 0 up to L - c tokens, then (n - (L - c)) / c, at most 1."""
    assert shaped(RewardShaping(overlong_penalty=1.0, overlong_buffer=4), 10) == [2.0, 2.0, 1.75, 1.5, 1.0]
    assert shaped(RewardShaping(overlong_penalty=2.0, overlong_buffer=2, overlong_length=8), 10) == [2, 2, 1, 0, 0]
    assert shaped(RewardShaping(), 10) == [2.0] * 5


def test_a_penalty_falls_after_clipping_and_adds_to_that_for_a_missing_eos() -> None:
    shaping = RewardShaping(clip=1.0, missing_eos_penalty=0.25, overlong_penalty=1.0, overlong_buffer=4)
    ended = torch.tensor([True, False])
    lengths = torch.tensor([10.0, 10.0])
    assert shape_scores(torch.tensor([9.0, 9.0]), ended, lengths, shaping, RunningMoments(), 10).tolist() == [
        0.0,
        -0.25,
    ]


def test_what_length_costs_is_logged_per_response(tmp_path: Path) -> None:
    """The score minus what is logged is what the token rewards add up to, without a KL penalty."""
    kl = KLPenalty(kind="fixed", coef=0.0, target=None, horizon=None)
    both = RewardShaping(length_penalty=0.5, length_allowed=2, overlong_penalty=3.0, overlong_buffer=4)
    module, data = ppo(shaping=both, kl=kl)
    fit = trainer(tmp_path)
    fit.fit(module, datamodule=data)
    logged, lengths = fit.callback_metrics, module.last_rollout.mask.sum(dim=1)
    each, overlong = 0.5 * (lengths - 2).clamp(min=0), 3.0 * ((lengths - 2) / 4).clamp(0, 1)
    assert float(each.std()) > 0
    assert float(logged["objective/length_penalty"]) == pytest.approx(float(each.mean()))
    assert float(logged["objective/overlong_penalty"]) == pytest.approx(float(overlong.mean()))
    lost = logged["objective/length_penalty"] + logged["objective/overlong_penalty"]
    assert float(logged["objective/scores"] - lost) == pytest.approx(float(logged["objective/rlhf_reward"]), abs=1e-5)

    module, data = ppo(shaping=RewardShaping(overlong_penalty=1.0, overlong_buffer=4), kl=kl)
    fit = trainer(tmp_path)
    fit.fit(module, datamodule=data)
    assert "objective/overlong_penalty" in fit.callback_metrics
    assert "objective/length_penalty" not in fit.callback_metrics


def test_a_length_normalised_score_is_per_token() -> None:
    scores = torch.tensor([6.0, -6.0, 0.0])
    lengths = torch.tensor([3.0, 1.0, 0.0])
    assert per_token(scores, lengths, RewardShaping(length_normalize=True)).tolist() == [2.0, -6.0, 0.0]
    assert per_token(scores, lengths, RewardShaping()) is scores


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"overlong_penalty": 1.0}, r"^algorithm\.shaping\.overlong_buffer: found null, but .*needs it"),
        (
            {"overlong_penalty": 1.0, "overlong_buffer": 9, "overlong_length": 8},
            r"overlong_buffer: found 9; must be at most algorithm\.shaping\.overlong_length, which is 8",
        ),
    ],
)
def test_an_overlong_penalty_without_its_lengths_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        RewardShaping(**settings)


def test_penalties_that_no_response_reaches_are_refused() -> None:
    check_lengths({"length_penalty": 1.0, "length_allowed": 63}, 64)
    check_lengths({"overlong_penalty": 1.0, "overlong_buffer": 64}, 64)
    with pytest.raises(UserError, match=r"length_allowed: found 64; no response has more than rollout\.max_new_tok"):
        check_lengths({"length_penalty": 1.0, "length_allowed": 64}, 64)
    with pytest.raises(UserError, match=r"overlong_length: found 80; the penalty begins after 64 tokens"):
        check_lengths({"overlong_penalty": 1.0, "overlong_buffer": 16, "overlong_length": 80}, 64)
    with pytest.raises(UserError, match=r"overlong_buffer: found 65; must be at most rollout\.max_new_tokens"):
        check_lengths({"overlong_penalty": 1.0, "overlong_buffer": 65}, 64)


def test_scores_whose_squares_overflow_name_the_reward() -> None:
    check_scale(torch.tensor([1e18, -1e18]), "reward.function")
    for bad in (1e19, -1e30, float("inf"), float("nan")):
        with pytest.raises(UserError, match=r"^reward\.function: a score of .*algorithm\.shaping\.clip"):
            check_scale(torch.tensor([0.0, bad]), "reward.function")


def test_constant_scores_are_said_once(caplog: pytest.LogCaptureFixture) -> None:
    scores = ConstantScores()
    for each in ([1.0, 2.0], [3.0, 3.0], [4.0, 4.0]):
        scores.look(each, "reward.function")
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith("reward.function: all 2 responses of an iteration have the score 3")
