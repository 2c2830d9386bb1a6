"""Using the engine's own log-probabilities and values instead of computing them again."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf_lightning.errors import UserError
from rlhf_lightning.rollout import RolloutSettings
from rlhf_lightning.rollout.uncached import decoding_of
from tests.algorithms.conftest import ppo, trainer
from tests.algorithms.test_engine_gap import Shifted
from tests.algorithms.test_ppo import STILL, run
from tests.tiny import tiny_model

SETTINGS = partial(RolloutSettings, max_new_tokens=12, batch_size=16)


def with_values(module: Any) -> Any:
    """Add a value head that distinguishes states: a new one returns 0 for each."""
    module.configure_model()
    with torch.no_grad():
        module.actor_critic.value_head.linear.weight.copy_(torch.linspace(-1, 1, 32)[None])
        module.actor_critic.value_head.linear.bias.fill_(0.5)
    return module


@pytest.mark.parametrize("layout", ["shared", "separate"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("slots", [None, 3])
def test_they_are_those_that_the_trainer_computes(family: str, layout: str, slots: int | None, tmp_path: Path) -> None:
    """With responses of mixed lengths, reused slots, and a temperature other than 1."""
    settings = SETTINGS(temperature=0.7, generation_batch_size=slots)
    rollouts = []
    for source in ("trainer", "engine"):
        module, data = ppo(partial(tiny_model, family), STILL, rollout=settings, layout=layout, old_logprobs=source)
        run(tmp_path, with_values(module), data)
        rollouts.append(module.last_rollout)
    theirs, ours = rollouts
    assert len(set(ours.mask.sum(dim=1).tolist())) > 2
    assert torch.equal(ours.response_ids, theirs.response_ids)
    assert ours.values[ours.mask.bool()].std() > 0.1
    for name in ("logprobs", "values", "rewards", "returns"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), atol=1e-5, rtol=1e-5)
    assert not torch.equal(ours.logprobs, theirs.logprobs)


@pytest.mark.parametrize("layout", ["shared", "separate"])
def test_at_learning_rate_zero_every_ratio_is_one_to_rounding(layout: str, tmp_path: Path) -> None:
    module, data = ppo(optimizer=STILL, rollout=SETTINGS(temperature=1.3), layout=layout, old_logprobs="engine")
    watch = run(tmp_path, module, data)
    for stats in watch.minibatches:
        assert abs(stats["policy/ratio_max"] - 1) <= 1e-4
        assert abs(stats["policy/ratio_mean"] - 1) <= 1e-4
    assert abs(watch.last["objective/kl"]) <= 1e-4
    assert "rollout/logprob_gap" not in watch.last


@pytest.mark.parametrize(("layout", "passes"), [("shared", 0), ("separate", 4)])
def test_the_policy_reads_its_responses_no_second_time(layout: str, passes: int, tmp_path: Path) -> None:
    module, data = ppo(optimizer=STILL, layout=layout, old_logprobs="engine")
    module.configure_model()
    decoding_of(module.policy)  # the engine's one-time check of a network reads whole rows
    scored: dict[str, int] = {"policy": 0, "critic": 0}

    def count(name: str, module: Any, args: Any, given: dict[str, Any]) -> None:
        scored[name] += not torch.is_grad_enabled() and "past_key_values" not in given

    module.policy.base_model.register_forward_pre_hook(partial(count, "policy"), with_kwargs=True)
    if module.actor_critic.critic is not None:
        module.actor_critic.critic.register_forward_pre_hook(partial(count, "critic"), with_kwargs=True)
    trainer(tmp_path).fit(module, datamodule=data)
    assert scored == {"policy": 0, "critic": passes}


def test_an_engine_with_kernels_of_its_own_is_refused() -> None:
    module, _ = ppo(engine=Shifted(), old_logprobs="engine")
    with pytest.raises(UserError, match=r"algorithm\.old_logprobs: found engine, but Shifted .*rollout=native"):
        module.configure_model()
