import time
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from rlhf_lightning.algorithms import KLPenalty, PretrainingMix, RewardShaping
from rlhf_lightning.errors import UserError
from rlhf_lightning.models import fingerprint
from rlhf_lightning.rollout import RolloutSettings
from tests.algorithms.conftest import SGD, ppo, trainer
from tests.algorithms.test_dpo import lora
from tests.tiny import tiny_model

STILL = partial(torch.optim.SGD, lr=0.0)


class Watch(L.Callback):
    """Records the logged metrics of every iteration, and the loss statistics of every minibatch."""

    def __init__(self) -> None:
        self.epochs: list[dict[str, float]] = []
        self.minibatches: list[dict[str, float]] = []

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        inner = pl_module.loss

        def loss(batch: Any) -> Any:
            out = inner(batch)
            self.minibatches.append({name: float(value) for name, value in out[1].items()})
            return out

        pl_module.loss = loss

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.last = {name: float(value) for name, value in trainer.callback_metrics.items()}


def run(folder: Path, module: Any, data: Any, **kwargs: Any) -> Watch:
    watch = Watch()
    trainer(folder, callbacks=[watch], **kwargs).fit(module, datamodule=data)
    return watch


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
def test_at_learning_rate_zero_every_ratio_is_one(family: str, temperature: float, tmp_path: Path) -> None:
    """Also with dropout in the model's config, in both layouts: rollout and update see the same policy."""
    model = partial(tiny_model, family, dropout=0.5)
    settings = RolloutSettings(max_new_tokens=6, batch_size=16, temperature=temperature)
    for layout in ("shared", "separate"):
        module, data = ppo(model, STILL, rollout=settings, layout=layout)
        watch = run(tmp_path, module, data)
        assert len(watch.minibatches) == 16
        for stats in watch.minibatches:
            assert abs(stats["policy/ratio_max"] - 1) <= 1e-4
            assert abs(stats["policy/ratio_mean"] - 1) <= 1e-4
        assert watch.last["rollout/logprob_gap"] <= 1e-4


def merged() -> Any:
    """Return a start from a LoRA run: peft leaves merged weights frozen."""
    return lora().merge_and_unload().requires_grad_(True)


@pytest.mark.parametrize("model", [tiny_model, lora, merged])
def test_the_kl_to_the_reference_is_exactly_zero_before_the_first_update(model: Any, tmp_path: Path) -> None:
    module, data = ppo(model, STILL)
    watch = run(tmp_path, module, data)
    assert watch.last["objective/kl"] == 0.0


def test_the_reference_and_the_reward_model_never_move_and_the_policy_does(tmp_path: Path) -> None:
    for model in (tiny_model, lora):
        module, data = ppo(model)
        module.configure_model()
        before, policy = module.reference.fingerprint(), fingerprint(module.policy)
        run(tmp_path, module, data, max_epochs=2)
        assert module.reference.fingerprint() == before
        assert fingerprint(module.policy) != policy


def test_token_rewards_add_up_to_the_score_minus_the_kl_penalty(tmp_path: Path) -> None:
    module, data = ppo(kl=KLPenalty(kind="fixed", coef=0.3), shaping=RewardShaping(missing_eos_penalty=0.5))
    run(tmp_path, module, data, max_epochs=3)
    rollout = module.last_rollout
    kl = ((rollout.logprobs - rollout.ref_logprobs) * rollout.mask).sum(1)
    assert kl.abs().sum() > 0.1
    torch.testing.assert_close(rollout.rewards.sum(1), rollout.scores - 0.3 * kl, atol=1e-5, rtol=0)


def test_whitened_advantages_have_mean_zero_and_std_one_over_valid_tokens(tmp_path: Path) -> None:
    module, data = ppo()
    run(tmp_path, module, data)
    valid = module.last_rollout.advantages[module.last_rollout.mask.bool()]
    assert abs(float(valid.mean())) <= 1e-6
    assert float(valid.std(correction=0)) == pytest.approx(1.0, abs=1e-3)
    assert (module.last_rollout.advantages[~module.last_rollout.mask.bool()] == 0).all()


