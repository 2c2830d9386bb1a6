import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import logsigmoid

from rlhf_lightning.errors import UserError
from rlhf_lightning.models import fingerprint
from tests.algorithms.conftest import SGD, dpo, trainer
from tests.tiny import tiny_model


def lora() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return get_peft_model(tiny_model(), LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))


def first_batch(data: Any) -> Any:
    data.setup("fit")
    return next(iter(data.train_dataloader()))


@pytest.mark.parametrize("model", [tiny_model, lora])
def test_before_training_the_policy_is_the_reference_exactly(model: Any) -> None:
    module, data = dpo(model)
    module.configure_model()
    module.train()
    assert float(module.training_step(first_batch(data), 0)) == pytest.approx(math.log(2), abs=1e-7)


def test_the_loss_is_equation_7_of_the_paper() -> None:
    module, data = dpo(beta=0.3)
    module.configure_model()
    batch = first_batch(data)
    reference = module.reference_logps(batch)
    with torch.no_grad():
        for p in module.model.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    ids, mask = batch.input_ids, batch.completion_mask
    token = module.model(ids).logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None]).squeeze(2)
    ratio = (token * mask[:, 1:]).sum(1) - reference
    expected = -logsigmoid(0.3 * (ratio[batch.pairs[:, 0]] - ratio[batch.pairs[:, 1]])).mean()
    torch.testing.assert_close(module.training_step(batch, 0), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("model", [tiny_model, lora])
def test_a_precomputed_reference_gives_the_same_run(model: Any, tmp_path: Path) -> None:
    weights = []
    for precompute in (False, True):
        module, data = dpo(model, precompute_reference=precompute)
        trainer(tmp_path, max_epochs=2).fit(module, datamodule=data)
        weights.append(fingerprint(module.model))
    assert weights[0] == weights[1]
    assert (tmp_path / "reference_logprobs.pt").is_file()


def test_a_precomputed_table_of_another_reference_is_not_used(tmp_path: Path) -> None:
    module, data = dpo(precompute_reference=True)
    run = trainer(tmp_path, max_epochs=0)
    run.fit(module, datamodule=data)
    first = dict(module.reference_table)

    def other() -> Any:
        model = tiny_model()
        torch.nn.init.normal_(model.lm_head.weight, generator=torch.Generator().manual_seed(5))
        return model

    module, data = dpo(other, precompute_reference=True)
    trainer(tmp_path, max_epochs=0).fit(module, datamodule=data)
    assert set(first) == set(module.reference_table) and first != module.reference_table


@pytest.mark.parametrize("part", ["a value", "the key", "the hash", "a bit", "a byte less", "zeros", "a number"])
def test_a_table_that_has_changed_on_the_disk_is_computed_again(
    part: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tables, path = [], tmp_path / "reference_logprobs.pt"
    for _ in range(3):
        module, data = dpo(precompute_reference=True)
        trainer(tmp_path, max_epochs=0).fit(module, datamodule=data)
        tables.append(dict(module.reference_table))
        if len(tables) > 1:
            continue
        saved, content = torch.load(path), path.read_bytes()
        if part == "a value":
            saved["table"][0] += 1e-6
        elif part == "the key":
            saved["key"] = saved["key"].replace("0", "1")
        elif part == "the hash":
            saved["sha256"] = "0" * 64
        torch.save(7 if part == "a number" else saved, path)
        middle = content.index(b"sha256")
        raw = {
            "a bit": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
            "a byte less": content[:-1],
            "zeros": bytes(len(content)),
        }
        if part in raw:
            path.write_bytes(raw[part])
    assert tables[0] == tables[1] == tables[2]
    said = [record.message for record in caplog.records if "reference_logprobs.pt has changed" in record.message]
    assert len(said) == 1  # not for the one that was written again


def test_the_reference_never_moves(tmp_path: Path) -> None:
    for model in (tiny_model, lora):
        module, data = dpo(model)
        module.configure_model()
        before = module.reference.fingerprint()
        trainer(tmp_path, max_epochs=2).fit(module, datamodule=data)
        assert module.reference.fingerprint() == before


def test_dropout_is_off(tmp_path: Path) -> None:
    module, data = dpo(lambda: tiny_model(dropout=0.5))
    module.configure_model()
    batch = first_batch(data)
    module.train()
    assert float(module.training_step(batch, 0)) == pytest.approx(math.log(2), abs=1e-7)


def test_gradients_do_not_depend_on_how_a_step_is_split(tmp_path: Path) -> None:
    weights = []
    for batch_size, accumulate in ((8, 1), (1, 8)):
        module, data = dpo(optimizer=SGD)
        data.batch_size = batch_size
        trainer(tmp_path, accumulate_grad_batches=accumulate).fit(module, datamodule=data)
        weights.append(torch.cat([p.detach().flatten() for p in module.model.parameters()]))
    torch.testing.assert_close(weights[0], weights[1], atol=1e-6, rtol=0)


@pytest.mark.parametrize("loss_type", ["sigmoid", "ipo", "hinge"])
def test_training_raises_the_margin_and_reports_it(loss_type: str, tmp_path: Path) -> None:
    module, data = dpo(loss_type=loss_type)
    run = trainer(tmp_path, max_epochs=8)
    run.fit(module, datamodule=data)
    assert run.callback_metrics["val/rewards/accuracies"] == 1.0
    assert run.callback_metrics["rewards/margins"] > 0
    assert {"logps/chosen", "logps/rejected", "rewards/chosen", "rewards/rejected"} <= set(run.callback_metrics)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"loss_type": "hinge", "label_smoothing": 0.1},
            r"label_smoothing: found 0\.1; only algorithm\.loss_type=",
        ),
        (
            {"loss_type": "ipo", "label_smoothing": 0.1},
            r"label_smoothing: found 0\.1; only algorithm\.loss_type=",
        ),
        ({"label_smoothing": 0.5}, r"label_smoothing: found 0\.5; must be a number in \[0, 0\.5\)"),
        ({"label_smoothing": -0.1}, r"label_smoothing: found -0\.1"),
        ({"beta": 0.0}, r"beta: found 0\.0; must be a number > 0"),
        ({"nll_coef": -1.0}, "nll_coef: found -1.0; must be a number >= 0"),
        ({"beta": math.inf, "loss_type": "ipo"}, "beta: found inf"),
    ],
)
def test_a_setting_that_the_loss_does_not_have_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=rf"^algorithm\.{message}"):
        dpo(**settings)


