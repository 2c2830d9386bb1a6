"""NLPO: its gradient by enumeration under masks, and the optimum of its masked class."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf_lightning.algorithms import KLPenalty, NLPOModule
from rlhf_lightning.data import PromptRow
from rlhf_lightning.functional import pack_allowed
from rlhf_lightning.rollout import Engine, Generation, NativeEngine, RolloutSettings, SamplingSettings, seeded_generator
from tests.exact.enumerable import World
from tests.exact.gradients import TOLERANCE, assert_opposite, move
from tests.exact.masks import all_logits, masked_logprobs, masked_regret, nuclei, possible
from tests.exact.runs import quiet_trainer, train_nlpo

BETA, TOP_P = 0.3, 0.7


class EveryPossible(Engine):
    """An engine that answers with every response that the masks allow, and with the masks."""

    def __init__(self, world: World, masks: Tensor) -> None:
        kept = possible(world, masks)
        self.tokens = world.responses.expand(len(world.prompts), -1, -1)[kept]
        self.allowed = pack_allowed(masks[kept])
        self.mask: Any = None

    def sync(self, model: Any) -> None: ...

    def restrict(self, mask: Any) -> bool:
        self.mask = mask
        return True

    def generate(self, prompts: list[list[int]], *_: Any) -> Generation:
        zeros = torch.zeros(self.tokens.shape)
        ended = torch.zeros(len(zeros), dtype=torch.bool)
        return Generation(self.tokens, torch.ones_like(zeros), zeros, ended, allowed=self.allowed)


class EnumeratedNLPO(NLPOModule):
    """NLPOModule whose rollout is every possible response to every prompt."""

    world: World
    masks: Tensor

    def prompts(self) -> list[PromptRow]:
        counts = possible(self.world, self.masks).sum(dim=1).tolist()
        pairs = zip(self.world.prompts, counts, strict=True)
        return [PromptRow(ids, self.world.text(ids), {}) for ids, count in pairs for _ in range(count)]


def enumerated(world: World, **kwargs: Any) -> EnumeratedNLPO:
    """Return the module with a policy moved away from its reference, whose masks are the reference's."""
    masks = nuclei(world, world.load_model(), TOP_P)
    count = int(possible(world, masks).sum())
    module = EnumeratedNLPO(
        world.load_model,
        world.tokenizer,
        partial(torch.optim.SGD, lr=0.0),
        reward=world.reward,
        rollout=RolloutSettings(max_new_tokens=world.length, batch_size=count),
        kl=KLPenalty(kind="fixed", coef=BETA),
        engine=EveryPossible(world, masks),
        whiten_advantages=False,
        value_coef=0.0,
        mask_top_p=TOP_P,
        lam=1.0,
        **kwargs,
    )
    module.world, module.masks = world, masks
    module.configure_model()
    module.trainer = quiet_trainer()
    move(module.policy)
    return module


def expected_loss_gradient(module: EnumeratedNLPO) -> dict[str, Tensor]:
    """Return the gradient of the mean over prompts of E[loss] under pi~."""
    rollout = module.collect()
    weights = rollout.logprobs.double().sum(dim=1).exp()
    assert float(weights.sum()) == pytest.approx(len(module.world.prompts), abs=1e-4)
    rollout.advantages = rollout.advantages * weights[:, None].float()
    loss, stats = module.loss(rollout.select(torch.arange(len(rollout)), len(module.world.prompts)))
    assert abs(float(stats["policy/ratio_max"]) - 1) < TOLERANCE
    loss.backward()
    return {name: p.grad for name, p in module.policy.named_parameters()}


def gradient_of(module: EnumeratedNLPO, policy: Tensor, reference: Tensor) -> dict[str, Tensor]:
    """Return the gradient of E[r - beta (log policy - log reference)], both [P, N], over the possible responses."""
    kept = possible(module.world, module.masks)
    logprobs, ref = policy.masked_fill(~kept, 0.0), reference.masked_fill(~kept, 0.0)
    value = (kept * logprobs.exp() * (module.world.rewards - BETA * (logprobs - ref))).sum(dim=1).mean()
    names, parameters = zip(*module.policy.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(value, parameters), strict=True))


@pytest.fixture(scope="module")
def world() -> World:
    return World(vocabulary=4, length=2, n_prompts=4)


def test_the_expected_loss_has_the_gradient_of_the_masked_objective(world: World) -> None:
    module = enumerated(world)
    assert 0.1 < float(possible(world, module.masks).float().mean()) < 0.9
    with torch.no_grad():
        ref = masked_logprobs(world, world.load_model(), module.masks).sum(dim=2)
    masked = masked_logprobs(world, module.policy, module.masks).sum(dim=2)
    loss_gradient = expected_loss_gradient(module)
    assert_opposite(loss_gradient, gradient_of(module, masked, ref))
    free = masked_logprobs(world, module.policy, torch.ones_like(module.masks)).sum(dim=2)
    unmasked = gradient_of(module, free, world.ref)
    with pytest.raises(AssertionError):  # the ratio of the whole distribution would be noticed
        assert_opposite(loss_gradient, unmasked)


def test_the_engine_samples_the_masked_policy(world: World) -> None:
    """4,000 samples: no impossible response, and frequencies within five standard errors of pi~."""
    module = enumerated(world)
    engine = NativeEngine(pad_id=world.vocabulary, eos_ids=[world.vocabulary])
    assert engine.restrict(module.engine.mask)
    engine.sync(module.policy)
    settings = SamplingSettings(max_new_tokens=world.length)
    out = engine.generate(world.prompts[-1:] * 4000, settings, seeded_generator("cpu", 0))
    numbers = (out.tokens * torch.tensor([world.vocabulary, 1])).sum(dim=1)
    frequencies = torch.bincount(numbers, minlength=len(world.responses)).double() / 4000
    with torch.no_grad():
        exact = masked_logprobs(world, module.policy, module.masks).sum(dim=2)[-1].exp()
    kept = possible(world, module.masks)[-1]
    assert float(frequencies[~kept].sum()) == 0.0 and float(exact[kept].sum()) == pytest.approx(1.0)
    assert bool(((frequencies - exact).abs() <= 5 * (exact * (1 - exact) / 4000).sqrt() + 1e-12).all())
    torch.testing.assert_close(out.logprobs.double().sum(dim=1).exp(), exact[numbers], rtol=1e-4, atol=0)


def test_the_optimum_of_the_class_is_the_tilted_masked_reference(world: World) -> None:
    masks = nuclei(world, world.load_model(), TOP_P)
    assert masked_regret(world, world.load_model(), masks, 1.0) == pytest.approx(1.0)
    everything = torch.ones_like(masks)
    moved = world.load_model()
    move(moved)
    assert masked_regret(world, moved, everything, 1.0) == pytest.approx(
        world.regret(world.logprobs(moved), 1.0), rel=1e-4
    )
    assert all_logits(world, moved).shape[-1] == world.vocabulary


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_nlpo_reaches_the_optimum_of_its_class(seed: int) -> None:
    result = train_nlpo(World(length=2, n_prompts=4, seed=seed), 1.0, seed)
    assert result.possible < 0.9
    assert result.regret <= 0.01