def test_the_score_raises_and_the_controller_answers(tmp_path: Path) -> None:
    module, data = ppo(partial(tiny_model, hidden=32), kl=KLPenalty(coef=0.01, target=2.0, horizon=100))
    first = run(tmp_path, module, data).last
    module, data = ppo(partial(tiny_model, hidden=32), kl=KLPenalty(coef=0.01, target=2.0, horizon=100))
    last = run(tmp_path, module, data, max_epochs=25).last
    assert last["objective/scores"] > first["objective/scores"] + 0.5
    assert last["kl/coef"] != first["kl/coef"] == pytest.approx(0.01)
    names = "objective/kl objective/entropy objective/rlhf_reward policy/loss policy/approx_kl policy/clip_fraction \
        policy/ratio_mean policy/ratio_max value/loss value/clip_fraction value/explained_variance \
        rollout/response_length rollout/eos_rate rollout/tokens_per_second"
    assert set(names.split()) <= set(last)


def test_every_second_of_an_iteration_is_in_one_phase(tmp_path: Path) -> None:
    """Also the time of a slow callback between two iterations, which belongs to none of the three."""

    class Slow(L.Callback):
        def on_train_epoch_start(self, *args: Any) -> None:
            time.sleep(0.2)

    def reward(prompts: list[str], responses: list[str], **columns: Any) -> list[float]:
        time.sleep(0.3)
        return [0.0] * len(responses)

    module, data = ppo(reward=reward)
    watch = Watch()
    started = time.perf_counter()
    trainer(tmp_path, callbacks=[watch, Slow()], max_epochs=2).fit(module, datamodule=data)
    took = time.perf_counter() - started
    phases = [watch.last[f"time/{phase}"] for phase in ("rollout", "score", "update")]
    shares = [watch.last[f"time/share_{phase}"] for phase in ("rollout", "score", "update")]
    assert phases[1] > 0.3
    whole = sum(phases) / sum(shares)
    assert shares == pytest.approx([seconds / whole for seconds in phases])
    assert sum(phases) + 0.2 <= whole < took
    tokens = float(module.last_rollout.mask.sum())
    assert watch.last["rollout/tokens_per_second"] == pytest.approx(tokens / phases[0])


def test_pure_sampling_never_shows_a_negative_kl_beyond_its_error(tmp_path: Path) -> None:
    module, data = ppo()
    run(tmp_path, module, data, max_epochs=4)
    rollout = module.last_rollout
    kl = ((rollout.logprobs - rollout.ref_logprobs) * rollout.mask).sum(1)
    assert kl.mean() >= -3 * kl.std() / len(kl) ** 0.5


def test_an_iteration_is_a_function_of_seed_and_epoch(tmp_path: Path) -> None:
    tokens = []
    for seed, noise in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(noise)  # the global generator has no influence
        module, data = ppo(seed=seed)
        run(tmp_path, module, data, max_epochs=2)
        tokens.append(module.last_rollout.response_ids)
    assert torch.equal(tokens[0], tokens[1])
    assert tokens[0].shape != tokens[2].shape or not torch.equal(tokens[0], tokens[2])


def test_gradients_do_not_depend_on_how_a_minibatch_is_split(tmp_path: Path) -> None:
    weights = []
    settings = RolloutSettings(max_new_tokens=6, batch_size=16)
    for accumulate in (1, 8):
        module, data = ppo(optimizer=SGD, rollout=settings, num_minibatches=2, ppo_epochs=1, entropy_coef=0.01)
        run(tmp_path, module, data, accumulate_grad_batches=accumulate)
        weights.append(torch.cat([p.detach().flatten() for p in module.policy.parameters()]))
    torch.testing.assert_close(weights[0], weights[1], atol=1e-6, rtol=0)


