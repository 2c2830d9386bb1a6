"""An engine whose probabilities differ from the trainer's: the gap is logged, and corrected by weights if asked for."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf_lightning.functional import ppo_policy_loss
from rlhf_lightning.rollout import Generation, NativeEngine
from tests.algorithms.conftest import ppo, trainer
from tests.algorithms.test_ppo import STILL, run


class Shifted:
    """Samples like the policy but reports other log-probabilities: 1 less on even tokens, 0.5 more on odd ones."""

    def __init__(self, even: float = -1.0, odd: float = 0.5) -> None:
        self.inner, self.even, self.odd = NativeEngine(0, [1]), even, odd

    def sync(self, model: Any) -> None:
        """Take over the policy's weights."""
        self.inner.sync(model)

    def generate(self, *arguments: Any) -> Generation:
        """Return the native engine's responses."""
        out = self.inner.generate(*arguments)
        out.logprobs = out.logprobs + torch.where(out.tokens % 2 == 0, self.even, self.odd) * out.mask
        return out


def test_mean_and_largest_difference_per_token_are_logged(tmp_path: Path) -> None:
    module, data = ppo(optimizer=STILL, engine=Shifted())
    last = run(tmp_path, module, data).last
    rollout = module.last_rollout
    even = float((rollout.mask * (rollout.response_ids % 2 == 0)).sum() / rollout.mask.sum())
    assert 0.1 < even < 0.9
    assert last["rollout/logprob_gap"] == pytest.approx(even + 0.5 * (1 - even), abs=1e-5)
    assert last["rollout/logprob_gap_max"] == pytest.approx(1.0, abs=1e-5)
    assert "rollout/importance_weight" not in last


def test_the_largest_difference_is_that_of_this_iteration(tmp_path: Path) -> None:
    engine = Shifted()
    module, data = ppo(optimizer=STILL, engine=engine)
    run(tmp_path, module, data)
    engine.even = engine.odd = 0.0
    assert run(tmp_path, module, data).last["rollout/logprob_gap_max"] <= 1e-4


def test_a_token_counts_by_its_ratio_up_to_the_cap(tmp_path: Path) -> None:
    advantages = []
    for cap in (None, 2.0):
        module, data = ppo(optimizer=STILL, engine=Shifted(), importance_cap=cap)
        last = run(tmp_path, module, data).last
        advantages.append(module.last_rollout.advantages)
    rollout = module.last_rollout
    even = rollout.response_ids % 2 == 0
    weights = torch.where(even, 2.0, math.exp(-0.5)) * rollout.mask  # e is above the cap
    torch.testing.assert_close(advantages[1], advantages[0] * weights, atol=1e-5, rtol=1e-5)
    tokens = rollout.mask.sum()
    assert last["rollout/importance_capped"] == pytest.approx(float((even * rollout.mask).sum() / tokens), abs=1e-6)
    assert last["rollout/importance_weight"] == pytest.approx(float(weights.sum() / tokens), abs=1e-5)


def test_where_the_engine_computes_as_the_trainer_nothing_changes(tmp_path: Path) -> None:
    advantages = []
    for cap in (None, 2.0):
        module, data = ppo(optimizer=STILL, importance_cap=cap)
        last = run(tmp_path, module, data).last
        advantages.append(module.last_rollout.advantages)
    torch.testing.assert_close(advantages[0], advantages[1], atol=1e-4, rtol=0)
    assert last["rollout/importance_capped"] == 0.0


def test_a_weighted_advantage_is_a_weighted_loss() -> None:
    """On either side of the clipping range, for advantages of either sign."""
    torch.manual_seed(0)
    new, old, advantage = -2 * torch.rand(8, 5), -2 * torch.rand(8, 5), torch.randn(8, 5)
    weights, mask = 2 * torch.rand(8, 5), (torch.rand(8, 5) < 0.8).float()
    loss, _ = ppo_policy_loss(new, old, advantage * weights, mask)
    want = 0.0
    for i in range(8):
        for t in range(5):
            ratio, a = math.exp(new[i, t] - old[i, t]), float(advantage[i, t])
            term = max(-a * ratio, -a * min(max(ratio, 0.8), 1.2))
            want += float(weights[i, t] * mask[i, t]) * term
    assert float(loss) == pytest.approx(want / float(mask.sum()), rel=1e-4)


def test_an_engine_is_closed_when_training_ends(tmp_path: Path) -> None:
    closed = []
    engine: Any = Shifted()
    engine.close = lambda: closed.append(1)
    module, data = ppo(optimizer=STILL, engine=engine)
    trainer(tmp_path).fit(module, datamodule=data)
    assert closed
