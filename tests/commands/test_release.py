"""A run leaves nothing in memory: the next stage of a pipeline, and the evaluation, load their own networks."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningDataModule, LightningModule, Trainer
from torch.optim import Optimizer
from transformers import PreTrainedModel

from rlhf_lightning.commands import train
from rlhf_lightning.commands.composition import compose_config
from rlhf_lightning.evaluation import evaluate_policies, policies
from tests.commands.runs import write_model

_before: list[Any] = []  # what other tests left behind, and still hold


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Let Python free reference cycles only when asked to."""
    gc.collect()
    _before[:] = [found for found in gc.get_objects() if isinstance(found, KINDS)]
    gc.disable()
    yield
    gc.enable()
    _before.clear()


KINDS = (LightningModule, PreTrainedModel, Optimizer, LightningDataModule, Trainer)


def living(*kinds: type) -> list[str]:
    former = {id(each) for each in _before}
    return [type(found).__name__ for found in gc.get_objects() if isinstance(found, kinds) and id(found) not in former]


def config_of(experiment: str, folder: Path, *overrides: str) -> dict[str, Any]:
    words = "abcdefgh"
    rows = [{"prompt": f"{a} {b}", "completion": b, "chosen": f"{a} {a}", "rejected": b} for a in words for b in words]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:8]))
    if not (folder / "base").is_dir():
        write_model(folder / "base")
    fixed = ["trainer.accelerator=cpu", "trainer.max_epochs=1", "logger=none", "callbacks.progress=null"]
    own = [f"model.path={folder}/base", f"data.train={folder}/rows.jsonl", f"run_dir={folder}/{experiment}"]
    return compose_config("train", [f"experiment={experiment}", *fixed, *own, *overrides])


PPO = ["reward.function=tests.commands.test_release.score", "rollout.batch_size=8", "rollout.max_new_tokens=4"]


def score(prompts: list[str], responses: list[str], **columns: Any) -> list[float]:
    return [float(len(response)) for response in responses]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize(("experiment", "overrides"), [("dpo", []), ("ppo", PPO)])
def test_a_stage_leaves_no_network_and_no_optimiser(experiment: str, overrides: list[str], tmp_path: Path) -> None:
    train.run(config_of(experiment, tmp_path, *overrides))
    assert living(*KINDS) == []


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("no_collector")
def test_one_policy_is_gone_before_the_next_one_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load, found = policies._load, []

    def count(*arguments: Any, **named: Any) -> Any:
        found.append(len(living(PreTrainedModel)))
        return load(*arguments, **named)

    monkeypatch.setattr(policies, "_load", count)
    config_of("sft", tmp_path)
    base = tmp_path / "base"
    evaluate_policies({"a": base, "b": base, "c": base}, tmp_path / "rows.jsonl", "a", max_new_tokens=2)
    assert found == [0, 0, 0]


@pytest.mark.filterwarnings("ignore")
def test_products_are_of_the_asked_precision_for_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", asked.append)
    train.run(config_of("dpo", tmp_path, "matmul_precision=high"))
    assert asked == ["high", "highest"]
