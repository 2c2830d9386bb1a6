"""Token rewards and GAE compared with hand-written and looped oracles."""

from __future__ import annotations

import math

import pytest
import torch

from rlhf_lightning.functional import generalized_advantage_estimate, group_advantages, kl_estimate, token_rewards

NAN = float("nan")
LENGTHS = [9, 1, 5, 8]


def _mask() -> torch.Tensor:
    return (torch.arange(9) < torch.tensor(LENGTHS)[:, None]).float()


def _random(seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(4, 9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def _gae_oracle(rewards, values, length, gamma, lam) -> list[float]:
    """Return the definition, as a double loop: sum over l of (gamma lam)^l delta_{t+l}."""
    deltas = [
        rewards[t] + (gamma * values[t + 1] if t + 1 < length else 0.0) - values[t]  # nothing is worth more after EOS
        for t in range(length)
    ]
    return [sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, length)) for t in range(length)]


class TestTokenRewards:
    def test_six_token_oracle(self) -> None:
        """A response of 4 tokens, the 4th its EOS, then 2 of padding: the score lands on the EOS."""
        kl = torch.tensor([[0.1, -0.2, 0.3, 0.4, NAN, 5.0]])
        mask = torch.tensor([[1.0, 1.0, 1.0, 1.0, 0.0, 0.0]])
        rewards = token_rewards(torch.tensor([2.0]), kl, mask, kl_coef=0.5)
        expected = torch.tensor([[-0.05, 0.10, -0.15, 1.80, 0.0, 0.0]])
        assert torch.allclose(rewards, expected, atol=1e-7)
        assert (rewards[0, 4:] == 0).all()

    def test_a_cut_response_is_scored_on_its_last_token(self) -> None:
        rewards = token_rewards(torch.tensor([3.0]), torch.zeros(1, 3), torch.ones(1, 3), kl_coef=1.0)
        assert rewards.tolist() == [[0.0, 0.0, 3.0]]

    def test_a_gap_in_the_mask_holds_nothing_and_does_not_move_the_score(self) -> None:
        rewards = token_rewards(torch.tensor([3.0]), torch.ones(1, 5), torch.tensor([[0, 1, 0, 1, 0]]), kl_coef=1.0)
        assert rewards.tolist() == [[0.0, -1.0, 0.0, 2.0, 0.0]]

    @pytest.mark.parametrize("kl_coef", [0.0, 0.3, torch.tensor(0.3)])
    def test_sum_over_a_response_is_score_less_coefficient_times_summed_kl(self, kl_coef) -> None:
        kl, mask, scores = kl_estimate(_random(0), _random(1)), _mask(), _random(2)[:, 0]
        kl[mask == 0] = NAN
        rewards = token_rewards(scores, kl, mask, kl_coef)
        for row, length in enumerate(LENGTHS):
            expected = scores[row].item() - float(kl_coef) * sum(kl[row, :length].tolist())
            assert rewards[row].sum().item() == pytest.approx(expected, abs=1e-7)

    def test_row_without_tokens_has_no_reward(self) -> None:
        rewards = token_rewards(torch.tensor([2.0, 2.0]), torch.ones(2, 2), torch.tensor([[0, 0], [1, 0]]), 0.5)
        assert rewards.tolist() == [[0.0, 0.0], [1.5, 0.0]]

    def test_gradients_reach_scores_and_kl(self) -> None:
        mask = _mask()
        kl, scores = _random(0).requires_grad_(), _random(2)[:, 0].clone().requires_grad_()
        assert torch.autograd.gradcheck(lambda scores, kl: token_rewards(scores, kl, mask, 0.3), (scores, kl))

    def test_half_precision_is_computed_in_float32(self) -> None:
        kl = torch.full((1, 2), 0.01, dtype=torch.bfloat16)
        rewards = token_rewards(torch.tensor([8.0], dtype=torch.bfloat16), kl, torch.ones(1, 2), 0.1)
        assert rewards.dtype == torch.float32
        assert rewards[0, 1].item() == pytest.approx(8 - 0.1 * kl[0, 1].item(), abs=1e-6)  # bfloat16 would give 8

    def test_bad_shapes_are_refused(self) -> None:
        with pytest.raises(ValueError, match=r"`scores` has shape \[2, 1\]; expected \[2\]"):
            token_rewards(torch.zeros(2, 1), torch.zeros(2, 3), torch.ones(2, 3), 0.1)
        with pytest.raises(ValueError, match=r"`mask` has shape \[3\]; expected \[2, 3\]"):
            token_rewards(torch.zeros(2), torch.zeros(2, 3), torch.ones(3), 0.1)
        with pytest.raises(ValueError, match=r"`kl` has shape \[2\]; expected 2 dimension"):
            token_rewards(torch.zeros(2), torch.zeros(2), torch.ones(2), 0.1)


