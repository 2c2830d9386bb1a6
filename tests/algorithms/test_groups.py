"""PPO on groups of responses, and the metrics of groups."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf_lightning.experience.groups import group_statistics
from rlhf_lightning.rollout import RolloutSettings
from tests.algorithms.conftest import count_early, ppo, trainer
from tests.algorithms.test_ppo import run


def test_statistics_of_groups_are_those_of_their_definition() -> None:
    """One group without spread, and one with rounding noise around a third."""
    scores = torch.tensor([1.0, 1.0, 1.0, 0.0, 3.0, 6.0, 0.1, 0.1, 0.1])
    found = {name: float(value) for name, (value, weight) in group_statistics(scores, 3).items()}
    assert found == pytest.approx({"rollout/group_spread": 1 / 3, "rollout/group_std": 1.0})
    assert {weight for _, weight in group_statistics(scores, 3).values()} == {3}
    assert group_statistics(scores, 1) == {}


class Keeps:
    """A reward that records what it was asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[str], list[float]]] = []

    def __call__(self, prompts: list[str], responses: list[str], **columns: Any) -> list[float]:
        scores = count_early(prompts, responses)
        self.calls.append((prompts, scores))
        return scores


def test_responses_to_a_prompt_are_neighbours_and_counted(tmp_path: Path) -> None:
    reward, episodes = Keeps(), []
    module, data = ppo(reward=reward, rollout=RolloutSettings(max_new_tokens=6, batch_size=8, samples_per_prompt=4))
    update = module.kl_controller.update
    module.kl_controller.update = lambda kl, n: (episodes.append(n), update(kl, n))
    watch = run(tmp_path, module, data)
    ((prompts, scores),) = reward.calls
    assert len(prompts) == 32 and episodes == [32]
    assert all(prompts[i] == prompts[i - i % 4] for i in range(32)) and len(set(prompts)) > 4
    ids = module.last_rollout.prompt_ids.view(8, 4, -1)
    assert (ids == ids[:, :1]).all()
    groups = torch.tensor(scores).view(8, 4)
    differ = groups.amax(1) != groups.amin(1)
    assert watch.last["rollout/group_spread"] == pytest.approx(float(differ.float().mean()))
    assert watch.last["rollout/group_std"] == pytest.approx(float(groups.std(dim=1).mean()), rel=1e-5)
    assert differ.any()


def test_one_sample_per_prompt_logs_no_groups(tmp_path: Path) -> None:
    watch = run(tmp_path, *ppo())
    assert "objective/scores" in watch.last and not [name for name in watch.last if "group" in name]


def test_prompts_are_the_same_however_many_samples_they_get(tmp_path: Path) -> None:
    """They are a function of (seed, epoch, rank), in the order of the prompts."""
    asked = []
    for samples in (1, 3):
        reward = Keeps()
        rollout = RolloutSettings(max_new_tokens=4, batch_size=8, samples_per_prompt=samples)
        module, data = ppo(reward=reward, rollout=rollout, ppo_epochs=1, num_minibatches=1)
        trainer(tmp_path, max_epochs=2).fit(module, datamodule=data)
        asked.append([prompts[::samples] for prompts, _ in reward.calls])
    assert asked[0] == asked[1] and asked[0][0] != asked[0][1]


def test_whole_groups_reach_the_loss_and_its_parts(tmp_path: Path) -> None:
    rollout = RolloutSettings(max_new_tokens=6, batch_size=8, samples_per_prompt=2)
    module, data = ppo(rollout=rollout, tokens_per_microbatch=20, num_minibatches=2, ppo_epochs=1)
    type(module).whole_groups, former = True, type(module).whole_groups
    try:
        seen, inner = [], module.loss
        module.loss = lambda batch: (seen.append(batch), inner(batch))[1]
        run(tmp_path, module, data)
    finally:
        type(module).whole_groups = former
    assert sum(map(len, seen)) == 16 and len(seen) > 2
    for part in seen:
        pairs = part.prompt_ids.view(len(part) // 2, 2, -1)
        assert (pairs[:, 0] == pairs[:, 1]).all()
