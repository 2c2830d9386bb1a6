"""Parts of a weighted reward, each in units of its own running moments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from rlhf_lightning.algorithms import KLPenalty
from rlhf_lightning.callbacks import ReproducibleResume
from rlhf_lightning.experience.part_moments import PartMoments
from rlhf_lightning.models import fingerprint
from rlhf_lightning.rewards import WeightedSum
from tests.algorithms.conftest import count_early, ppo, trainer

FIRST = {"a": (2.0, [1.0, 3.0]), "b": (-1.0, [100.0, 300.0])}
SECOND = {"a": (2.0, [5.0, 5.0]), "b": (-1.0, [0.0, 0.0])}


def mine(x: torch.Tensor) -> torch.Tensor:
    return x.unsqueeze(0)


def test_each_part_is_divided_by_its_own_spread_before_its_weight() -> None:
    moments, mask = PartMoments(), torch.ones(2, 3)
    scores, tokens = moments.combine(FIRST, mask, mine)
    assert scores.tolist() == pytest.approx([2 * -1 - -1, 2 * 1 - 1]) and tokens is None
    scores, _ = moments.combine(SECOND, mask, mine)  # a has seen 1 3 5 5, b 100 300 0 0
    seen = ([1.0, 3.0, 5.0, 5.0], [100.0, 300.0, 0.0, 0.0])
    std_a, std_b = (torch.tensor(each, dtype=torch.float64).std(correction=0) for each in seen)
    assert scores.tolist() == pytest.approx([float(2 * 1.5 / std_a + 100 / std_b)] * 2)


def test_the_moments_are_those_of_all_processes() -> None:
    moments = PartMoments()
    others = {1.0: [7.0, 9.0], 100.0: [0.0, 0.0]}
    moments.combine(FIRST, torch.ones(2, 3), lambda x: torch.stack([x, torch.tensor(others[float(x[0])])]))
    assert moments.of["a"].mean == 5.0 and moments.of["b"].mean == 100.0 and moments.of["a"].count == 4


def test_numbers_per_token_are_scaled_at_their_tokens() -> None:
    parts: dict[str, Any] = {"a": (2.0, [[1.0, 0.0], [3.0, 4.0]]), "b": (1.0, [1.0, 3.0])}
    scores, tokens = PartMoments().combine(parts, torch.ones(2, 2), mine)
    assert tokens is not None  # totals of a: 1 and 7, mean 4, std 3
    torch.testing.assert_close(tokens, torch.tensor([[1.0, 0.0], [3.0, 4.0]]) * 2 / 3)
    torch.testing.assert_close(scores, torch.tensor([-2.0 - 1, 2.0 + 1]))


def test_the_state_has_every_part_whatever_its_name() -> None:
    moments, again = PartMoments(), PartMoments()
    moments.combine({"a/b": (1.0, [1.0, 2.0]), "": (1.0, [5.0, 9.0])}, torch.ones(2, 1), mine)
    again.load_state_dict(moments.state_dict())
    assert {name: vars(each) for name, each in again.of.items()} == {name: vars(x) for name, x in moments.of.items()}


def length(prompts: list[str], responses: list[str], **columns: Any) -> list[float]:
    return [100.0 * len(response.split()) for response in responses]


def fit(folder: Path, epochs: int, resume: str | None = None) -> tuple[Any, Any]:
    reward = WeightedSum({"early": count_early, "length": length}, {"early": 1.0, "length": 0.5}, normalize=True)
    module, data = ppo(reward=reward, kl=KLPenalty(kind="fixed", coef=0.1))
    save = ModelCheckpoint(folder, filename="cut", save_top_k=-1, every_n_epochs=1 if epochs == 1 else 99)
    run = trainer(folder, enable_checkpointing=True, callbacks=[save, ReproducibleResume()], max_epochs=epochs)
    run.fit(module, datamodule=data, ckpt_path=resume)
    return module, run.callback_metrics


def test_a_run_learns_from_normalised_parts_logs_raw_ones_and_resumes(tmp_path: Path) -> None:
    whole, metrics = fit(tmp_path / "whole", 2)
    parts = {name: torch.tensor(part) for name, part in whole.scorer.given.parts.items()}
    for name, part in parts.items():
        assert metrics[f"objective/scores/{name}"] == pytest.approx(float(part.mean()), abs=1e-4)
    raw = parts["early"] + 0.5 * parts["length"]
    assert metrics["objective/scores"] == pytest.approx(float(raw.mean()), rel=1e-5)
    of = whole.part_moments.of
    shaped = sum(
        weight * (parts[name] - of[name].mean) / of[name].std for name, weight in (("early", 1.0), ("length", 0.5))
    )
    torch.testing.assert_close(whole.last_rollout.scores, shaped.float(), atol=1e-5, rtol=0)
    fit(tmp_path / "cut", 1)
    resumed, _ = fit(tmp_path / "cut", 2, str(tmp_path / "cut/cut.ckpt"))
    assert fingerprint(resumed.policy) == fingerprint(whole.policy)
    assert resumed.part_moments.state_dict() == whole.part_moments.state_dict()
    assert resumed.part_moments.of["early"].count == 32