def test_target_kl_ends_the_iterations_updates_and_not_the_run(tmp_path: Path) -> None:
    fast = partial(torch.optim.Adam, lr=1e-2)
    module, data = ppo(optimizer=fast, target_kl=0.01)
    watch = run(tmp_path, module, data, max_epochs=3)
    assert 3 <= len(watch.minibatches) < 3 * 16
    module, data = ppo(optimizer=fast, target_kl=100.0)
    assert len(run(tmp_path, module, data, max_epochs=3).minibatches) == 3 * 16


def test_the_penalty_in_the_loss_leaves_the_rewards_alone_and_pulls_all_the_same(tmp_path: Path) -> None:
    distance = []
    for coef in (0.0, 5.0):
        module, data = ppo(kl=KLPenalty(kind="fixed", coef=coef, placement="loss"))
        watch = run(tmp_path, module, data, max_epochs=5)
        rollout = module.last_rollout
        torch.testing.assert_close(rollout.rewards.sum(1), rollout.scores)
        distance.append(watch.last["objective/kl"])
    assert distance[1] < 0.5 * distance[0]


def test_the_pretraining_mix_lowers_the_loss_of_its_text(tmp_path: Path) -> None:
    losses = []
    ids = torch.tensor([[3, 4, 5, 6, 7, 8, 9, 10, 1]])
    text = tmp_path / "text.jsonl"
    text.write_text('{"text": "a b c d e f g h"}\n' * 8)
    for coef in (0.0, 1.0):
        module, data = ppo(ptx=PretrainingMix(coef=coef, data=str(text), batch_size=2))
        run(tmp_path, module, data, max_epochs=3)
        losses.append(float(module.policy(ids, labels=ids).loss))
    assert losses[1] < losses[0] - 0.5


def test_entropy_bonus_keeps_the_policy_more_random(tmp_path: Path) -> None:
    entropies = []
    for coef in (0.0, 1.0):
        module, data = ppo(entropy_coef=coef, kl=KLPenalty(kind="fixed", coef=0.0))
        entropies.append(run(tmp_path, module, data, max_epochs=8).last["objective/entropy"])
    assert entropies[1] > entropies[0] + 0.5


def test_checkpoints_inside_an_iteration_are_refused(tmp_path: Path) -> None:
    module, data = ppo()
    from lightning.pytorch.callbacks import ModelCheckpoint

    with pytest.raises(UserError, match="every_n_epochs"):
        trainer(tmp_path, enable_checkpointing=True, callbacks=[ModelCheckpoint(tmp_path, every_n_train_steps=3)]).fit(
            module, datamodule=data
        )


def test_a_reward_of_the_wrong_length_stops_the_run(tmp_path: Path) -> None:
    module, data = ppo(reward=lambda prompts, responses, **columns: [1.0])
    with pytest.raises(UserError, match="returned 1 scores for 16 responses"):
        run(tmp_path, module, data)


def test_rewards_get_the_rows_columns_and_who_ended(tmp_path: Path) -> None:
    seen: dict[str, Any] = {}

    def reward(prompts: list[str], responses: list[str], **columns: Any) -> list[float]:
        seen.update(columns, prompts=prompts)
        return [0.0] * len(responses)

    module, data = ppo(reward=reward)
    data.train = [{"prompt": f"a {w}", "topic": w} for w in "bcde"]
    run(tmp_path, module, data)
    assert [f"a {topic}" for topic in seen["topic"]] == seen["prompts"]
    assert seen["ended"] == module.last_rollout.ended.tolist()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_gradients_are_gone_once_a_step_is_done(accumulate: int, tmp_path: Path) -> None:
    """There are none while responses are sampled and in forward passes, except of accumulated batches."""
    module, data = ppo()
    alive: list[bool] = []
    inner, collect = module.loss, module.collect

    def note(*args: Any) -> None:
        alive.append(any(parameter.grad is not None for parameter in module.parameters()))

    module.loss = lambda batch: (note(), inner(batch))[1]
    module.collect = lambda: (note(), collect())[1]
    trainer(tmp_path, max_epochs=2, accumulate_grad_batches=accumulate).fit(module, datamodule=data)
    steps = [i % accumulate != 0 for i in range(16 * accumulate)]
    assert alive == 2 * [False, *steps]
