"""Cost models: the loss with sign terms, labels that stay with their answers, and the way into PPO-Lagrangian."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf_lightning.algorithms import CostModule, RewardModule
from rlhf_lightning.commands.composition import compose_config
from rlhf_lightning.config.inputs import check_inputs
from rlhf_lightning.data import PreferenceBatch, SafetyDataModule
from rlhf_lightning.errors import UserError
from rlhf_lightning.functional import bradley_terry_loss, cost_model_loss
from rlhf_lightning.models import load_reward_model
from rlhf_lightning.models.reward_model import is_cost_model
from rlhf_lightning.rewards import make_cost
from tests.algorithms.conftest import ADAM, trainer
from tests.tiny import WORDS, tiny_model, tiny_tokenizer


def rows(n: int = 16) -> list[dict[str, Any]]:
    """Return pairs whose safer answer is shorter; an answer of at least three words is unsafe."""
    found = []
    for i in range(n):
        chosen, rejected = 1 + i % 3, 2 + i % 3
        answers = (" ".join(WORDS[i % 8 :][:length]) for length in (chosen, rejected))
        pair = dict(zip(("chosen", "rejected"), answers, strict=True))
        found.append({"prompt": WORDS[i], **pair, "chosen_safe": chosen < 3, "rejected_safe": rejected < 3})
    return found


def test_the_loss_is_the_formula_and_its_sign_terms_pull_to_both_sides() -> None:
    safer, worse = torch.tensor([0.5, -1.0, 2.0]), torch.tensor([1.5, -0.5, 0.0])
    labels = torch.tensor([True, True, False]), torch.tensor([False, True, False])
    log = lambda x: -math.log1p(math.exp(-x))  # noqa: E731
    expected = [
        -(log(1.0) + log(1.5) + log(-0.5)),
        -(log(0.5) + log(0.5) + log(1.0)),
        -(log(-2.0) + log(0.0) + log(2.0)),
    ]
    assert float(cost_model_loss(safer, worse, *labels)) == pytest.approx(sum(expected) / 3, rel=1e-6)
    weights = torch.tensor([1.0, 0.0, 1.0])
    weighted = cost_model_loss(safer, worse, *labels, weights, denominator=4.0)
    assert float(weighted) == pytest.approx((expected[0] + expected[2]) / 4, rel=1e-6)
    padded = cost_model_loss(torch.tensor([0.5, math.nan, 2.0]), worse, *labels, weights, denominator=4.0)
    assert float(padded) == float(weighted)
    shifted = [cost_model_loss(safer + 3, worse + 3, *labels), bradley_terry_loss(worse + 3, safer + 3)]
    assert float(shifted[1]) == pytest.approx(float(bradley_terry_loss(worse, safer)))
    assert float(shifted[0]) > float(cost_model_loss(safer, worse, *labels)) + 0.5
    costs = torch.zeros(2, requires_grad=True)
    cost_model_loss(costs[:1], costs[1:], torch.tensor([True]), torch.tensor([False])).backward()
    assert costs.grad.tolist() == [1.0, -1.0]  # 0.5 from the ranking, 0.5 from the sign
    with pytest.raises(ValueError, match="worse_is_safe"):
        cost_model_loss(safer, worse, labels[0], labels[1][:2])


def test_labels_stay_with_their_answers() -> None:
    """Whatever the columns are called, and with rows that are dropped in between."""
    given = [{"prompt": "a", "chosen": "b", "rejected": "b", "chosen_safe": True, "rejected_safe": True}, *rows(6)]
    pku = [
        {
            "prompt": row["prompt"],
            f"response_{i % 2}": row["chosen"],
            f"response_{1 - i % 2}": row["rejected"],
            f"is_response_{i % 2}_safe": row["chosen_safe"],
            f"is_response_{1 - i % 2}_safe": row["rejected_safe"],
            "safer_response_id": i % 2,
            "better_response_id": 1 - i % 2,
        }
        for i, row in enumerate(given)
    ]
    batches: list[PreferenceBatch] = []
    for each in (given, pku):
        data = SafetyDataModule(tiny_tokenizer(), each, batch_size=8)
        data.setup("fit")
        batches.append(next(iter(data.train_dataloader())))
    assert torch.equal(batches[0].input_ids, batches[1].input_ids)
    for batch in batches:
        words = batch.completion_mask.sum(dim=1) - 1  # without the EOS
        assert torch.equal(batch.safe, words < 3) and len(set(batch.safe.tolist())) == 2
        assert bool((words[batch.pairs[:, 0]] < words[batch.pairs[:, 1]]).all())


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"chosen_safe": None}, r"row 2: columns .*chosen_safe is missing; a cost model learns from chosen"),
        ({"chosen_safe": "maybe"}, r"row 2: chosen_safe: found 'maybe'; must be true or false"),
        ({"chosen_safe": False, "rejected_safe": True}, r"row 2: chosen_safe and rejected_safe: found false and true"),
    ],
)
def test_rows_that_cannot_be_right_are_refused_with_their_number(change: dict[str, Any], line: str) -> None:
    found = rows(4)
    found[1].update(change)
    with pytest.raises(UserError, match=line):
        SafetyDataModule(tiny_tokenizer(), found).setup("fit")


def test_a_cost_model_learns_order_and_sign_and_only_it_is_a_cost(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    tokenizer = tiny_tokenizer()
    load = partial(load_reward_model, tmp_path / "base")
    module = CostModule(load, tokenizer, partial(torch.optim.Adam, lr=3e-3))
    data = SafetyDataModule(tokenizer, rows(), rows(8), batch_size=4)
    run = trainer(tmp_path, max_epochs=25)
    run.fit(module, datamodule=data)
    declared = {each for part in type(module).__mro__ for each in vars(part).get("logs", ())}
    assert set(run.callback_metrics) == declared
    assert float(run.callback_metrics["val/accuracy"]) >= 0.9
    assert float(run.callback_metrics["val/sign_accuracy"]) >= 0.9
    module.export(tmp_path / "cost")
    assert is_cost_model(tmp_path / "cost")
    scores = make_cost(model=str(tmp_path / "cost"))(["a", "b"], [WORDS[3], " ".join(WORDS[3:8])])
    assert scores[0] < 0 < scores[1]

    ours = ("model.path=org/name", "data.train=org/rows")
    check_inputs(compose_config("train", ["experiment=ppo_lagrangian", *ours, f"cost.model={tmp_path / 'cost'}"]))
    with pytest.raises(UserError, match=r"^reward\.model: .* is a cost model, whose higher scores are worse"):
        check_inputs(compose_config("train", ["experiment=ppo", *ours, f"reward.model={tmp_path / 'cost'}"]))

    again = RewardModule(partial(load_reward_model, tmp_path / "cost"), tokenizer, ADAM)
    again.configure_model()
    again.export(tmp_path / "reward")
    assert not is_cost_model(tmp_path / "reward")
    assert json.loads((tmp_path / "reward/config.json").read_text()).get("cost_model") is None
