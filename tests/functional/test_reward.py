"""Reward-model losses and metrics compared with plain Python."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from rlhf_lightning.functional import (
    bradley_terry_loss,
    calibration_error,
    centering_penalty,
    preference_accuracy,
    ranked_preference_loss,
)

NAN = float("nan")


def _scores(n: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return (2 * torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).to(dtype)


def _log_loss(difference: float) -> float:
    return math.log1p(math.exp(-difference))


def _ranked_lists(sizes: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return all pairs of consecutive lists, best answer first, each weighted 1 / C(K, 2)."""
    pairs, weights, start = [], [], 0
    for size in sizes:
        its_pairs = list(itertools.combinations(range(start, start + size), 2))
        pairs += its_pairs
        weights += [1 / len(its_pairs)] * len(its_pairs)
        start += size
    return torch.tensor(pairs), torch.tensor(weights, dtype=torch.float64)


class TestBradleyTerry:
    @pytest.mark.parametrize("with_margin", [False, True])
    def test_equals_python(self, with_margin) -> None:
        chosen, rejected, margin = _scores(5), _scores(5, 1), _scores(5, 2).abs()
        loss = bradley_terry_loss(chosen, rejected, margin if with_margin else None)
        rows = zip(chosen.tolist(), rejected.tolist(), margin.tolist(), strict=True)
        expected = sum(_log_loss(c - r - (m if with_margin else 0)) for c, r, m in rows) / 5
        assert loss.item() == pytest.approx(expected, abs=1e-12)

    def test_gradient_is_the_probability_of_the_other_choice(self) -> None:
        chosen, rejected = _scores(5).requires_grad_(), _scores(5, 1)
        bradley_terry_loss(chosen, rejected).backward()
        assert torch.allclose(chosen.grad, -torch.sigmoid(rejected - chosen.detach()) / 5)
        margin = _scores(5, 2)
        assert torch.autograd.gradcheck(lambda c: bradley_terry_loss(c, rejected, margin), chosen)

    def test_half_precision_is_computed_in_float32(self) -> None:
        chosen, rejected = _scores(5, 0, torch.bfloat16), _scores(5, 1, torch.bfloat16)
        loss = bradley_terry_loss(chosen, rejected)
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(bradley_terry_loss(chosen.double(), rejected.double()).item(), abs=1e-6)

    def test_no_pairs_give_0(self) -> None:
        assert bradley_terry_loss(torch.zeros(0), torch.zeros(0)).item() == 0

    def test_bad_shapes_are_refused(self) -> None:
        with pytest.raises(ValueError, match=r"`rejected_scores` has shape \[3, 1\]; expected \[3\]"):
            bradley_terry_loss(torch.zeros(3), torch.zeros(3, 1))
        with pytest.raises(ValueError, match=r"`margin` has shape \[1\]; expected \[3\]"):
            bradley_terry_loss(torch.zeros(3), torch.zeros(3), torch.zeros(1))


