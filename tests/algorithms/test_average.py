"""The average of the trained weights, beside every algorithm, on full and on 4-bit weights."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from rlhf_lightning.callbacks import ReproducibleResume, TrainableAverage
from rlhf_lightning.models import NF4, LoRA, load_causal_lm
from tests.algorithms.conftest import ON_POLICY, of_kind, offline, on_policy, reward, sft, trainer
from tests.tiny import tiny_model, tiny_tokenizer

ROWS = of_kind("preference", "unpaired")
NAMES = [("sft", "nf4"), ("reward", "full"), *((name, "nf4") for name in ROWS), *((name, "full") for name in ON_POLICY)]
QUICK = [("grpo", "full")]


def some() -> list[Any]:
    return [pytest.param(*each, marks=() if each in QUICK else pytest.mark.slow, id="-".join(each)) for each in NAMES]


class Live(Callback):
    """Keeps the live weights after the last step, and the average then."""

    def __init__(self, average: TrainableAverage) -> None:
        self.average = average

    def on_train_end(self, run: Any, module: Any) -> None:
        self.weights = weights(module)
        self.kept = {name: each.clone() for name, each in self.average.state_dict()["average"].items()}


def weights(module: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}


def build(name: str, kind: str, folder: Path) -> tuple[Any, Any]:
    if not (folder / "base").exists():
        tiny_model(hidden=64).save_pretrained(folder / "base")
        tiny_tokenizer().save_pretrained(folder / "base")
    load = partial(load_causal_lm, folder / "base", adapter=LoRA(rank=4), quantization=NF4())
    model: Any = load if kind == "nf4" else tiny_model
    if name in ON_POLICY:
        module, data = on_policy(name, model)
        data.val = [{"prompt": "d e"}, {"prompt": "f"}]
        return module, data
    return reward(folder) if name == "reward" else sft(model) if name == "sft" else offline(name, model)


@pytest.mark.parametrize(("name", "kind"), some())
def test_a_run_ends_with_the_average_resumes_bitwise_and_trains_as_without_it(
    name: str, kind: str, tmp_path: Path
) -> None:
    def fit(epochs: int, resume: Path | None = None) -> tuple[Any, Live, dict[str, float]]:
        torch.manual_seed(0)
        module, data = build(name, kind, tmp_path)
        module.configure_model()  # adapters begin at random
        torch.manual_seed(epochs)  # another process has other random states
        average = TrainableAverage(0.5, validate=True)
        live, save = Live(average), ModelCheckpoint(tmp_path / f"{epochs}", filename="cut", save_top_k=-1)
        callbacks = [live, save, ReproducibleResume(), average]
        run = trainer(tmp_path, callbacks=callbacks, enable_checkpointing=True, max_epochs=epochs)
        run.fit(module, datamodule=data, ckpt_path=resume)
        metrics = {k: float(v) for k, v in run.callback_metrics.items() if not k.startswith(("time/", "rollout/tok"))}
        return module, live, metrics

    whole, live, metrics = fit(2)
    for key, value in weights(whole).items():
        assert torch.equal(value, live.kept[key].to(value.dtype)), key
    assert any(not torch.equal(value, live.weights[key]) for key, value in weights(whole).items())
    assert metrics["average/distance"] > 0 and any(key.startswith("val/") for key in metrics)
    fit(1)
    resumed, again, same = fit(2, tmp_path / "1" / "cut.ckpt")
    assert all(torch.equal(value, weights(resumed)[key]) for key, value in weights(whole).items())
    assert all(torch.equal(value, again.weights[key]) for key, value in live.weights.items())
    assert same == metrics

    torch.manual_seed(0)
    module, data = build(name, kind, tmp_path)
    module.configure_model()
    torch.manual_seed(2)
    trainer(tmp_path, max_epochs=2).fit(module, datamodule=data)
    assert all(torch.equal(value, live.weights[key]) for key, value in weights(module).items())
