"""Properties of every algorithm that learns from its own samples, by its declaration and its config."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from rlhf_lightning.algorithms import KLPenalty, PolicyGradientModule
from rlhf_lightning.callbacks import ReproducibleResume
from rlhf_lightning.config.monitors import metrics_of
from rlhf_lightning.errors import UserError
from rlhf_lightning.models import NF4, LoRA, fingerprint, load_causal_lm
from rlhf_lightning.rollout import RolloutSettings
from rlhf_lightning.source.declarations import declared
from tests.algorithms.conftest import CONFIGS, GROUPS, ON_POLICY, SGD, count_early, on_policy, trainer
from tests.algorithms.test_ppo import STILL, run
from tests.tiny import tiny_model, tiny_tokenizer

CRITIC_FREE = [name for name in ON_POLICY if "critic" not in declared(CONFIGS[name]["_target_"]).roles]


def some(names: list[str], *sample: str) -> list[Any]:
    """Return all names; by default only the sample."""
    return [pytest.param(name, marks=() if name in sample else pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", ON_POLICY)
def test_at_learning_rate_zero_every_ratio_is_one_and_only_what_is_declared_is_built(name: str, tmp_path: Path) -> None:
    """Also with dropout in the model's config and another temperature."""
    settings = RolloutSettings(max_new_tokens=6, batch_size=4, samples_per_prompt=4, temperature=0.7)
    module, data = on_policy(name, partial(tiny_model, "gpt2", dropout=0.5), STILL, rollout=settings)
    watch = run(tmp_path, module, data)
    assert len(watch.minibatches) == module.ppo_epochs * module.num_minibatches
    for stats in watch.minibatches:
        assert abs(stats.get("policy/ratio_max", 1.0) - 1) <= 1e-4
        assert abs(stats["policy/approx_kl"]) <= 1e-6
    assert watch.last["objective/kl"] == 0.0
    advantages = module.last_rollout.advantages[module.last_rollout.mask.bool()]
    whitened = abs(float(advantages.mean())) < 1e-6 and abs(float(advantages.std(correction=0)) - 1) < 1e-3
    assert whitened == module.whiten_advantages
    critic = "critic" in module.roles
    assert (module.actor_critic.value_head is not None) == critic == (module.last_rollout.values is not None)
    assert any(metric.startswith("value/") for metric in watch.last) == critic
    assert set(watch.last) <= metrics_of(declared(CONFIGS[name]["_target_"]))


def fit(name: str, folder: Path, epochs: int, resume: str | None = None) -> Any:
    module, data = on_policy(name, kl=KLPenalty(target=1.0, horizon=50))
    torch.manual_seed(9 if resume is None else 1234)  # another process has other random states
    save = ModelCheckpoint(folder, filename="cut", save_top_k=-1, every_n_epochs=1 if epochs == 1 else 99)
    run = trainer(folder, enable_checkpointing=True, callbacks=[save, ReproducibleResume()], max_epochs=epochs)
    run.fit(module, datamodule=data, ckpt_path=resume)
    return module


@pytest.mark.parametrize("name", some(ON_POLICY, "grpo", "reinforce_pp", "dapo", "ppo_lagrangian"))
def test_a_resumed_run_is_bitwise_the_uninterrupted_one(name: str, tmp_path: Path) -> None:
    whole = fit(name, tmp_path / "whole", 2)
    fit(name, tmp_path / "cut", 1)
    resumed = fit(name, tmp_path / "cut", 2, str(tmp_path / "cut/cut.ckpt"))
    assert fingerprint(resumed.policy) == fingerprint(whole.policy) != fingerprint(tiny_model())
    assert resumed.kl_controller.value == whole.kl_controller.value != 0.1


@pytest.mark.parametrize("name", some(CRITIC_FREE, "grpo", "dr_grpo", "online_dpo"))
def test_gradients_do_not_depend_on_how_a_minibatch_is_split(name: str, tmp_path: Path) -> None:
    """Into micro-batches, or into parts of a token budget; responses end at different lengths."""
    weights = []
    for accumulate, budget in ((1, None), (4, None), (1, 20)):
        rollout = RolloutSettings(max_new_tokens=6, batch_size=8, samples_per_prompt=4)
        settings = {"num_minibatches": 2, "tokens_per_microbatch": budget, "entropy_coef": 0.1}
        module, data = on_policy(name, optimizer=SGD, rollout=rollout, **settings)
        run(tmp_path, module, data, accumulate_grad_batches=accumulate)
        weights.append(torch.cat([p.detach().flatten() for p in module.policy.parameters()]))
    assert module.last_rollout.mask.sum(dim=1).unique().numel() > 1
    for other in weights[1:]:
        torch.testing.assert_close(weights[0], other, atol=1e-6, rtol=0)