class TestRankedPreferenceLoss:
    def test_every_prompt_counts_once(self) -> None:
        """InstructGPT's eq. 1: the mean over prompts of the mean over a prompt's pairs, lists of 2, 4 and 3."""
        scores = _scores(9)
        pairs, weights = _ranked_lists([2, 4, 3])
        means = []
        for start, size in ((0, 2), (2, 4), (6, 3)):
            its_scores = scores[start : start + size].tolist()
            losses = [_log_loss(its_scores[i] - its_scores[j]) for i in range(size) for j in range(i + 1, size)]
            means.append(sum(losses) / len(losses))
        assert ranked_preference_loss(scores, pairs, weights).item() == pytest.approx(sum(means) / 3, abs=1e-12)

    def test_lists_of_two_are_bradley_terry(self) -> None:
        scores, margin = _scores(8), _scores(4, 2)
        pairs, weights = _ranked_lists([2, 2, 2, 2])
        assert ranked_preference_loss(scores, pairs, weights, margin).item() == pytest.approx(
            bradley_terry_loss(scores[0::2], scores[1::2], margin).item(), abs=1e-12
        )

    @pytest.mark.parametrize("function", [ranked_preference_loss, centering_penalty])
    @pytest.mark.parametrize("denominator", [10.0, torch.tensor(10.0)])
    def test_denominator_replaces_the_sum_of_weights(self, function, denominator) -> None:
        scores, (pairs, weights) = _scores(9), _ranked_lists([2, 4, 3])
        whole = function(scores, pairs, weights).item()
        assert function(scores, pairs, weights, denominator=denominator).item() == pytest.approx(whole * 3 / 10)

    @pytest.mark.parametrize("garbage", [NAN, math.inf])
    def test_pairs_of_weight_0_are_never_read(self, garbage) -> None:
        clean = _scores(4).requires_grad_()
        dirty = torch.tensor([*clean.tolist()[:2], garbage, garbage], dtype=torch.float64, requires_grad=True)
        pairs, weights = torch.tensor([[0, 1], [2, 3]]), torch.tensor([1.0, 0.0], dtype=torch.float64)
        margins = torch.tensor([0.5, garbage], dtype=torch.float64)
        losses = []
        for scores in (clean, dirty):
            loss = ranked_preference_loss(scores, pairs, weights, margins) + centering_penalty(scores, pairs, weights)
            loss.backward()
            losses.append(loss.item())
        assert losses[0] == losses[1]
        assert torch.equal(clean.grad, dirty.grad)

    def test_gradcheck(self) -> None:
        scores, (pairs, weights) = _scores(9).requires_grad_(), _ranked_lists([2, 4, 3])
        margin = _scores(len(pairs), 2)
        assert torch.autograd.gradcheck(lambda s: ranked_preference_loss(s, pairs, weights, margin), scores)
        assert torch.autograd.gradcheck(lambda s: centering_penalty(s, pairs, weights), scores)

    @pytest.mark.parametrize("function", [ranked_preference_loss, centering_penalty])
    def test_nothing_to_compare_gives_0_and_no_gradient(self, function) -> None:
        scores = _scores(2).requires_grad_()
        for pairs, weights in (
            (torch.zeros(0, 2, dtype=torch.long), torch.zeros(0)),
            (torch.tensor([[0, 1]]), torch.zeros(1)),
        ):
            loss = function(scores, pairs, weights)
            (gradient,) = torch.autograd.grad(loss, scores)
            assert loss.item() == 0
            assert torch.equal(gradient, torch.zeros_like(scores))

    def test_half_precision_is_computed_in_float32(self) -> None:
        scores, (pairs, weights) = _scores(9, 0, torch.bfloat16), _ranked_lists([2, 4, 3])
        loss = ranked_preference_loss(scores, pairs, weights.float())
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(ranked_preference_loss(scores.double(), pairs, weights).item(), abs=1e-6)

    @pytest.mark.parametrize("function", [ranked_preference_loss, centering_penalty])
    def test_bad_arguments_are_refused(self, function) -> None:
        scores, pairs, weights = torch.zeros(3), torch.tensor([[0, 1], [1, 2]]), torch.ones(2)
        with pytest.raises(ValueError, match=r"`scores` has shape \[3, 1\]; expected \[N\]"):
            function(scores[:, None], pairs, weights)
        with pytest.raises(ValueError, match=r"`pairs` has shape \[2\]; expected \[M, 2\]"):
            function(scores, pairs[0], weights)
        with pytest.raises(ValueError, match=r"`pairs` has dtype torch\.float32; expected integers"):
            function(scores, pairs.float(), weights)
        with pytest.raises(ValueError, match=r"`pair_weights` has shape \[1\]; expected \[2\]"):
            function(scores, pairs, weights[:1])
        with pytest.raises(ValueError, match="`denominator` is 0"):
            function(scores, pairs, weights, denominator=0.0)

    def test_a_margin_that_would_broadcast_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"`margin` has shape \[1\]; expected \[2\]"):
            ranked_preference_loss(torch.zeros(3), torch.tensor([[0, 1], [1, 2]]), torch.ones(2), torch.zeros(1))


