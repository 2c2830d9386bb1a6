"""The clipped losses compared with a loop over tokens in plain Python."""

from __future__ import annotations

import math

import pytest
import torch

from rlhf_lightning.functional import cispo_loss, policy_gradient_loss, ppo_policy_loss, ppo_value_loss

NAN = float("nan")
LENGTHS = [6, 1, 4]


def _mask() -> torch.Tensor:
    return (torch.arange(6) < torch.tensor(LENGTHS)[:, None]).float()


def _three(scale: float = 0.5, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(3, 6, generator=generator, dtype=torch.float64) * scale).to(dtype) for _ in range(3)]


def _valid(*tensors: torch.Tensor) -> list[tuple[float, ...]]:
    return [tuple(x[row, t].item() for x in tensors) for row, n in enumerate(LENGTHS) for t in range(n)]


def _policy_oracle(tokens, clip_range) -> tuple[list[float], dict[str, float]]:
    losses, ratios, clipped = [], [], 0
    for new, old, advantage in tokens:
        ratio = math.exp(new - old)
        surrogate = ratio * advantage
        bounded = min(max(ratio, 1 - clip_range), 1 + clip_range) * advantage
        losses.append(-min(surrogate, bounded))
        ratios.append(ratio)
        clipped += bounded < surrogate
    n = len(tokens)
    kl = sum(math.exp(new - old) - 1 - (new - old) for new, old, _ in tokens) / n
    return losses, {
        "approx_kl": kl,
        "clip_fraction": clipped / n,
        "ratio_mean": sum(ratios) / n,
        "ratio_max": max(ratios),
    }


def _value_oracle(tokens, clip_range) -> tuple[list[float], float]:
    losses, clipped = [], 0
    for value, old, target in tokens:
        near = value if clip_range is None else min(max(value, old - clip_range), old + clip_range)
        losses.append(0.5 * max((value - target) ** 2, (near - target) ** 2))
        clipped += (near - target) ** 2 > (value - target) ** 2
    return losses, clipped / len(tokens)


