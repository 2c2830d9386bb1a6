"""Validation of PPO: held-out prompts are answered and scored, and training is unaffected."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from rlhf_lightning.algorithms import RewardShaping
from rlhf_lightning.callbacks import ReproducibleResume, ResumableCheckpoint, SampleTable
from rlhf_lightning.data import PromptDataModule
from rlhf_lightning.models import fingerprint, load_causal_lm
from rlhf_lightning.rewards import WeightedSum
from rlhf_lightning.rollout import RolloutSettings, VLLMRollout, VLLMServer
from rlhf_lightning.rollout.vllm_client import VLLMClient
from tests.algorithms.conftest import count_early, ppo, trainer
from tests.algorithms.test_dpo import lora
from tests.rollout.fake_vllm import serving
from tests.tiny import tiny_model, tiny_tokenizer

NAMES = ("val/scores", "val/kl", "val/response_length")
ROWS = [{"prompt": f"{a} {b}"} for a in "bcdef" for b in "ghij"]
HELD_OUT = [{"prompt": f"{a} {b}", "mark": f"{a}{b}"} for a in "klm" for b in "nop"]  # 9


def held_out(model: Any = tiny_model, **kwargs: Any) -> tuple[Any, PromptDataModule]:
    settings = {"rollout": RolloutSettings(max_new_tokens=6, batch_size=8), "ppo_epochs": 2, "num_minibatches": 2}
    module, _ = ppo(model, **{**settings, **kwargs})
    return module, PromptDataModule(tiny_tokenizer(), ROWS, HELD_OUT)


class Kept:
    """A reward that records the held-out prompts that it scores."""

    def __init__(self) -> None:
        self.marks: list[list[str]] = []
        self.scores: list[list[float]] = []

    def __call__(self, prompts: list[str], responses: list[str], **columns: Any) -> list[float]:
        scores = count_early(prompts, responses)
        if "mark" in columns:
            self.marks.append(columns["mark"])
            self.scores.append(scores)
        return scores


class Logged(L.Callback):
    """Records what a validation logs, by epoch."""

    def __init__(self) -> None:
        self.by_epoch: dict[int, dict[str, float]] = {}

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.by_epoch[trainer.current_epoch] = {name: float(trainer.callback_metrics[name]) for name in NAMES}


def fit(folder: Path, module: Any, data: Any, *callbacks: L.Callback, ckpt: str | None = None, **kwargs: Any) -> Logged:
    logged = Logged()
    checkpoints = any(isinstance(each, ModelCheckpoint) for each in callbacks)
    settings = {"max_epochs": 2, "enable_checkpointing": checkpoints, **kwargs}
    trainer(folder, callbacks=[logged, *callbacks], **settings).fit(module, datamodule=data, ckpt_path=ckpt)
    return logged


def test_every_held_out_prompt_is_answered_once_and_its_figures_are_logged(tmp_path: Path) -> None:
    """In two batches of unequal size, with the same weight for each response."""
    reward, rollouts = Kept(), []
    module, data = held_out(reward=reward)
    evaluate = module.evaluate
    module.evaluate = lambda prompts, generation: (rollouts.append(evaluate(prompts, generation)), rollouts[-1])[1]
    logged = fit(tmp_path, module, data, max_epochs=1)
    assert (
        sorted(mark for marks in reward.marks for mark in marks) == sorted(str(row["mark"]) for row in HELD_OUT)
        and len(reward.marks) == 2
    )
    responses = [(row, kept) for kept in rollouts[1:] for row in range(len(kept))]
    kls = [float(((kept.logprobs - kept.ref_logprobs) * kept.mask)[row].sum()) for row, kept in responses]
    lengths = [float(kept.mask[row].sum()) for row, kept in responses]
    scores = [score for scores in reward.scores for score in scores]
    expected = dict(zip(NAMES, (sum(x) / 9 for x in (scores, kls, lengths)), strict=True))
    assert logged.by_epoch == {0: pytest.approx(expected, abs=1e-5)}
    assert abs(expected["val/kl"]) > 1e-4


@pytest.mark.parametrize("model", [tiny_model, lora])
def test_training_is_bitwise_that_without_a_validation(model: Any, tmp_path: Path) -> None:
    ends = []
    for rows in (None, HELD_OUT):
        module, data = held_out(model, shaping=RewardShaping(normalize=True))
        data.val = rows
        logged = fit(tmp_path, module, data, max_epochs=3)
        assert bool(logged.by_epoch) == (rows is not None)
        states = module.reward_moments.state_dict(), module.kl_controller.state_dict()
        ends.append((fingerprint(module.policy), *states, float(module.trainer.callback_metrics["objective/kl"])))
    assert ends[0] == ends[1]
    assert ends[0][1]["count"] == 24  # number of the responses that were trained on


def test_it_is_done_every_n_iterations_and_after_one_that_target_kl_cuts_short(tmp_path: Path) -> None:
    module, data = held_out(target_kl=1e-9)
    logged = fit(tmp_path, module, data, max_epochs=5, check_val_every_n_epoch=2)
    assert list(logged.by_epoch) == [1, 3]
    assert module.trainer.global_step < 5 * 4
    assert logged.by_epoch[1] != logged.by_epoch[3]


def test_a_resumed_run_validates_as_the_uninterrupted_one(tmp_path: Path) -> None:
    whole = fit(tmp_path / "whole", *held_out(), max_epochs=4)
    save = ModelCheckpoint(tmp_path / "cut", filename="cut", every_n_epochs=2)
    first = fit(tmp_path / "cut", *held_out(), save, ReproducibleResume(), max_epochs=2)
    torch.manual_seed(99)
    rest = fit(tmp_path / "cut", *held_out(), ReproducibleResume(), max_epochs=4, ckpt=str(tmp_path / "cut/cut.ckpt"))
    assert {**first.by_epoch, **rest.by_epoch} == whole.by_epoch and list(rest.by_epoch) == [2, 3]


def test_the_best_checkpoint_is_one_of_an_iteration_that_was_validated(tmp_path: Path) -> None:
    module, data = held_out()
    chosen: dict[str, Any] = {"monitor": "val/scores", "mode": "max", "save_top_k": 2, "save_last": True}
    save = ResumableCheckpoint(tmp_path, "{epoch}", every_n_epochs=1, save_on_train_epoch_end=True, **chosen)
    logged = fit(tmp_path, module, data, save, max_epochs=6, check_val_every_n_epoch=2)
    scores = {f"epoch={epoch}.ckpt": figures["val/scores"] for epoch, figures in logged.by_epoch.items()}
    best = sorted(scores, key=lambda name: scores[name], reverse=True)[:2]
    assert {Path(path).name: float(x) for path, x in save.best_k_models.items()} == {
        name: scores[name] for name in best
    }
    assert Path(save.best_model_path).name == best[0] and len(scores) == 3
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["epoch"] == 5


def test_held_out_samples_follow_those_of_training_in_the_table(tmp_path: Path) -> None:
    module, data = held_out()
    fit(tmp_path, module, data, SampleTable(rows=2), check_val_every_n_epoch=2)
    rows = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(row["epoch"], row.get("split")) for row in rows] == [(0, None)] * 2 + [(1, None)] * 2 + [(1, "val")] * 2
    held = {str(row["prompt"]) for row in HELD_OUT}
    assert [row["prompt"] in held for row in rows] == [row.get("split") == "val" for row in rows]


def test_one_response_is_drawn_for_each_however_many_training_draws(tmp_path: Path) -> None:
    reward = Kept()
    module, data = held_out(
        reward=reward, rollout=RolloutSettings(max_new_tokens=6, batch_size=8, samples_per_prompt=4)
    )
    fit(tmp_path, module, data, max_epochs=1)
    assert sum(map(len, reward.marks)) == 9


def test_parts_of_a_reward_are_logged(tmp_path: Path) -> None:
    module, data = held_out(reward=WeightedSum({"early": count_early, "twice": count_early}, {"early": 1, "twice": 2}))
    fit(tmp_path, module, data, max_epochs=1)
    logged = module.trainer.callback_metrics
    assert float(logged["val/scores"]) == pytest.approx(3 * float(logged["val/scores/early"]), rel=1e-5)


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed"])
@pytest.mark.parametrize("layout", ["shared", "separate"])
def test_it_runs_in_half_precision(precision: Any, layout: str, tmp_path: Path) -> None:
    module, data = held_out(layout=layout)
    logged = fit(tmp_path, module, data, max_epochs=1, precision=precision, num_sanity_val_steps=1)
    assert all(value == value for value in logged.by_epoch[0].values())


def test_the_seconds_of_a_validation_are_no_update(tmp_path: Path) -> None:
    module, data = held_out()
    laps: list[str] = []
    lap = module.stopwatch.lap
    module.stopwatch.lap = lambda phase, device: (laps.append(phase), lap(phase, device))[1]
    fit(tmp_path, module, data, max_epochs=1)
    assert laps == ["between", "rollout", "score", "update", "validation", "update"]


def test_the_held_out_samples_are_functions_of_seed_and_iteration(tmp_path: Path) -> None:
    """With a policy that never moves: other draws in every iteration, and the same in every run."""
    runs = []
    for _ in range(2):
        module, data = held_out(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.0))
        runs.append(fit(tmp_path, module, data).by_epoch)
    assert runs[0] == runs[1] and runs[0][0] != runs[0][1]


def test_a_vllm_server_answers_with_the_weights_after_the_updates(tmp_path: Path) -> None:
    """Its log-probabilities are those that the trainer computes with the updated policy; it receives new weights."""
    tiny_model().save_pretrained(tmp_path / "base")
    with serving(tmp_path / "base") as server:
        rollout = VLLMRollout(server=server.address, batch_size=8, max_new_tokens=6)
        engine = VLLMServer(0, [1], rollout, VLLMClient(server.address, attempts=2, pause=0.01))
        module, data = held_out(partial(load_causal_lm, tmp_path / "base"), rollout=rollout, engine=engine)
        gaps, evaluate = [], module.evaluate

        def compare(prompts: Any, generation: Any) -> Any:
            kept = evaluate(prompts, generation)
            gaps.append(float((kept.logprobs - generation.logprobs).abs().max()))
            return kept

        module.evaluate = compare
        logged = fit(tmp_path, module, data, max_epochs=1)
        seeds = {request["seed"] for request in server.requests}
    assert len(gaps) == 3 and max(gaps) < 1e-4 and len(seeds) == len(server.requests) == 8 + 9
    assert abs(logged.by_epoch[0]["val/kl"]) > 1e-4
