"""A run gives reward functions what TRL gives them, and logs what they pass on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlhf_lightning.rewards import make_reward
from tests.algorithms.conftest import ppo, trainer

HERE = __name__
SEEN: dict[str, Any] = {}


def everything(prompts, completions, completion_ids, **kwargs):
    SEEN.update(kwargs, completion_ids=completion_ids)
    kwargs["log_metric"]("tidy", 0.25)
    kwargs["log_metric"]("tidy", 0.75)
    kwargs["log_extra"]("length", [len(ids) for ids in completion_ids])
    return [0.0] * len(prompts)


def needs_progress(completions, trainer_state, **kwargs):
    return [trainer_state.global_step / trainer_state.max_steps] * len(completions)


def test_a_run_gives_its_progress_and_logs_what_functions_pass_on(tmp_path: Path) -> None:
    module, data = ppo(reward=make_reward(functions=[f"{HERE}.everything", f"{HERE}.needs_progress"]))
    fit = trainer(tmp_path, max_epochs=2)
    fit.fit(module, data)
    last = module.last_samples[0]
    assert last["extra"] == {"length": len(SEEN["completion_ids"][0])}
    assert float(fit.callback_metrics["reward/tidy/everything"]) == 0.5
    progress = SEEN["trainer_state"]
    assert (progress.epoch, progress.num_train_epochs) == (1.0, 2)
    assert 0 < progress.global_step < progress.max_steps == fit.global_step
    share = float(fit.callback_metrics["objective/scores/needs_progress"])
    assert share == pytest.approx(progress.global_step / progress.max_steps)