class TestPolicyLoss:
    @pytest.mark.parametrize("clip_range", [0.05, 0.2, 0.5])
    def test_loss_and_stats_equal_python(self, clip_range) -> None:
        new, old, advantages = _three()
        losses, expected = _policy_oracle(_valid(new, old, advantages), clip_range)
        loss, stats = ppo_policy_loss(new, old, advantages, _mask(), clip_range)
        assert loss.item() == pytest.approx(sum(losses) / len(losses), abs=1e-12)
        assert {name: stat.item() for name, stat in stats.items()} == pytest.approx(expected, abs=1e-7)
        assert 0 < expected["clip_fraction"] < 1

    @pytest.mark.parametrize("denominator", [32.0, torch.tensor(32.0)])
    def test_denominator_replaces_the_count_in_the_loss_only(self, denominator) -> None:
        new, old, advantages = _three()
        loss, stats = ppo_policy_loss(new, old, advantages, _mask())
        other, other_stats = ppo_policy_loss(new, old, advantages, _mask(), denominator=denominator)
        assert other.item() == pytest.approx(loss.item() * sum(LENGTHS) / 32, abs=1e-12)
        assert stats == other_stats

    def test_with_a_shared_denominator_parts_sum_to_the_whole(self) -> None:
        new, old, advantages = _three()
        whole, _ = ppo_policy_loss(new, old, advantages, _mask())
        parts = [
            ppo_policy_loss(*(x[row : row + 1] for x in (new, old, advantages, _mask())), denominator=sum(LENGTHS))[0]
            for row in range(3)
        ]
        assert sum(parts).item() == pytest.approx(whole.item(), abs=1e-12)

    def test_at_ratio_1_the_gradient_is_the_policy_gradient(self) -> None:
        new, _, advantages = _three()
        new.requires_grad_()
        ppo_policy_loss(new, new.detach(), advantages, _mask())[0].backward()
        assert torch.allclose(new.grad, -advantages * _mask() / sum(LENGTHS), atol=1e-15)

    @pytest.mark.parametrize(("advantage", "ratio", "flows"), [(1, 1.3, 0), (1, 0.7, 1), (-1, 1.3, 1), (-1, 0.7, 0)])
    def test_gradient_stops_only_where_clipping_is_pessimistic(self, advantage, ratio, flows) -> None:
        new = torch.tensor([[ratio]], dtype=torch.float64).log().requires_grad_()
        zero = torch.zeros(1, 1, dtype=torch.float64)
        loss, stats = ppo_policy_loss(new, zero, torch.full_like(zero, advantage), torch.ones(1, 1))
        loss.backward()
        assert new.grad.item() == pytest.approx(-advantage * ratio * flows, abs=1e-12)
        assert stats["clip_fraction"].item() == 1 - flows

    def test_gradcheck(self) -> None:
        new, old, advantages = _three()
        mask = _mask()
        assert torch.autograd.gradcheck(
            lambda new: ppo_policy_loss(new, old, advantages, mask)[0], new.requires_grad_()
        )

    @pytest.mark.parametrize("garbage", [NAN, math.inf, -math.inf])
    def test_padding_is_never_read(self, garbage) -> None:
        mask = _mask()
        clean = _three()
        dirty = [x.masked_fill(mask == 0, garbage) for x in clean]
        gradients, results = [], []
        for new, old, advantages in (clean, dirty):
            new.requires_grad_()
            loss, stats = ppo_policy_loss(new, old, advantages, mask)
            loss.backward()
            gradients.append(new.grad)
            results.append([loss.detach(), *stats.values()])
        assert torch.equal(*gradients)
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))

    def test_largest_ratio_ignores_padding_also_when_all_are_below_1(self) -> None:
        new = torch.tensor([[0.5, 0.25, 1.0]]).log()
        _, stats = ppo_policy_loss(new, torch.zeros(1, 3), torch.ones(1, 3), torch.tensor([[1, 1, 0]]))
        assert stats["ratio_max"].item() == pytest.approx(0.5)
        assert stats["ratio_mean"].item() == pytest.approx(0.375)

    def test_stats_are_detached(self) -> None:
        new, old, advantages = _three()
        _, stats = ppo_policy_loss(new.requires_grad_(), old, advantages, _mask())
        assert not any(stat.requires_grad for stat in stats.values())

    def test_empty_mask_gives_0_and_no_gradient(self) -> None:
        new = torch.full((1, 2), NAN, requires_grad=True)
        loss, stats = ppo_policy_loss(new, torch.zeros(1, 2), torch.ones(1, 2), torch.zeros(1, 2))
        loss.backward()
        assert loss.item() == 0
        assert torch.equal(new.grad, torch.zeros(1, 2))
        assert all(stat.item() == 0 for stat in stats.values())

    def test_half_precision_is_computed_in_float32(self) -> None:
        half = _three(dtype=torch.bfloat16)
        loss, stats = ppo_policy_loss(*half, _mask())
        exact, _ = ppo_policy_loss(*(x.double() for x in half), _mask())
        assert loss.dtype == torch.float32
        assert {stat.dtype for stat in stats.values()} == {torch.float32}
        assert loss.item() == pytest.approx(exact.item(), abs=1e-6)

    def test_bad_arguments_are_refused(self) -> None:
        x = torch.zeros(2, 3)
        with pytest.raises(ValueError, match=r"`advantages` has shape \[2, 1\]; expected \[2, 3\]"):
            ppo_policy_loss(x, x, torch.zeros(2, 1), x)
        with pytest.raises(ValueError, match=r"`logprobs` has shape \[3\]; expected 2 dimension"):
            ppo_policy_loss(x[0], x[0], x[0], x[0])
        with pytest.raises(ValueError, match="`clip_range` is 0"):
            ppo_policy_loss(x, x, x, x, clip_range=0)
        with pytest.raises(ValueError, match="`denominator` is 0"):
            ppo_policy_loss(x, x, x, x, denominator=0)


