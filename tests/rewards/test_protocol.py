"""Optional capabilities of rewards and engines are requested from all of them, and have defaults."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import rlhf_lightning
from rlhf_lightning.errors import UserError
from rlhf_lightning.rewards import FunctionReward, ModelReward, Reward, WeightedSum, as_reward
from rlhf_lightning.rollout import Engine, NativeEngine, VLLMEngine, VLLMServer, as_engine
from tests.algorithms.conftest import count_early, ppo, trainer
from tests.tiny import tiny_model


class Few:
    """Has some of a Reward's methods, without being one."""

    name, key, reads_tokens = "few", "reward.few", True

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.parts = {"a": [1.0]}

    def to(self, device: Any) -> None:
        self.asked.append(device)

    def origin(self) -> dict[str, str]:
        return {"reward.few": "mark"}

    def __call__(self, prompts: list[str], responses: list[str], **columns: Any) -> list[float]:
        return [float(len(columns["sampled"].responses[i])) for i in range(len(responses))]


def test_a_plain_function_answers_with_the_defaults() -> None:
    reward = as_reward(count_early)
    assert reward(["a"], ["b c z"]) == [2.0]
    assert reward.to("cpu") is reward and reward.check_length(5) is None and reward.share_backbone(tiny_model()) is None
    assert (reward.origin(), reward.parts, reward.key, reward.reads_tokens) == ({}, {}, "", False)
    assert reward.name == "function"


def test_an_object_is_asked_for_the_methods_that_it_has() -> None:
    few = Few()
    reward = as_reward(few)
    reward.to("cpu")
    reward.check_length(3)
    assert few.asked == ["cpu"] and reward.origin() == {"reward.few": "mark"}
    assert (reward.name, reward.key, reward.reads_tokens, reward.parts) == ("few", "reward.few", True, {"a": [1.0]})
    few.parts = {"b": [2.0]}
    assert reward.parts == {"b": [2.0]}


@pytest.mark.parametrize("kind", [FunctionReward, ModelReward, WeightedSum])
def test_our_rewards_are_rewards(kind: type) -> None:
    assert issubclass(kind, Reward)


def test_a_reward_is_left_as_it_is() -> None:
    reward = WeightedSum({"a": count_early}, {"a": 1.0})
    assert as_reward(reward) is reward and as_reward(as_reward(count_early)).name == "function"


def test_a_sum_asks_its_parts() -> None:
    few = Few()
    reward = WeightedSum({"few": few, "plain": count_early}, {"few": 1.0, "plain": 1.0})
    reward.to("cpu")
    reward.check_length(3)
    reward.share_backbone(tiny_model())
    assert few.asked == ["cpu"] and reward.origin()["reward.few"] == "mark"


@pytest.mark.parametrize("kind", [NativeEngine, VLLMEngine, VLLMServer])
def test_our_engines_are_engines(kind: type) -> None:
    assert issubclass(kind, Engine)


class Sampler:
    """A user's own engine, with the two methods that it needs."""

    def __init__(self) -> None:
        self.inner = NativeEngine(0, [1])

    def sync(self, model: nn.Module) -> None:
        self.inner.sync(model)

    def generate(self, *args: Any) -> Any:
        return self.inner.generate(*args)


def test_an_engine_with_two_methods_trains_as_ours_does(tmp_path: Path) -> None:
    weights = []
    for engine in (None, Sampler()):
        module, data = ppo(engine=engine)
        trainer(tmp_path).fit(module, datamodule=data)
        weights.append(torch.cat([p.detach().flatten() for p in module.policy.parameters()]))
    assert torch.equal(*weights)
    assert as_engine(Sampler()).close() is None and as_engine(Sampler()).keep(None) is False


def test_an_engine_that_can_be_closed_is() -> None:
    closed: list[int] = []
    sampler = Sampler()
    sampler.close = lambda: closed.append(1)  # type: ignore[attr-defined]
    as_engine(sampler).close()
    assert closed == [1]


def test_values_are_not_asked_of_an_engine_that_keeps_none(tmp_path: Path) -> None:
    module, data = ppo(engine=Sampler(), old_logprobs="engine")
    with pytest.raises(UserError, match=r"algorithm\.old_logprobs: found engine, but Sampler does not compute as"):
        trainer(tmp_path).fit(module, datamodule=data)


def test_no_algorithm_looks_for_a_method_of_rewards_or_engines() -> None:
    package = Path(rlhf_lightning.__file__).parent
    files = [file for folder in ("algorithms", "experience") for file in (package / folder).glob("*.py")]
    found = [
        f"{file.name}:{node.lineno}"
        for file in files
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("hasattr", "getattr", "isinstance")
        if any(name in ast.unparse(node.args[0]) for name in ("reward", "engine"))
    ]
    assert len(files) > 10 and not found
