"""KTO's silent bugs: a reference point from matched answers, from a part of the step, or from the answer itself."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf_lightning.data import UnpairedDataModule
from rlhf_lightning.errors import UserError
from tests.algorithms.conftest import SGD, labelled_rows, offline, trainer
from tests.tiny import WORDS, tiny_tokenizer


def move(module: Any) -> None:
    """Move the policy away from its reference, so that the reference point is above 0 for each batch size here."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in module.model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))


def moved(**kwargs: Any) -> tuple[Any, Any]:
    """Return the module with a policy that differs from its reference, outside a run."""
    module, data = offline("KTOModule", **kwargs)
    module.configure_model()
    move(module)
    module.trainer = trainer(Path("."))
    data.setup("fit")
    return module, data


def log_ratio(module: Any, prompt: list[int], answer: list[int]) -> float:
    """Return log pi - log pi_ref of one answer, token by token."""
    ids = torch.tensor([prompt + answer])
    total = 0.0
    with torch.no_grad(), module.reference.model(like=ids) as reference:
        for sign, model in ((1, module.model), (-1, reference)):
            logprobs = model(ids).logits[0, :-1].double().log_softmax(-1)
            total += sign * sum(float(logprobs[t - 1, ids[0, t]]) for t in range(len(prompt), ids.shape[1]))
    return total


def test_the_first_loss_is_exactly_one_half(tmp_path: Path) -> None:
    module, data = offline("KTOModule", optimizer=SGD)
    losses: list[float] = []
    module.on_train_batch_end = lambda outputs, *_: losses.append(float(outputs["loss"]))
    trainer(tmp_path).fit(module, datamodule=data)
    assert losses[0] == 0.5
    assert losses[1] != 0.5


@pytest.mark.parametrize("batch_size", [1, 3, 10])
def test_the_loss_is_equation_8_with_answers_to_other_prompts(batch_size: int) -> None:
    module, data = moved(beta=0.3, desirable_weight=1.5, undesirable_weight=0.5)
    data.batch_size = batch_size
    loader = data.train_dataloader()
    order, rows = loader.order(), data.train_rows
    batch = next(iter(loader))
    step = order[:batch_size]
    ratios = []
    for place, i in enumerate(step):
        before = next(
            order[place - back] for back in range(1, 10) if rows[order[place - back]].prompt_ids != rows[i].prompt_ids
        )
        ratios.append(log_ratio(module, rows[i].prompt_ids, rows[before].answer))
    z = sum(ratios) / len(ratios)
    assert z > 0.1
    expected = 0.0
    for i in step:
        distance = torch.tensor(0.3 * (log_ratio(module, rows[i].prompt_ids, rows[i].answer) - z))
        expected += float(1.5 * torch.sigmoid(-distance) if rows[i].desirable else 0.5 * torch.sigmoid(distance))
    assert float(module.training_step(batch, 0)) == pytest.approx(expected / batch_size, abs=1e-5)
    assert float(module.z) == pytest.approx(z, abs=1e-5)


def test_a_batch_of_one_is_not_measured_against_itself() -> None:
    _, data = moved()
    data.batch_size = 1
    for batch in data.train_dataloader():
        (pair,) = batch.mismatched
        length = int(batch.completion_mask.argmax())
        assert pair.weights.tolist() == [1.0]
        assert pair.input_ids[0, :length].tolist() == batch.input_ids[0, :length].tolist()
        assert pair.input_ids[0, length:].tolist() != batch.input_ids[0, length:].tolist()


def test_no_gradient_flows_into_the_reference_point_and_it_is_never_below_zero() -> None:
    module, data = moved()
    batch = next(iter(data.train_dataloader()))
    module.training_step(batch, 0)
    assert not module.z.requires_grad
    assert float(module.reference_point(torch.tensor([-5.0, 2.0]))) == 0.0
    assert float(module.reference_point(torch.tensor([5.0, 2.0]))) == 2.5


def test_every_micro_batch_of_a_step_has_the_same_reference_point(tmp_path: Path) -> None:
    points: list[float] = []
    module, data = offline("KTOModule", optimizer=SGD)
    module.on_train_batch_end = lambda *_: points.append(float(module.z))
    trainer(tmp_path, accumulate_grad_batches=3, max_epochs=2).fit(module, datamodule=data)  # 5 batches: 3 and 2
    assert points[:3] == [0.0] * 3
    assert len(set(points[5:8])) == len(set(points[8:10])) == 1
    assert len(set(points)) > 2


def test_validation_does_not_depend_on_how_it_is_split(tmp_path: Path) -> None:
    found = []
    for batch_size in (1, 4):
        module, data = offline("KTOModule")
        data.batch_size, data.val = 2, labelled_rows(7)
        data.setup("fit")
        data.batch_size = batch_size
        run = trainer(tmp_path)
        module.configure_model()
        move(module)
        run.validate(module, datamodule=data, verbose=False)
        found.append({k: float(v) for k, v in run.callback_metrics.items()})
    assert found[0]["val/kl/reference_point"] > 0
    assert found[0] == pytest.approx(found[1], abs=1e-5)


@pytest.mark.parametrize(
    ("labels", "weights", "said"),
    [
        ([True] * 6 + [False] * 6, {}, None),
        ([True] * 8 + [False] * 6, {}, None),  # 4/3
        ([True] * 8 + [False] * 4, {}, "undesirable_weight: .* add up to 2.00 to 1.*; 2 makes it 1"),
        ([True] * 8 + [False] * 4, {"undesirable_weight": 2.0}, None),
        (
            [True] * 3 + [False] * 6,
            {"undesirable_weight": 2.0},
            "desirable_weight: .* add up to 0.25 to 1.*; 4 makes it 1",
        ),
        ([True] * 4, {}, "all 4 answers are desirable"),
    ],
)
def test_weights_out_of_balance_are_said(
    labels: list[bool], weights: dict[str, float], said: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module, data = offline("KTOModule", **weights)
    data.train = [{"prompt": WORDS[i], "completion": WORDS[i + 1], "label": label} for i, label in enumerate(labels)]
    trainer(tmp_path, max_epochs=0).fit(module, datamodule=data)
    messages = [record.getMessage() for record in caplog.records if record.name == "rlhf_lightning.algorithms.kto"]
    if said is None:
        assert not messages
    else:
        assert len(messages) == 1
        assert re.search(said, messages[0]), messages[0]


def test_one_prompt_alone_is_refused() -> None:
    rows = [{"prompt": "a b", "completion": word, "label": True} for word in WORDS[:5]]
    data = UnpairedDataModule(tiny_tokenizer(), rows)
    with pytest.raises(UserError, match=r"^data\.train: all 5 answers are to one prompt"):
        data.setup("fit")


@pytest.mark.parametrize("key", ["beta", "desirable_weight", "undesirable_weight"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), float("nan")])
def test_a_setting_out_of_its_range_is_refused(key: str, value: float) -> None:
    with pytest.raises(UserError, match=rf"^algorithm\.{key}: found .*must be a number (> 0|in \(0, 1e12\])"):
        offline("KTOModule", **{key: value})
