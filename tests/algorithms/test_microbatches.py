"""A PPO minibatch computed in parts of a token budget is the minibatch computed at once."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from rlhf_lightning.algorithms import KLPenalty, PretrainingMix
from rlhf_lightning.rollout import Generation, RolloutSettings
from tests.algorithms.conftest import SGD, ppo, trainer
from tests.tiny import tiny_model

SLOW = partial(torch.optim.SGD, lr=0.01)  # so that rounding does not grow from step to step
KL_IN_LOSS = KLPenalty(kind="fixed", coef=0.5, placement="loss")
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "entropy, KL in the loss": {"entropy_coef": 0.1, "kl": KL_IN_LOSS},
    "a critic of its own, unclipped values": {"layout": "separate", "value_coef": 1.0, "value_clip_range": None},
    "without whitening": {"whiten_advantages": False},
    "pretraining mix": {"ptx": PretrainingMix(coef=1.0, data="text.jsonl", batch_size=2)},
}


class Seen(L.Callback):
    """Losses and gradients of every optimiser step, and the sizes of what the network was given."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.gradients: list[torch.Tensor] = []
        self.shapes: list[tuple[int, int]] = []

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        inner = pl_module.loss

        def loss(batch: Any) -> Any:
            self.shapes.append((len(batch), int(batch.lengths.max())))
            return inner(batch)

        pl_module.loss = loss

    def on_before_backward(self, trainer: L.Trainer, pl_module: Any, loss: torch.Tensor) -> None:
        self.losses.append(float(loss.detach()))

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: Any) -> None:
        found = [p.grad.flatten() for p in pl_module.parameters() if p.grad is not None]
        self.gradients.append(torch.cat(found).clone())

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        skipped = ("time/", "tokens_per_second", "gap")
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.metrics = {name: x for name, x in values.items() if not any(part in name for part in skipped)}


def run(folder: Path, budget: int | None, accumulate: int = 1, model: Any = tiny_model, **settings: Any) -> Seen:
    rollout = RolloutSettings(max_new_tokens=12, batch_size=16)
    common = {"rollout": rollout, "num_minibatches": 2, "ppo_epochs": 2, **settings}
    module, data = ppo(model, optimizer=SLOW, tokens_per_microbatch=budget, **common)
    seen = Seen()
    trainer(folder, callbacks=[seen], accumulate_grad_batches=accumulate).fit(module, data)
    return seen


def compare(mine: list[torch.Tensor], theirs: list[torch.Tensor]) -> None:
    """Equal to 1e-6 of a gradient's length, or to 1e-6 where that is below 1."""
    for one, other in zip(mine, theirs, strict=True):
        assert float(other.norm()) > 0.01
        torch.testing.assert_close(one, other, atol=1e-6 * max(1.0, float(other.norm())), rtol=0)


@pytest.mark.parametrize("name", SETTINGS)
def test_values_gradients_and_metrics_do_not_depend_on_the_budget(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.jsonl").write_text('{"text": "a b c d e f g h"}\n' * 8)
    settings = SETTINGS[name]
    whole = run(tmp_path, None, **settings)
    assert len(whole.losses) == 4
    for budget in (1, 24):
        parts = run(tmp_path, budget, **settings)
        assert len(parts.shapes) > 8
        assert parts.losses == pytest.approx(whole.losses, abs=1e-6, rel=1e-6)
        compare(parts.gradients, whole.gradients)
        assert parts.metrics == pytest.approx(whole.metrics, abs=1e-5, rel=1e-5)


def test_the_budget_and_accumulated_batches_go_together(tmp_path: Path) -> None:
    whole, parts = run(tmp_path, None), run(tmp_path, 24, accumulate=4)
    compare(parts.gradients, whole.gradients)


def test_a_part_holds_no_more_tokens_than_the_budget(tmp_path: Path) -> None:
    for rows, longest in run(tmp_path, 24).shapes:
        assert rows * longest <= 24 or rows == 1


def test_the_network_reads_fewer_tokens_where_rows_are_not_packed(tmp_path: Path) -> None:
    """Gemma 2 is no family that is packed."""
    read = []
    for budget in (None, 24):
        model = tiny_model("gemma2")
        widths: list[int] = []
        model.base_model.register_forward_pre_hook(
            lambda module, args, given, widths=widths: widths.append(given["input_ids"].numel()), with_kwargs=True
        )
        module, data = ppo(lambda model=model: model, optimizer=SGD, tokens_per_microbatch=budget, ppo_epochs=1)
        module.engine = Uneven()
        trainer(tmp_path).fit(module, data)
        read.append(sum(widths))
    assert read[1] < 0.8 * read[0]


class Uneven:
    """An engine whose every fourth response is long."""

    def sync(self, model: Any) -> None:
        """Nothing to copy."""

    def generate(self, prompts: list[list[int]], settings: Any, generator: Any = None) -> Generation:
        """Responses of 1 or 12 tokens, ending in EOS."""
        lengths = torch.tensor([12 if i % 4 == 0 else 1 for i in range(len(prompts))])
        mask = (torch.arange(12) < lengths[:, None]).float()
        tokens = torch.full(mask.shape, 5).masked_fill(mask == 0, 0).scatter(1, lengths[:, None] - 1, 1)
        return Generation(tokens, mask, torch.zeros(mask.shape), torch.ones(len(prompts), dtype=torch.bool))


def test_the_stop_at_target_kl_sees_the_whole_minibatch(tmp_path: Path) -> None:
    steps = []
    for budget in (None, 24):
        seen = run(tmp_path, budget, target_kl=1e-3, ppo_epochs=4)
        steps.append(len(seen.losses))
    assert steps[0] == steps[1] < 8
