"""A PPO minibatch computed in parts of a token budget equals the minibatch computed at once."""

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
    """Records losses and gradients of every optimiser step, and the sizes of the network's inputs."""

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
    """Compare up to 1e-6 of a gradient's length, or 1e-6 if that is below 1."""
    for one, other in zip(mine, theirs, strict=True):
        assert float(other.norm()) > 0.01
        torch.testing.assert_close(one, other, atol=1e-6 * max(1.0, float(other.norm())), rtol=0)


QUICK = ("plain", "entropy, KL in the loss", "pretraining mix")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in SETTINGS]
)
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
    """Gemma 2 is not in the families that are packed."""
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


class Alive:
    """Bytes that graphs store for the backward pass: now, at most, and whenever a part's forward pass begins."""

    def __init__(self) -> None:
        self.now = self.peak = 0
        self.before: list[int] = []
        self.parts: list[int] = []

    class Held:
        def __init__(self, owner: Alive, tensor: torch.Tensor) -> None:
            self.owner, self.tensor, self.size = owner, tensor, tensor.numel() * tensor.element_size()
            owner.now += self.size
            owner.peak = max(owner.peak, owner.now)

        def __del__(self) -> None:
            self.owner.now -= self.size

    def pack(self, tensor: torch.Tensor) -> Any:
        return tensor if isinstance(tensor, torch.nn.Parameter) else Alive.Held(self, tensor)

    @staticmethod
    def unpack(held: Any) -> torch.Tensor:
        tensor: torch.Tensor = held.tensor if isinstance(held, Alive.Held) else held
        return tensor


def saved(folder: Path, budget: int | None, **settings: Any) -> Alive:
    """Return what an iteration's updates store for their backward passes."""
    alive = Alive()
    precision = settings.pop("precision", "32-true")
    accumulate = settings.pop("accumulate_grad_batches", 1)
    model = settings.pop("model", tiny_model)
    rollout = RolloutSettings(max_new_tokens=12, batch_size=16)
    module, data = ppo(model, optimizer=SLOW, rollout=rollout, tokens_per_microbatch=budget, ppo_epochs=1, **settings)
    inner = module.loss

    def loss(batch: Any) -> Any:
        alive.before.append(alive.now)
        result = inner(batch)
        alive.parts.append(alive.now - alive.before[-1])
        return result

    module.loss = loss
    with torch.autograd.graph.saved_tensors_hooks(alive.pack, alive.unpack):
        trainer(folder, precision=precision, accumulate_grad_batches=accumulate).fit(module, data)
    return alive


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_minibatches": 2, "accumulate_grad_batches": 2},
        {"layout": "separate", "entropy_coef": 0.1, "kl": KL_IN_LOSS},
        {"precision": "bf16-mixed"},
        {"model": partial(tiny_model, "gpt2")},
    ],
    ids=["plain", "accumulated", "separate critic, entropy, KL in the loss", "bf16-mixed", "gpt2"],
)
def test_the_graph_of_one_part_is_alive_at_a_time(settings: dict[str, Any], tmp_path: Path) -> None:
    """What is stored for the backward pass is counted, not the memory of the process, which keeps freed memory."""
    whole, parts = saved(tmp_path, None, **settings), saved(tmp_path, 24, **settings)
    assert len(parts.parts) > 2 * len(whole.parts)
    assert min(parts.parts) > 0
    assert parts.before == [0] * len(parts.parts)
    assert parts.peak <= 1.2 * max(parts.parts)
    assert parts.peak < 0.5 * whole.peak


def test_parts_under_autocast_are_the_minibatch_at_once(tmp_path: Path) -> None:
    """Autocast casts a weight once for all parts: the first part's graph must not free the cast."""
    gradients: list[list[torch.Tensor]] = []
    for budget in (None, 24):
        module, data = ppo(optimizer=SLOW, tokens_per_microbatch=budget, ppo_epochs=1, num_minibatches=1)
        seen = Seen()
        trainer(tmp_path, callbacks=[seen], precision="bf16-mixed").fit(module, data)
        gradients.append(seen.gradients)
    for whole, parts in zip(*gradients, strict=True):
        assert float((whole - parts).norm()) < 0.02 * float(whole.norm())  # bfloat16 rounds to 1 in 256


def test_gradients_left_by_a_run_that_was_broken_off_are_not_added(tmp_path: Path) -> None:
    expected = run(tmp_path, 24).gradients
    module, data = ppo(
        optimizer=SLOW,
        tokens_per_microbatch=24,
        rollout=RolloutSettings(max_new_tokens=12, batch_size=16),
        num_minibatches=2,
        ppo_epochs=2,
    )
    module.configure_model()
    for p in module.parameters():
        p.grad = torch.ones_like(p) if p.requires_grad else None
    seen = Seen()
    trainer(tmp_path, callbacks=[seen]).fit(module, data)
    compare(seen.gradients, expected)


class Uneven:
    """An engine with a long response in every fourth place."""

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