class TestGAE:
    @pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (0.99, 0.0), (0.0, 0.5)])
    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
    def test_equals_the_looped_definition(self, gamma, lam, dtype, tolerance) -> None:
        rewards, values, mask = _random(0, dtype), _random(1, dtype), _mask()
        advantages, returns = generalized_advantage_estimate(rewards, values, mask, gamma, lam)
        assert advantages.dtype == returns.dtype == dtype
        for row, length in enumerate(LENGTHS):
            oracle = _gae_oracle(rewards[row].tolist(), values[row].tolist(), length, gamma, lam)
            assert advantages[row, :length].tolist() == pytest.approx(oracle, rel=tolerance, abs=tolerance)
            expected_returns = [a + v for a, v in zip(oracle, values[row].tolist(), strict=False)]
            assert returns[row, :length].tolist() == pytest.approx(expected_returns, rel=tolerance, abs=tolerance)
            assert (advantages[row, length:] == 0).all()
            assert (returns[row, length:] == 0).all()

    @pytest.mark.parametrize("garbage", [NAN, math.inf, 1e6])
    def test_bitwise_unchanged_by_anything_after_eos(self, garbage) -> None:
        rewards, values, mask = _random(0, torch.float32), _random(1, torch.float32), _mask()
        before = generalized_advantage_estimate(rewards, values, mask)
        rewards[mask == 0], values[mask == 0] = garbage, garbage
        after = generalized_advantage_estimate(rewards, values, mask)
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))

    def test_bitwise_unchanged_by_padding_on_either_side(self) -> None:
        rewards, values, mask = _random(0, torch.float32), _random(1, torch.float32), _mask()
        advantages, returns = generalized_advantage_estimate(rewards, values, mask)
        padded = [torch.nn.functional.pad(x, (3, 2), value=v) for x, v in ((rewards, 4.0), (values, 5.0), (mask, 0.0))]
        wide_advantages, wide_returns = generalized_advantage_estimate(*padded)
        assert torch.equal(wide_advantages[:, 3:-2], advantages)
        assert torch.equal(wide_returns[:, 3:-2], returns)

    def test_lambda_1_is_monte_carlo(self) -> None:
        rewards, values, mask, gamma = _random(0), _random(1), _mask(), 0.9
        _, returns = generalized_advantage_estimate(rewards, values, mask, gamma, lam=1.0)
        for row, length in enumerate(LENGTHS):
            for t in range(length):
                monte_carlo = sum(gamma ** (k - t) * rewards[row, k].item() for k in range(t, length))
                assert returns[row, t].item() == pytest.approx(monte_carlo, abs=1e-12)

    def test_exact_values_of_a_certain_future_leave_no_advantage(self) -> None:
        """With gamma 1 and one score at the end, V = score everywhere: advantages 0 at any lambda."""
        mask = torch.tensor([[1, 1, 1, 0]])
        rewards = torch.tensor([[0.0, 0.0, 2.0, 0.0]])
        for lam in (0.0, 0.5, 1.0):
            advantages, _ = generalized_advantage_estimate(rewards, torch.full((1, 4), 2.0), mask, lam=lam)
            assert torch.equal(advantages, torch.zeros(1, 4))

    def test_a_gap_in_the_mask_is_stepped_over(self) -> None:
        rewards, values = _random(0)[:1], _random(1)[:1]
        kept = [0, 1, 4, 5, 7]
        mask = torch.zeros(1, 9)
        mask[:, kept] = 1
        with_gap = generalized_advantage_estimate(rewards, values, mask)
        without = generalized_advantage_estimate(rewards[:, kept], values[:, kept], torch.ones(1, 5))
        assert all(torch.equal(a[:, kept], b) for a, b in zip(with_gap, without, strict=True))

    def test_gradients(self) -> None:
        mask = _mask()[:, :5]
        inputs = (_random(0)[:, :5].clone().requires_grad_(), _random(1)[:, :5].clone().requires_grad_())
        assert torch.autograd.gradcheck(lambda r, v: generalized_advantage_estimate(r, v, mask, 0.9, 0.8), inputs)

    def test_half_precision_is_computed_in_float32(self) -> None:
        rewards, values, mask = _random(0, torch.bfloat16), _random(1, torch.bfloat16), _mask()
        half = generalized_advantage_estimate(rewards, values, mask)
        double = generalized_advantage_estimate(rewards.double(), values.double(), mask)
        for a, b in zip(half, double, strict=True):
            assert a.dtype == torch.float32
            assert torch.allclose(a, b.float(), atol=1e-5)

    def test_empty_mask_gives_0(self) -> None:
        nothing = generalized_advantage_estimate(torch.full((2, 3), NAN), torch.full((2, 3), NAN), torch.zeros(2, 3))
        assert all(torch.equal(x, torch.zeros(2, 3)) for x in nothing)

    def test_bad_arguments_are_refused(self) -> None:
        ones = torch.ones(2, 3)
        with pytest.raises(ValueError, match=r"`values` has shape \[2, 4\]; expected \[2, 3\]"):
            generalized_advantage_estimate(ones, torch.ones(2, 4), ones)
        with pytest.raises(ValueError, match=r"`gamma` is 1\.5"):
            generalized_advantage_estimate(ones, ones, ones, gamma=1.5)
        with pytest.raises(ValueError, match=r"`lam` is -0\.1"):
            generalized_advantage_estimate(ones, ones, ones, lam=-0.1)