class TestValueLoss:
    @pytest.mark.parametrize("clip_range", [0.05, 0.2, 0.5, None])
    def test_loss_and_stats_equal_python(self, clip_range) -> None:
        values, old, returns = _three()
        losses, fraction = _value_oracle(_valid(values, old, returns), clip_range)
        loss, stats = ppo_value_loss(values, old, returns, _mask(), clip_range)
        assert loss.item() == pytest.approx(sum(losses) / len(losses), abs=1e-12)
        assert stats["clip_fraction"].item() == pytest.approx(fraction)
        assert (fraction > 0) is (clip_range is not None)
        scaled, _ = ppo_value_loss(values, old, returns, _mask(), clip_range, denominator=32.0)
        assert scaled.item() == pytest.approx(sum(losses) / 32, abs=1e-12)

    def test_without_clipping_it_is_half_the_squared_error(self) -> None:
        values, old, returns = _three()
        values.requires_grad_()
        ppo_value_loss(values, old, returns, _mask(), clip_range=None)[0].backward()
        assert torch.allclose(values.grad, (values - returns).detach() * _mask() / sum(LENGTHS), atol=1e-15)

    def test_within_the_range_nothing_counts_as_clipped(self) -> None:
        """In float32 old + (new - old) differs from new: rounding must not look like clipping."""
        noise, old, returns = torch.randn(3, 100, 100, generator=torch.Generator().manual_seed(0))
        old = old / 100
        values = (old + noise / 10).clamp(-0.1, 0.1)
        assert (old + (values - old) != values).any()
        _, stats = ppo_value_loss(values, old, returns, torch.ones(100, 100))
        assert stats["clip_fraction"].item() == 0

    def test_gradcheck(self) -> None:
        values, old, returns = _three()
        mask = _mask()
        assert torch.autograd.gradcheck(lambda v: ppo_value_loss(v, old, returns, mask)[0], values.requires_grad_())

    @pytest.mark.parametrize("garbage", [NAN, math.inf])
    def test_padding_is_never_read(self, garbage) -> None:
        mask = _mask()
        clean = _three()
        dirty = [x.masked_fill(mask == 0, garbage) for x in clean]
        gradients, losses = [], []
        for values, old, returns in (clean, dirty):
            values.requires_grad_()
            loss, _ = ppo_value_loss(values, old, returns, mask)
            loss.backward()
            gradients.append(values.grad)
            losses.append(loss.detach())
        assert torch.equal(*gradients)
        assert torch.equal(*losses)

    def test_empty_mask_gives_0_and_no_gradient(self) -> None:
        values = torch.full((1, 2), NAN, requires_grad=True)
        loss, stats = ppo_value_loss(values, torch.zeros(1, 2), torch.ones(1, 2), torch.zeros(1, 2))
        loss.backward()
        assert (loss.item(), stats["clip_fraction"].item()) == (0, 0)
        assert torch.equal(values.grad, torch.zeros(1, 2))

    def test_half_precision_is_computed_in_float32(self) -> None:
        half = _three(dtype=torch.float16)
        loss, _ = ppo_value_loss(*half, _mask())
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(ppo_value_loss(*(x.double() for x in half), _mask())[0].item(), abs=1e-6)

    def test_bad_arguments_are_refused(self) -> None:
        x = torch.zeros(2, 3)
        with pytest.raises(ValueError, match=r"`mask` has shape \[2\]; expected \[2, 3\]"):
            ppo_value_loss(x, x, x, torch.ones(2))
        with pytest.raises(ValueError, match="`clip_range` is -1"):
            ppo_value_loss(x, x, x, x, clip_range=-1)