def test_centering_penalty_is_the_mean_squared_sum_and_vanishes_for_opposite_scores() -> None:
    scores, pairs = _scores(6), torch.tensor([[0, 1], [2, 3], [4, 5]])
    expected = sum((a + b) ** 2 for a, b in scores.view(3, 2).tolist()) / 3
    assert centering_penalty(scores, pairs, torch.ones(3)).item() == pytest.approx(expected, abs=1e-12)
    assert centering_penalty(torch.tensor([2.0, -2.0]), pairs[:1], torch.ones(1)).item() == 0


class TestPreferenceAccuracy:
    def test_ties_count_one_half(self) -> None:
        assert preference_accuracy(torch.ones(3), torch.ones(3)).item() == 0.5
        chosen, rejected = torch.tensor([3.0, 1.0, 1.0, 0.0]), torch.tensor([1.0, 1.0, 0.0, 5.0])
        assert preference_accuracy(chosen, rejected).item() == 2.5 / 4

    def test_swapping_the_pair_gives_the_complement(self) -> None:
        a, b = _scores(50), _scores(50, 1)
        assert preference_accuracy(a, b).item() == pytest.approx(1 - preference_accuracy(b, a).item())

    def test_a_nan_score_is_wrong_not_a_tie(self) -> None:
        assert preference_accuracy(torch.tensor([NAN, 1.0]), torch.tensor([0.0, NAN])).item() == 0

    def test_half_precision_and_no_pairs(self) -> None:
        accuracy = preference_accuracy(torch.ones(4097, dtype=torch.float16), torch.zeros(4097, dtype=torch.float16))
        assert accuracy.dtype == torch.float32
        assert accuracy.item() == 1
        assert preference_accuracy(torch.zeros(0), torch.zeros(0)).item() == 0

    def test_bad_shapes_are_refused(self) -> None:
        with pytest.raises(ValueError, match=r"`rejected_scores` has shape \[1\]; expected \[3\]"):
            preference_accuracy(torch.zeros(3), torch.zeros(1))


class TestCalibrationError:
    @pytest.mark.parametrize("bins", [1, 7, 10])
    def test_equals_python(self, bins) -> None:
        probabilities = torch.rand(200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        outcomes = torch.rand(200, generator=torch.Generator().manual_seed(1)) < 0.4
        members: dict[int, list[tuple[float, bool]]] = {}
        for p, o in zip(probabilities.tolist(), outcomes.tolist(), strict=True):
            members.setdefault(int(p * bins), []).append((p, o))
        expected = sum(
            len(bin_) / 200 * abs(sum(o for _, o in bin_) / len(bin_) - sum(p for p, _ in bin_) / len(bin_))
            for bin_ in members.values()
        )
        assert calibration_error(probabilities, outcomes, bins).item() == pytest.approx(expected, abs=1e-12)

    def test_certain_and_right_is_0_certain_and_wrong_is_1(self) -> None:
        probabilities = torch.tensor([0.0, 1.0, 1.0, 0.0])
        assert calibration_error(probabilities, probabilities).item() == 0
        assert calibration_error(probabilities, 1 - probabilities).item() == 1

    def test_outcomes_drawn_from_the_probabilities_are_calibrated(self) -> None:
        generator = torch.Generator().manual_seed(0)
        probabilities = torch.rand(100_000, generator=generator)
        outcomes = torch.bernoulli(probabilities, generator=generator)
        assert calibration_error(probabilities, outcomes).item() < 0.01
        assert calibration_error(probabilities.sqrt(), outcomes).item() > 0.1

    def test_no_predictions_give_0(self) -> None:
        assert calibration_error(torch.zeros(0), torch.zeros(0)).item() == 0

    def test_bad_arguments_are_refused(self) -> None:
        with pytest.raises(ValueError, match=r"`outcomes` has shape \[1\]; expected \[3\]"):
            calibration_error(torch.zeros(3), torch.zeros(1))
        with pytest.raises(ValueError, match="`bins` is 0"):
            calibration_error(torch.zeros(3), torch.zeros(3), bins=0)
