"""The reference is the policy before training, seen through the same temperature and without dropout."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model

from rlhf_lightning.rollout import RolloutSettings
from tests.algorithms.conftest import SGD, ppo, trainer
from tests.tiny import tiny_model


def lora_with_dropout() -> Any:
    settings = LoraConfig(r=4, lora_dropout=0.5, target_modules=["c_attn"], fan_in_fan_out=True)
    return get_peft_model(tiny_model("gpt2", dropout=0.5), settings)


@pytest.mark.parametrize("model", [partial(tiny_model, "gpt2", dropout=0.5), lora_with_dropout])
@pytest.mark.parametrize("temperature", [0.7, 1.3])
def test_the_first_kl_is_zero_at_any_temperature_and_with_dropout(
    model: Any, temperature: float, tmp_path: Path
) -> None:
    settings = RolloutSettings(max_new_tokens=4, batch_size=8, temperature=temperature)
    module, data = ppo(model, SGD, rollout=settings, ppo_epochs=1, num_minibatches=1)
    run = trainer(tmp_path)
    run.fit(module, datamodule=data)
    assert float(run.callback_metrics["objective/kl"]) == 0.0