class TestVariants:
    """Asymmetric clipping, sequence ratios and the mean over responses, each compared with plain Python."""

    @staticmethod
    def _rows(*tensors: torch.Tensor) -> list[list[tuple[float, ...]]]:
        return [[tuple(x[row, t].item() for x in tensors) for t in range(n)] for row, n in enumerate(LENGTHS)]

    @pytest.mark.parametrize("ratio", ["token", "sequence"])
    @pytest.mark.parametrize("aggregation", ["token", "sequence"])
    def test_every_combination_equals_python(self, ratio, aggregation) -> None:
        low, high = 0.1, 0.3
        rows = self._rows(*_three())
        means, losses = [], []
        for row in rows:
            mean = sum(new - old for new, old, _ in row) / len(row)
            of_row = []
            for new, old, advantage in row:
                rho = math.exp(mean if ratio == "sequence" else new - old)
                of_row.append(-min(rho * advantage, min(max(rho, 1 - low), 1 + high) * advantage))
            means.append(sum(of_row) / len(of_row))
            losses += of_row
        expected = sum(losses) / len(losses) if aggregation == "token" else sum(means) / len(means)
        loss, _ = ppo_policy_loss(*_three(), _mask(), low, high, ratio, aggregation)
        assert loss.item() == pytest.approx(expected, abs=1e-12)

    def test_the_upper_side_alone_is_wider(self) -> None:
        old, advantages = torch.zeros(1, 2), torch.tensor([[1.0, -1.0]])
        new = torch.tensor([[1.25, 0.75]]).log()
        loss, stats = ppo_policy_loss(new, old, advantages, torch.ones(1, 2), 0.2, clip_range_high=0.28)
        assert loss.item() == pytest.approx(-(1.25 - 0.8) / 2)
        assert stats["clip_fraction"].item() == 0.5

    def test_a_sequence_ratio_moves_every_token_of_a_response_alike(self) -> None:
        new, old, _ = _three()
        new.requires_grad_()
        ppo_policy_loss(new, old, torch.ones_like(old), _mask(), 10.0, ratio="sequence")[0].backward()
        for row, n in enumerate(LENGTHS):
            assert new.grad[row, :n].tolist() == pytest.approx([new.grad[row, 0].item()] * n, abs=1e-12)
            assert new.grad[row, n:].tolist() == [0.0] * (6 - n)

    def test_a_response_without_tokens_is_not_counted(self) -> None:
        new, old, advantages = _three()
        more = [torch.cat([x, torch.full((1, 6), NAN)]) for x in (new, old, advantages)]
        mask = torch.cat([_mask(), torch.zeros(1, 6)])
        for aggregation in ("token", "sequence"):
            found, _ = ppo_policy_loss(*more, mask, ratio="sequence", aggregation=aggregation)
            expected, _ = ppo_policy_loss(new, old, advantages, _mask(), ratio="sequence", aggregation=aggregation)
            assert found.item() == expected.item()

    def test_denominators_divide_what_is_summed(self) -> None:
        loss, _ = ppo_policy_loss(*_three(), _mask(), aggregation="sequence")
        other, _ = ppo_policy_loss(*_three(), _mask(), aggregation="sequence", denominator=12.0)
        assert other.item() == pytest.approx(loss.item() * 3 / 12)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"ratio": "word"}, "`ratio` is 'word'; expected one of token, sequence"),
            ({"aggregation": "sum"}, "`aggregation` is 'sum'"),
            ({"clip_range_high": 0.0}, "`clip_range_high` is 0.0"),
        ],
    )
    def test_unknown_settings_are_refused(self, change, message) -> None:
        with pytest.raises(ValueError, match=message):
            ppo_policy_loss(*_three(), _mask(), **change)


class TestPolicyGradient:
    def test_equals_python(self) -> None:
        logprobs, _, advantages = _three()
        tokens = _valid(logprobs, advantages)
        loss, stats = policy_gradient_loss(logprobs, advantages, _mask())
        assert loss.item() == pytest.approx(-sum(a * logp for logp, a in tokens) / len(tokens), abs=1e-12)
        assert stats["nll"].item() == pytest.approx(-sum(logp for logp, _ in tokens) / len(tokens), abs=1e-12)
        assert policy_gradient_loss(logprobs, advantages, _mask(), denominator=22.0)[0].item() == pytest.approx(
            loss.item() / 2
        )

    def test_its_gradient_is_that_of_ppo_at_ratio_one(self) -> None:
        logprobs, _, advantages = _three()
        gradients = []
        for loss_of in (
            lambda x: policy_gradient_loss(x, advantages, _mask()),
            lambda x: ppo_policy_loss(x, logprobs, advantages, _mask()),
        ):
            x = logprobs.clone().requires_grad_()
            loss_of(x)[0].backward()
            gradients.append(x.grad)
        assert torch.allclose(*gradients, atol=1e-15)

    def test_what_lies_off_the_mask_is_never_read(self) -> None:
        logprobs, _, advantages = (x.masked_fill(_mask() == 0, NAN) for x in _three())
        logprobs.requires_grad_()
        loss, stats = policy_gradient_loss(logprobs, advantages, _mask())
        loss.backward()
        assert all(torch.isfinite(x).all() for x in (loss, stats["nll"], logprobs.grad))
        nothing, _ = policy_gradient_loss(logprobs, advantages, torch.zeros(3, 6))
        assert nothing.item() == 0


