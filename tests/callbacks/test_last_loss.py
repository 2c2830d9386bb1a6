"""The effect of the last step shows before weights are saved or exported, and checking it changes no results."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf_lightning.callbacks import Guardrails, ResumableCheckpoint
from rlhf_lightning.errors import BlownUpError
from tests.algorithms.conftest import dpo, ppo, reward, sft, trainer

KINDS = ("sft", "reward", "dpo", "ppo")


def made(kind: str, folder: Path, lr: float) -> tuple[Any, Any]:
    optimizer = partial(torch.optim.SGD, lr=lr)
    if kind == "sft":
        module, data = sft()
        module.make_optimizer = optimizer
        return module, data
    return (
        reward(folder, optimizer=optimizer) if kind == "reward" else {"dpo": dpo, "ppo": ppo}[kind](optimizer=optimizer)
    )


class Grows(torch.optim.SGD):
    """Climbs far up the loss in one step: to finite weights below float16's largest number."""

    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        self.state["steps"] = {"n": self.state["steps"].get("n", 0) + 1}
        if self.state["steps"]["n"] == self.at:  # type: ignore[attr-defined]
            parameters = [parameter for group in self.param_groups for parameter in group["params"]]
            heads = [parameter for parameter in parameters if parameter.ndim == 2 and len(parameter) == 1]
            for parameter in heads or parameters:  # a head with one output is linear: up is up
                parameter.data += (1e4 if heads else 100) * parameter.grad.sign()
        return loss


@pytest.mark.parametrize(
    ("kind", "precision"),
    [*((kind, "32-true") for kind in KINDS), ("sft", "bf16-true"), ("dpo", "bf16-mixed"), ("ppo", "bf16-true")],
)
def test_a_last_step_that_blows_up_leaves_the_former_checkpoint(kind: str, precision: str, tmp_path: Path) -> None:
    module, data = made(kind, tmp_path, 1e-3)
    steps = {"ppo": 16, "sft": 5}.get(kind, 5)  # per epoch

    def optimizer(parameters: Any) -> Any:
        grows = Grows(parameters, lr=1e-3)
        grows.at = 2 * steps  # type: ignore[attr-defined]
        return grows

    module.make_optimizer = optimizer
    save = ResumableCheckpoint(tmp_path / "checkpoints", save_last=True, save_top_k=0, every_n_epochs=1)
    settings: dict[str, Any] = {"enable_checkpointing": True, "precision": precision}
    run = trainer(tmp_path, max_epochs=2, callbacks=[Guardrails(), save], **settings)
    with pytest.raises(BlownUpError, match=rf"^train/loss: .* step {2 * steps}, .*blown up.*optimizer\.lr"):
        run.fit(module, datamodule=data)
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=False)
    assert saved["epoch"] == 0
    assert max(float(value.abs().max()) for value in saved["state_dict"].values()) < 50


@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_are_not_finite_are_not_saved(kind: str, tmp_path: Path) -> None:
    module, data = made(kind, tmp_path, 1e38)
    save = ResumableCheckpoint(tmp_path / "checkpoints", save_last=True, save_top_k=0, every_n_epochs=1)
    run = trainer(tmp_path, max_steps=1, max_epochs=1, callbacks=[save], enable_checkpointing=True)
    if kind == "ppo":
        run = trainer(tmp_path, max_epochs=1, callbacks=[save], enable_checkpointing=True)
        module.ppo_epochs = module.num_minibatches = 1
    with pytest.raises(BlownUpError, match="blown up"):
        run.fit(module, datamodule=data)
    assert not list((tmp_path / "checkpoints").glob("*.ckpt"))


@pytest.mark.parametrize("kind", KINDS)
def test_looking_changes_no_number(kind: str, tmp_path: Path) -> None:
    def run(*callbacks: Any) -> tuple[dict[str, torch.Tensor], dict[str, float], torch.Tensor]:
        torch.manual_seed(0)
        module, data = made(kind, tmp_path, 1e-2)
        save = ResumableCheckpoint(tmp_path / "c", save_last=True, save_top_k=0, every_n_epochs=1)
        # metrics of both epochs together, so that those that a look between them recorded would be among them
        often = {"log_every_n_steps": 10, "enable_checkpointing": True}
        fit = trainer(tmp_path, max_epochs=2, callbacks=[*callbacks, save], **often)
        fit.fit(module, datamodule=data)
        metrics = {
            name: float(x) for name, x in fit.callback_metrics.items() if not name.startswith(("time", "rollout/t"))
        }
        return {name: x.clone() for name, x in module.state_dict().items()}, metrics, torch.get_rng_state()

    with_it, without = run(Guardrails()), run()
    assert with_it[1] == without[1]
    assert torch.equal(with_it[2], without[2])
    assert all(torch.equal(x, without[0][name]) for name, x in with_it[0].items())
