"""Monitoring a metric that a run never logs is refused before it begins; the known names are those that runs log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlhf_lightning.callbacks import Instruments
from rlhf_lightning.commands.composition import compose_config
from rlhf_lightning.config.checks import check_sections
from rlhf_lightning.config.monitors import check_monitors, metrics_of
from rlhf_lightning.errors import UserError
from rlhf_lightning.source.declarations import declared
from tests.algorithms.conftest import dpo, ppo, reward, sft, trainer

MADE: dict[str, Any] = {"SFTModule": sft, "RewardModule": reward, "DPOModule": dpo, "PPOModule": ppo}
# Logged only with an external engine, `importance_cap`, several samples per prompt, `nll_coef`, or a length penalty.
SELDOM = {
    *("rollout/importance_weight", "rollout/importance_capped", "rollout/group_spread", "rollout/group_std"),
    *("nll/chosen", "val/nll/chosen", "reward/disagreement"),
    *("objective/length_penalty", "objective/overlong_penalty"),
}


@pytest.mark.parametrize("algorithm", MADE)
def test_the_known_metrics_are_those_that_a_run_logs(algorithm: str, tmp_path: Path) -> None:
    module, data = reward(tmp_path) if algorithm == "RewardModule" else MADE[algorithm]()
    if declared(f"rlhf_lightning.algorithms.{algorithm}").on_policy:
        data.val = [{"prompt": "k l"}]
    fit = trainer(tmp_path, max_epochs=1, log_every_n_steps=1, callbacks=[Instruments()])
    fit.fit(module, datamodule=data)
    logged = {name for name in fit.callback_metrics if not name.startswith("objective/scores/")}
    assert logged == metrics_of(declared(f"rlhf_lightning.algorithms.{algorithm}")) - SELDOM


EARLY = "lightning.pytorch.callbacks.EarlyStopping"
WORDS = ["experiment=sft", "model.path=x", "data.train=x.jsonl"]


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["callbacks.checkpoint.monitor=val/los"], r"callbacks\.checkpoint\.monitor.*did you mean val/loss\?"),
        ([f"+callbacks.early={{_target_: {EARLY}, monitor: accuracy}}"], r"callbacks\.early\.monitor.*train/loss"),
    ],
)
def test_an_unknown_monitor_is_refused_before_anything_is_loaded(words: list[str], hint: str) -> None:
    with pytest.raises(UserError, match=hint):
        check_sections(compose_config("train", [*WORDS, *words]))


def test_a_callback_of_others_may_log_what_is_monitored() -> None:
    mine = "+callbacks.mine={_target_: mine.Logs}"
    check_monitors(compose_config("train", [*WORDS, "callbacks.checkpoint.monitor=mine", mine]))
