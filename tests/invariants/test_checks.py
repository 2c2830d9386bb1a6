"""The checks of what is loaded leave no trace: with and without them, a run of a seed is bitwise the same."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from rlhf_lightning.algorithms import DPOModule, PPOModule
from rlhf_lightning.models import LoRA, fingerprint, load_causal_lm
from rlhf_lightning.models import dropout as dropout_module
from rlhf_lightning.models import loading as loading_module
from rlhf_lightning.rollout import native as native_module
from tests.algorithms.conftest import dpo, ppo, trainer
from tests.tiny import tiny_model

MADE = {"plain_forward", "check_causal_lm", "training_differs"}
CASES = {
    "llama-shared": ("llama", ppo, None),
    "gpt2-shared-lora": ("gpt2", ppo, LoRA(rank=2)),
    "gpt2-separate": ("gpt2", partial(ppo, layout="separate"), None),
    "llama-dpo": ("llama", dpo, None),
}


class Trace(L.Callback):
    """Records what was sampled in every iteration."""

    def __init__(self) -> None:
        self.sampled: list[tuple[list[Any], ...]] = []

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if isinstance(pl_module, PPOModule) and pl_module.last_rollout is not None:
            rollout = pl_module.last_rollout
            kept = (rollout.response_ids, rollout.logprobs, rollout.values, rollout.scores)
            self.sampled.append(tuple(tensor.tolist() for tensor in kept))


def leave_checks_out(patch: pytest.MonkeyPatch, ran: list[str], really: bool) -> None:
    """Record which checks are requested; with `really`, they are skipped and every network passes."""

    def noted(name: str, check: Any, passed: Any) -> Any:
        def made(*args: Any) -> Any:
            ran.append(name)
            return passed if really else check(*args)

        return made

    for module, name, passed in (
        (loading_module, "plain_forward", ()),
        (loading_module, "check_causal_lm", None),
        (dropout_module, "training_differs", False),
        (native_module, "decoding_of", native_module.Decoding),
    ):
        patch.setattr(module, name, noted(name, getattr(module, name), passed))


def outcome(make: Any, load: Any, folder: Path) -> tuple[Any, ...]:
    """Return everything that a run of one seed produces: samples, metrics, weights, and the state of random numbers."""
    torch.manual_seed(7)
    module, data = make(load)
    trace = Trace()
    ran = trainer(folder, callbacks=[trace])
    ran.fit(module, datamodule=data)
    assert isinstance(module, DPOModule) or len(trace.sampled) == 1
    timed = ("time/", "perf/", "rollout/tokens_per_second")
    metrics = {name: float(value) for name, value in ran.callback_metrics.items() if not name.startswith(timed)}
    return trace.sampled, metrics, fingerprint(module), torch.get_rng_state().tolist()


@pytest.mark.parametrize("case", CASES)
def test_a_run_of_a_seed_is_bitwise_the_same_without_the_checks(case: str, tmp_path: Path) -> None:
    family, make, adapter = CASES[case]
    tiny_model(family, dropout=0.3).save_pretrained(tmp_path / "model")
    load = partial(load_causal_lm, tmp_path / "model", dropout=False, adapter=adapter)
    outcomes: list[tuple[Any, ...]] = []
    for really in (False, True):
        asked: list[str] = []
        with pytest.MonkeyPatch.context() as patch:
            leave_checks_out(patch, asked, really)
            outcomes.append(outcome(make, load, tmp_path))
        assert set(asked) == (MADE if make is dpo else MADE | {"decoding_of"})
    for with_checks, without in zip(*outcomes, strict=True):
        assert with_checks == without