class TestCispoLoss:
    @pytest.mark.parametrize(("low", "high"), [(None, 0.3), (0.1, 0.2), (None, 4.0)])
    def test_loss_gradient_and_stats_equal_python(self, low, high) -> None:
        """The weight is a constant for the gradient: -w A / n for every token, also where it is clipped."""
        new, old, advantages = _three()
        loss, stats = cispo_loss(new.requires_grad_(), old, advantages, _mask(), low, high)
        loss.backward()
        tokens, losses, gradient, clipped = _valid(new.detach(), old, advantages), [], [], 0
        for logprob, before, advantage in tokens:
            ratio = math.exp(logprob - before)
            weight = max(min(ratio, 1 + high), -math.inf if low is None else 1 - low)
            losses.append(-weight * advantage * logprob)
            gradient.append(-weight * advantage / len(tokens))
            clipped += weight != ratio
        assert loss.item() == pytest.approx(sum(losses) / len(tokens), abs=1e-12)
        assert new.grad[_mask().bool()].tolist() == pytest.approx(gradient, abs=1e-12)
        assert stats["clip_fraction"].item() == pytest.approx(clipped / len(tokens), abs=1e-7)
        assert 0 < clipped < len(tokens) or high == 4.0
        assert all(g != 0 for g in gradient)

    def test_at_ratio_1_the_gradient_is_the_policy_gradient(self) -> None:
        new, _, advantages = _three()
        new.requires_grad_()
        cispo_loss(new, new.detach(), advantages, _mask())[0].backward()
        assert torch.allclose(new.grad, -advantages * _mask() / sum(LENGTHS), atol=1e-15)

    def test_a_mean_over_responses_weights_them_equally(self) -> None:
        new, old, advantages = _three()
        loss, _ = cispo_loss(new, old, advantages, _mask(), aggregation="sequence")
        rows = [
            cispo_loss(*(x[i : i + 1, :n] for x in (new, old, advantages, _mask())))[0] for i, n in enumerate(LENGTHS)
        ]
        assert loss.item() == pytest.approx(float(sum(rows)) / 3, abs=1e-12)
        whole, _ = cispo_loss(new, old, advantages, _mask(), aggregation="sequence", denominator=12.0)
        assert whole.item() == pytest.approx(loss.item() / 4, abs=1e-12)

    def test_padding_is_never_read_and_nothing_valid_is_zero(self) -> None:
        mask, found = _mask(), []
        for garbage in (0.0, NAN, math.inf):
            new, old, advantages = (x.masked_fill(mask == 0, garbage) for x in _three())
            loss, _ = cispo_loss(new.requires_grad_(), old, advantages, mask)
            loss.backward()
            found.append((loss.detach(), new.grad))
        assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))
        assert float(cispo_loss(*_three(), torch.zeros(3, 6))[0]) == 0.0

    def test_half_precision_is_computed_in_float32(self) -> None:
        new, old, advantages = _three(dtype=torch.bfloat16)
        loss, _ = cispo_loss(new, old, advantages, _mask())
        assert loss.dtype == torch.float32
        assert torch.equal(loss, cispo_loss(new.float(), old.float(), advantages.float(), _mask())[0])

    @pytest.mark.parametrize(
        ("settings", "name"),
        [
            ({"clip_range_high": 0.0}, "clip_range_high"),
            ({"clip_range_low": -1.0}, "clip_range_low"),
            ({"aggregation": "mean"}, "aggregation"),
            ({"denominator": 0.0}, "denominator"),
        ],
    )
    def test_bad_arguments_are_refused(self, settings, name) -> None:
        with pytest.raises(ValueError, match=f"`{name}`"):
            cispo_loss(*_three(), _mask(), **settings)