@pytest.mark.parametrize("weights", ["lora", "nf4"])
@pytest.mark.parametrize("name", some(ON_POLICY, "rloo"))
def test_adapters_learn_beside_full_and_4_bit_weights(name: str, weights: str, tmp_path: Path) -> None:
    tiny_model(hidden=64).save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    quantization = NF4() if weights == "nf4" else None
    load = partial(load_causal_lm, tmp_path / "base", adapter=LoRA(rank=4), quantization=quantization)
    module, data = on_policy(name, load)
    module.configure_model()
    before, reference = fingerprint(module.policy), module.reference.fingerprint()
    run(tmp_path, module, data)
    assert fingerprint(module.policy) != before
    assert module.reference.fingerprint() == reference
    trained = [key for key, p in module.named_parameters() if p.requires_grad]
    assert trained and all("lora" in key or "value_head" in key for key in trained)


@pytest.mark.parametrize("name", GROUPS)
def test_a_group_that_all_score_the_same_teaches_exactly_nothing(name: str, tmp_path: Path) -> None:
    """Seven times a third has no exact float: the mean of equal scores is off by its rounding."""
    module, data = on_policy(
        name,
        rollout=RolloutSettings(max_new_tokens=6, batch_size=4, samples_per_prompt=7),
        optimizer=SGD,
        reward=lambda prompts, responses, **columns: [1 / 3] * len(responses),
        kl=KLPenalty(kind="fixed", coef=0.0, target=None, horizon=None),
        num_minibatches=1,
    )
    run(tmp_path, module, data)
    assert bool((module.last_rollout.advantages == 0).all())
    assert fingerprint(module.policy) == fingerprint(tiny_model())


@pytest.mark.parametrize("name", GROUPS)
def test_a_group_of_one_is_refused_by_name(name: str) -> None:
    with pytest.raises(UserError, match=r"^rollout\.samples_per_prompt: found 1, but algorithm\.(estimator|accuracy)="):
        on_policy(name, rollout=RolloutSettings(batch_size=4))


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"estimator": "returns", "scale": "std"}, "scale"),
        ({"gamma": 0.9}, "gamma"),
        ({"clip_range": None, "clip_range_high": 0.3}, "clip_range_high"),
        ({"clip_range": None, "ratio": "sequence"}, "ratio"),
        ({"aggregation": "sequence", "denominator": 8.0}, "denominator"),
        ({"loss_type": "cispo", "ratio": "sequence"}, "ratio"),
        ({"loss_type": "cispo", "clip_range": None}, "clip_range_high"),
    ],
)
def test_settings_that_another_one_leaves_unread_are_refused(settings: dict[str, Any], key: str) -> None:
    rollout = RolloutSettings(samples_per_prompt=2)
    with pytest.raises(UserError, match=rf"^algorithm\.{key}: "):
        PolicyGradientModule(tiny_model, tiny_tokenizer(), SGD, reward=count_early, rollout=rollout, **settings)


def test_samples_of_one_prompt_differ(tmp_path: Path) -> None:
    settings = RolloutSettings(max_new_tokens=8, batch_size=2, samples_per_prompt=8)
    module, data = on_policy("rloo", rollout=settings)
    run(tmp_path, module, data)
    for ids in module.last_rollout.response_ids.view(2, 8, -1):
        assert len({tuple(row) for row in ids.tolist()}) > 4


def test_a_group_without_its_own_response_is_further_by_g_over_g_minus_1(tmp_path: Path) -> None:
    """Dr. GRPO and RLOO on the same samples."""
    advantages = []
    for name in ("dr_grpo", "rloo"):
        module, data = on_policy(name, optimizer=STILL)
        run(tmp_path, module, data)
        advantages.append(module.last_rollout.advantages)
    assert advantages[0].abs().max() > 0.5
    torch.testing.assert_close(advantages[0], 3 / 4 * advantages[1], rtol=1e-6, atol=1e-7)


def test_a2c_is_ppo_whose_one_step_is_the_policy_gradient(tmp_path: Path) -> None:
    """At ratio 1 nothing is clipped: the step is that of A log pi and of the value's squared error."""
    module, data = on_policy("a2c", optimizer=SGD)
    watch = run(tmp_path, module, data)
    assert len(watch.minibatches) == module.trainer.global_step == 1
    rollout, again = module.last_rollout, on_policy("a2c", optimizer=SGD)[0]
    again.configure_model()
    out = again.actor_critic(rollout.prompt_ids, rollout.prompt_mask, rollout.response_ids, rollout.mask)
    torch.testing.assert_close(rollout.advantages, rollout.returns - rollout.values)
    n = rollout.mask.sum()
    policy = -(rollout.advantages * out.logprobs).sum() / n
    (policy + again.value_coef * 0.5 * (out.values - rollout.returns).square().sum() / n).backward()
    for trained, start in zip(module.policy.parameters(), again.policy.parameters(), strict=True):
        torch.testing.assert_close(trained, start - 0.1 * start.grad, atol=1e-6, rtol=0)
