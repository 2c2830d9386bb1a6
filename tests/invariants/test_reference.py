"""The reference is the policy before training, at the same temperature and without dropout."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model

from rlhf_lightning.rollout import RolloutSettings
from tests.algorithms.conftest import SGD, dpo, pair_rows, ppo, trainer
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


def test_cached_log_probabilities_of_other_answers_are_not_used(tmp_path: Path) -> None:
    """The same folder, the same model and as many rows, but the answers were edited in between."""
    tables = []
    for rows in (pair_rows(), [{**row, "rejected": "z y"} for row in pair_rows()]):
        module, data = dpo(precompute_reference=True)
        data.train = rows
        trainer(tmp_path, max_epochs=0).fit(module, datamodule=data)
        tables.append(module.reference_table)
    assert set(tables[0]) == set(tables[1])
    assert tables[0] != tables[1]
