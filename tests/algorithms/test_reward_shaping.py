import pytest
import torch

from rlhf_lightning.algorithms import RewardShaping, RunningMoments
from rlhf_lightning.algorithms.reward_shaping import shape_scores


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
    """0.1 + 0.2 beside 0.3 would otherwise be scores of -1 and 1."""
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
