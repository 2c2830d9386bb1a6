import pytest
import torch

from rlhf_lightning.algorithms import RewardShaping, RunningMoments
from rlhf_lightning.errors import UserError
from rlhf_lightning.experience.reward_shaping import shape_scores
from rlhf_lightning.experience.score_checks import ConstantScores, check_scale


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
    shaped = shape_scores(torch.ones(4), torch.ones(4).bool(), RewardShaping(normalize=True), moments)
    assert shaped.tolist() == [0.0] * 4


def test_scores_that_differ_by_rounding_are_constant() -> None:
    """Otherwise 0.1 + 0.2 and 0.3 would become scores of 1 and -1."""
    scores = torch.tensor([0.3, 0.3, 0.3, 0.3]) + torch.tensor([0.0, 3e-8, 0.0, -3e-8])
    assert scores.std() > 0
    moments = RunningMoments()
    moments.update(scores)
    shaped = shape_scores(scores, torch.ones(4).bool(), RewardShaping(normalize=True), moments)
    assert shaped.abs().max() < 1e-6


def test_normalise_then_clip_then_charge_for_a_missing_eos() -> None:
    moments = RunningMoments()
    moments.load_state_dict({"count": 2.0, "mean": 1.0, "m2": 8.0})  # std 2
    shaping = RewardShaping(normalize=True, clip=1.5, missing_eos_penalty=0.25)
    shaped = shape_scores(torch.tensor([2.0, 9.0, 9.0]), torch.tensor([True, True, False]), shaping, moments)
    assert shaped.tolist() == [0.5, 1.5, 1.25]


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