def _groups(seed: int, groups: int = 5, size: int = 4) -> list[list[float]]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(groups, size, generator=generator, dtype=torch.float64).tolist()


@pytest.mark.parametrize("baseline", ["mean", "leave_one_out"])
@pytest.mark.parametrize("scale", ["std", "none"])
def test_group_advantages_equal_python(baseline, scale) -> None:
    groups = _groups(0)
    expected = []
    for group in groups:
        mean = sum(group) / len(group)
        std = math.sqrt(sum((score - mean) ** 2 for score in group) / (len(group) - 1))
        for score in group:
            over = score - (mean if baseline == "mean" else (sum(group) - score) / (len(group) - 1))
            expected.append(over / (std + 1e-6) if scale == "std" else over)
    found = group_advantages(torch.tensor(groups, dtype=torch.float64).flatten(), 4, baseline, scale)
    assert found.tolist() == pytest.approx(expected, abs=1e-9)


def test_leaving_one_out_is_the_mean_baseline_stretched() -> None:
    """A(mean) = (G - 1) / G A(leave one out), without a scale."""
    scores = torch.tensor(_groups(1), dtype=torch.float64).flatten()
    mean, other = (group_advantages(scores, 4, baseline, "none") for baseline in ("mean", "leave_one_out"))
    assert torch.allclose(mean, 0.75 * other)


@pytest.mark.parametrize("score", [0.1, 1 / 3, -7.7, 1e6 + 0.1])
@pytest.mark.parametrize("size", [2, 3, 7])
@pytest.mark.parametrize("baseline", ["mean", "leave_one_out"])
@pytest.mark.parametrize("scale", ["std", "none"])
def test_a_group_without_spread_is_exactly_zero(score, size, baseline, scale) -> None:
    """Its mean is rounded: the remainder, divided by an equally tiny standard deviation, would be a signal."""
    scores = torch.cat([torch.full((size,), score), torch.arange(size).float()])
    found = group_advantages(scores, size, baseline, scale)
    assert found[:size].tolist() == [0.0] * size
    assert found[size:].abs().sum() > 0


def test_group_advantages_refuse_groups_that_are_none() -> None:
    scores = torch.zeros(6, dtype=torch.float16)
    assert group_advantages(scores, 3).dtype == torch.float32
    for size, message in ((1, "`group_size` is 1"), (0, "`group_size` is 0"), (4, "`scores` has 6 rows")):
        with pytest.raises(ValueError, match=message):
            group_advantages(scores, size)
    with pytest.raises(ValueError, match="`baseline` is 'median'; expected one of mean, leave_one_out"):
        group_advantages(scores, 3, baseline="median")
    with pytest.raises(ValueError, match="`scale` is 'mad'"):
        group_advantages(scores, 3, scale="mad")
    with pytest.raises(ValueError, match=r"`scores` has shape \[2, 3\]"):
        group_advantages(scores.view(2, 3), 3)