def test_an_unknown_loss_is_named() -> None:
    with pytest.raises(UserError, match=r"algorithm\.loss_type: standard DPO is algorithm\.loss_type=sigmoid"):
        dpo(loss_type="dpo")


def moved(module: Any) -> Any:
    """Return the module with a policy that differs from its reference."""
    module.configure_model()
    with torch.no_grad():
        for p in module.model.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    return module


def test_the_nll_term_is_per_token_of_the_chosen_answer_and_is_logged() -> None:
    module, data = dpo(nll_coef=0.5)
    plain, _ = dpo()
    batch = first_batch(data)
    answers = moved(module).answers(batch)[batch.pairs[:, 0]]
    nll = -(answers.logps / answers.lengths).mean()
    torch.testing.assert_close(module.training_step(batch, 0), moved(plain).training_step(batch, 0) + 0.5 * nll)
    assert float(module._recorded()["nll/chosen"].compute()) == pytest.approx(float(nll), rel=1e-6)
    assert "nll/chosen" not in plain._recorded()


@pytest.mark.parametrize(("loss_type", "per_token", "means"), [("sigmoid", True, True), ("ipo", False, False)])
def test_the_unit_of_the_comparison_can_be_chosen(loss_type: str, per_token: bool, means: bool) -> None:
    module, data = dpo(loss_type=loss_type, per_token=per_token)
    batch = first_batch(data)
    answers = moved(module).answers(batch)
    ratios = answers.log_ratios / answers.lengths if means else answers.log_ratios
    h = ratios[batch.pairs[:, 0]] - ratios[batch.pairs[:, 1]]
    expected = (h - 5.0).square() if loss_type == "ipo" else -logsigmoid(0.1 * h)
    torch.testing.assert_close(module.training_step(batch, 0), expected.mean())
    torch.testing.assert_close(module.pair_loss(*(answers[rows] for rows in batch.pairs.unbind(1))), expected)
