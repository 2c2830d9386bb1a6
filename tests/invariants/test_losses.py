"""Normalisation: of a step over its micro-batches and processes, and of a loss over an answer's tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf_lightning.algorithms import KLPenalty
from rlhf_lightning.rollout import RolloutLoader, seeded_generator
from tests.algorithms.conftest import SGD, dpo, ppo, trainer
from tests.rollout.test_loader import rollout
from tests.tiny import tiny_model


def test_a_kl_penalty_in_the_loss_does_not_depend_on_how_a_minibatch_is_split(tmp_path: Path) -> None:
    weights = []
    for accumulate in (1, 8):
        kl = KLPenalty(kind="fixed", coef=5.0, placement="loss")
        # In float64: rows packed together differ, and with them float32 rounding.
        module, data = ppo(lambda: tiny_model().double(), optimizer=SGD, kl=kl, num_minibatches=2, ppo_epochs=2)
        trainer(tmp_path, accumulate_grad_batches=accumulate).fit(module, datamodule=data)
        weights.append(torch.cat([p.detach().flatten() for p in module.policy.parameters()]))
    torch.testing.assert_close(weights[0], weights[1], atol=1e-6, rtol=0)


def test_a_minibatch_is_divided_by_the_tokens_of_all_processes() -> None:
    elsewhere = 7.0
    loader = RolloutLoader(
        rollout, lambda: seeded_generator("cpu", 0), 8, 1, 2, accumulate=2, world_size=2, total=lambda x: x + elsewhere
    )
    batches = list(loader)
    for parts in (batches[:2], batches[2:]):
        tokens = sum(float(part.mask.sum()) for part in parts) + elsewhere
        assert [part.denominator for part in parts] == [pytest.approx(tokens / (2 * 2))] * 2


def test_ipo_compares_means_over_tokens() -> None:
    """An answer's length does not count: (h_w / |y_w| - h_l / |y_l| - 1 / (2 beta))^2."""
    module, data = dpo(loss_type="ipo", beta=0.2)
    module.configure_model()
    data.setup("fit")
    batch: Any = next(iter(data.train_dataloader()))
    reference = module.reference_logps(batch)
    with torch.no_grad():
        for p in module.model.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    ids, mask = batch.input_ids, batch.completion_mask
    token = module.model(ids).logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None]).squeeze(2)
    ratio = ((token * mask[:, 1:]).sum(1) - reference) / mask.sum(1)
    chosen, rejected = batch.pairs.unbind(1)
    assert not torch.equal(mask.sum(1)[chosen], mask.sum(1)[rejected])
    expected = (ratio[chosen] - ratio[rejected] - 1 / (2 * 0.2)).square().mean()
    torch.testing.assert_close(module.training_step(batch, 0), expected, atol=1e-5, rtol=1e-5)
