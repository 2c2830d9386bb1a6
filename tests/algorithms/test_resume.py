"""A run that is cut and resumed ends bitwise like an uninterrupted one."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from rlhf_lightning.algorithms import KLPenalty, RewardShaping
from rlhf_lightning.callbacks import ReproducibleResume
from rlhf_lightning.errors import UserError
from rlhf_lightning.models import fingerprint
from rlhf_lightning.rollout import RolloutSettings
from tests.algorithms.conftest import dpo, ppo, reward, sft, trainer
from tests.tiny import tiny_model

SAMPLES = {"ppo": 1, "ppo, groups": 4}
DROPOUT = partial(tiny_model, "gpt2", dropout=0.2)


def make(kind: str, folder: Path) -> tuple[Any, Any]:
    if kind == "sft":
        return sft(DROPOUT)
    if kind == "dpo":
        return dpo()
    if kind == "reward":
        return reward(folder)
    settings = RolloutSettings(max_new_tokens=6, batch_size=16 // SAMPLES[kind], samples_per_prompt=SAMPLES[kind])
    return ppo(kl=KLPenalty(target=1.0, horizon=50), shaping=RewardShaping(normalize=True), rollout=settings)


def train(kind: str, folder: Path, checkpoint: dict[str, int], stop: dict[str, int], resume: str | None = None) -> Any:
    module, data = make(kind, folder)
    torch.manual_seed(9)
    save = ModelCheckpoint(folder / "checkpoints", filename="cut", save_top_k=-1, **checkpoint)
    length = {"max_epochs": 4, **stop}
    run = trainer(folder, enable_checkpointing=True, callbacks=[save, ReproducibleResume()], **length)
    run.fit(module, datamodule=data, ckpt_path=resume)
    return module


@pytest.mark.parametrize("kind", ["sft", "dpo", "reward", *SAMPLES])
def test_a_resumed_run_is_bitwise_the_uninterrupted_one(kind: str, tmp_path: Path) -> None:
    """SFT, DPO and the reward model are cut in the middle of epoch 2 (5 batches each), PPO after iteration 2."""
    every = {"every_n_epochs": 2} if kind in SAMPLES else {"every_n_train_steps": 7}
    whole = train(kind, tmp_path / "whole", {"every_n_epochs": 99}, {})
    stop = {"max_epochs": 2} if kind in SAMPLES else {"max_steps": 7}
    train(kind, tmp_path / "cut", every, stop)
    torch.manual_seed(1234)  # another process has other random states
    resumed = train(kind, tmp_path / "cut", {"every_n_epochs": 99}, {}, str(tmp_path / "cut/checkpoints/cut.ckpt"))
    network = "policy" if kind in SAMPLES else "model"
    assert fingerprint(getattr(resumed, network)) == fingerprint(getattr(whole, network))
    if kind in SAMPLES:
        assert resumed.kl_controller.value == whole.kl_controller.value != 0.1
        assert resumed.reward_moments.state_dict() == whole.reward_moments.state_dict()


@pytest.mark.parametrize("key", ["kl_controller", "reward_moments", "reference"])
def test_a_tampered_key_of_a_ppo_checkpoint_is_noticed(key: str, tmp_path: Path) -> None:
    train("ppo", tmp_path, {"every_n_epochs": 2}, {"max_epochs": 2})
    path = tmp_path / "checkpoints/cut.ckpt"
    state = torch.load(path, weights_only=True)
    if key == "reference":
        state["origin"][key] = "0" * 64
    else:
        state["resumes"][key] = {name: value + 1.0 for name, value in state["resumes"][key].items()}
    torch.save(state, path)
    if key == "reference":
        with pytest.raises(UserError, match="the reference has changed"):
            train("ppo", tmp_path, {"every_n_epochs": 99}, {}, str(path))
    else:
        module = train("ppo", tmp_path, {"every_n_epochs": 99}, {"max_epochs": 2}, str(path))
        restored = getattr(module, key).state_dict()
        assert restored == state["resumes"][key]


def test_a_reference_in_half_precision_is_known_again(tmp_path: Path) -> None:
    half = {"precision": "bf16-true"}
    train("ppo", tmp_path, {"every_n_epochs": 1}, {"max_epochs": 1, **half})
    train("ppo", tmp_path, {"every_n_epochs": 99}, {"max_epochs": 2, **half}, str(tmp_path / "checkpoints/cut.ckpt"))
