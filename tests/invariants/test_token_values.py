"""Rewards, values, advantages and KL are on the token, and in the unit, that their names say."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from rlhf_lightning.algorithms import PPOModule
from rlhf_lightning.functional import masked_whiten
from rlhf_lightning.models import ActorCritic, response_logprobs, right_padded
from tests.algorithms.conftest import ppo, trainer
from tests.models.test_forward import rows
from tests.tiny import tiny_model


def test_a_short_row_beside_a_long_one_keeps_its_own_tokens() -> None:
    """Both responses have the maximum length and the prompts do not: the rows end in different columns."""
    prompt_ids = torch.tensor([[5, 6, 7], [0, 0, 8]])
    prompt_mask = torch.tensor([[1, 1, 1], [0, 0, 1]])
    response_ids, mask = torch.tensor([[9, 10, 11, 12], [13, 14, 15, 16]]), torch.ones(2, 4)
    ids, flags = right_padded(prompt_ids, prompt_mask, response_ids, mask)
    assert ids[1, :5].tolist() == [8, 13, 14, 15, 16]
    assert flags.tolist() == [[0, 0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 1, 0, 0]]
    model = tiny_model("gpt2").eval()
    together = response_logprobs(model, prompt_ids, prompt_mask, response_ids, mask)
    alone = response_logprobs(model, prompt_ids[1:, 2:], prompt_mask[1:, 2:], response_ids[1:], mask[1:])
    torch.testing.assert_close(together[1:], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("layout", ["shared", "separate"])
def test_a_value_is_of_the_state_before_its_token_in_both_layouts(layout: str) -> None:
    model = ActorCritic(tiny_model(), tiny_model("gpt2").base_model if layout == "separate" else None).eval()
    torch.nn.init.normal_(model.value_head.linear.weight)
    prompt_ids, prompt_mask, response_ids, mask = rows()
    before = model(prompt_ids, prompt_mask, response_ids, mask).values
    response_ids[1, 2] = 20
    after = model(prompt_ids, prompt_mask, response_ids, mask).values
    assert torch.equal(before[1, :3], after[1, :3])
    assert not torch.equal(before[1, 3], after[1, 3])


@pytest.mark.parametrize("whiten", [False, True])
def test_advantages_and_returns_of_a_run_are_the_looped_definition(whiten: bool, tmp_path: Path) -> None:
    """Whitening is only for the policy's gradient: the returns that the value learns keep the scale of the score."""
    gamma, lam = 0.9, 0.5
    module, data = ppo(gamma=gamma, lam=lam, whiten_advantages=whiten)
    trainer(tmp_path, max_epochs=2).fit(module, datamodule=data)
    rollout = module.last_rollout
    assert rollout.values.abs().max() > 1e-4
    for i, length in enumerate(rollout.mask.sum(1).long().tolist()):
        rewards, values = rollout.rewards[i, :length].tolist(), rollout.values[i, :length].tolist()
        deltas = [r + gamma * after - v for r, v, after in zip(rewards, values, [*values[1:], 0.0], strict=True)]
        advantages = [sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, length)) for t in range(length)]
        returns = [a + v for a, v in zip(advantages, values, strict=True)]
        assert rollout.returns[i, :length].tolist() == pytest.approx(returns, abs=1e-5)
        if not whiten:
            assert rollout.advantages[i, :length].tolist() == pytest.approx(advantages, abs=1e-5)


def test_the_controller_is_given_the_kl_per_response_and_the_number_of_responses(tmp_path: Path) -> None:
    """Ziegler's target of 6 is a sum over a response's tokens, and his horizon of 10,000 a number of episodes."""
    calls: list[tuple[float, int]] = []
    module, data = ppo()
    module.kl_controller.update = lambda kl, n_episodes: calls.append((kl, n_episodes))
    trainer(tmp_path, max_epochs=2).fit(module, datamodule=data)
    rollout = module.last_rollout
    kl = ((rollout.logprobs - rollout.ref_logprobs) * rollout.mask).sum(dim=1).mean()
    assert rollout.mask.sum() > 2 * len(rollout)
    assert float(kl) > 0.005
    assert calls == [(0.0, 16), (pytest.approx(float(kl), rel=1e-4), 16)]


def test_whitening_on_two_ranks_is_whitening_on_one() -> None:
    """The ranks' responses differ in length, so their tensors differ in width."""
    generator = torch.Generator().manual_seed(0)
    xs = [torch.randn(3, width, generator=generator) + rank for rank, width in enumerate((4, 6))]
    masks = [(torch.arange(x.shape[1]) < torch.tensor([[4], [1], [3]])).float() for x in xs]
    wide = [
        [torch.nn.functional.pad(t, (0, 8 - t.shape[1])) for t in pair]  # x and mask of a rank
        for pair in zip(xs, masks, strict=True)
    ]
    everything = [torch.stack(each) for each in zip(*wide, strict=True)]
    expected = masked_whiten(*(each.flatten(0, 1) for each in everything)).view(2, 3, 8)
    for rank, (x, mask) in enumerate(zip(xs, masks, strict=True)):

        def gather(mine: torch.Tensor, rank: int = rank) -> torch.Tensor:
            return next(all for x, all in zip(wide[rank], everything, strict=True) if torch.equal(mine, x))

        process = SimpleNamespace(
            trainer=SimpleNamespace(world_size=2),
            rollout=SimpleNamespace(max_new_tokens=8),
            global_rank=rank,
            gather=gather,
        )
        process.gather_tokens = partial(PPOModule.gather_tokens, process)
        whitened = PPOModule.whiten(process, x, mask)  # type: ignore[arg-type]
        torch.testing.assert_close(whitened, expected[rank, :, : x.shape[1]])
