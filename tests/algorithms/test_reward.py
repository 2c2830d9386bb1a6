import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import logsigmoid

from rlhf_lightning.data import PreferenceDataModule
from rlhf_lightning.models import load_reward_model, score_moments
from tests.algorithms.conftest import SGD, pair_rows, reward, trainer
from tests.tiny import WORDS, tiny_tokenizer


def test_the_loss_of_a_pair_is_bradley_terry(tmp_path: Path) -> None:
    module, data = reward(tmp_path)
    data.setup("fit")
    module.configure_model()
    batch = next(iter(data.train_dataloader()))
    scores = module.model(batch.input_ids, batch.attention_mask)
    expected = -logsigmoid(scores[batch.pairs[:, 0]] - scores[batch.pairs[:, 1]]).mean()
    torch.testing.assert_close(module.training_step(batch, 0), expected)


def test_a_prompt_with_four_ranked_answers_counts_once_and_scores_each_answer_once(tmp_path: Path) -> None:
    rows = [{"prompt": WORDS[i], "responses": [" ".join(WORDS[i : i + n]) for n in (4, 3, 2, 1)]} for i in range(6)]
    module, data = reward(tmp_path, rows=rows)
    data.setup("fit")
    module.configure_model()
    batch = next(iter(data.train_dataloader()))
    assert batch.input_ids.shape[0] == 8 and len(batch.pairs) == 12
    scores = module.model(batch.input_ids, batch.attention_mask)
    losses = -logsigmoid(scores[batch.pairs[:, 0]] - scores[batch.pairs[:, 1]])
    torch.testing.assert_close(module.training_step(batch, 0), losses.view(2, 6).mean(1).mean())


def test_margin_and_centring_enter_the_loss(tmp_path: Path) -> None:
    rows = [{**row, "margin": 0.5} for row in pair_rows()]
    module, data = reward(tmp_path, rows=rows, center_coef=0.1)
    data.setup("fit")
    module.configure_model()
    batch = next(iter(data.train_dataloader()))
    scores = module.model(batch.input_ids, batch.attention_mask)
    better, worse = scores[batch.pairs[:, 0]], scores[batch.pairs[:, 1]]
    expected = (-logsigmoid(better - worse - 0.5) + 0.1 * (better + worse) ** 2).mean()
    torch.testing.assert_close(module.training_step(batch, 0), expected)


def test_it_learns_which_answer_is_better_and_reports_it(tmp_path: Path) -> None:
    module, data = reward(tmp_path)
    run = trainer(tmp_path, max_epochs=15)
    run.fit(module, datamodule=data)
    metrics = run.callback_metrics
    assert metrics["val/accuracy"] == 1.0
    assert metrics["val/margin"] > 1.0
    assert 0 <= metrics["val/calibration_error"] <= 1
    assert {"train/loss", "train/accuracy", "train/margin", "train/mean_reward"} <= set(metrics)


def test_gradients_do_not_depend_on_how_a_step_is_split(tmp_path: Path) -> None:
    weights = []
    for batch_size, accumulate in ((8, 1), (1, 8)):
        module, data = reward(tmp_path, optimizer=SGD)
        data.batch_size = batch_size
        trainer(tmp_path, accumulate_grad_batches=accumulate).fit(module, datamodule=data)
        weights.append(torch.cat([p.detach().flatten() for p in module.model.parameters()]))
    torch.testing.assert_close(weights[0], weights[1], atol=1e-6, rtol=0)


def test_the_exported_folder_scores_like_the_module(tmp_path: Path) -> None:
    module, data = reward(tmp_path)
    trainer(tmp_path).fit(module, datamodule=data)
    module.export(tmp_path / "model")
    batch = next(iter(data.val_dataloader()))
    loaded = load_reward_model(tmp_path / "model").eval()
    want = module.model.eval()(batch.input_ids, batch.attention_mask)
    assert loaded(batch.input_ids, batch.attention_mask).tolist() == pytest.approx(want.tolist(), abs=1e-6)


def ranked(n: int = 5) -> list[dict[str, Any]]:
    """Return rows of three answers each, so that an answer is in two pairs, or in one if two are tied."""
    rows = [{"prompt": WORDS[i], "responses": [" ".join(WORDS[i : i + k]) for k in (4, 2, 1)]} for i in range(n)]
    return [*rows, {"prompt": "z", "responses": ["a b", "c", "d"], "ranks": [1, 2, 2]}]


def test_it_exports_mean_and_std_of_the_scores_of_held_out_answers_each_counted_once(tmp_path: Path) -> None:
    module, data = reward(tmp_path)
    data = PreferenceDataModule(tiny_tokenizer(), pair_rows(), ranked(), batch_size=4)
    run = trainer(tmp_path)
    run.fit(module, datamodule=data)
    batches = list(data.val_dataloader())
    scores = torch.cat([module.model.eval()(batch.input_ids, batch.attention_mask) for batch in batches])
    assert len(scores) == 18
    module.export(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["score_mean"] == pytest.approx(float(scores.mean()), abs=1e-5)
    assert config["score_std"] == pytest.approx(float(scores.std(correction=0)), abs=1e-5)
    assert run.callback_metrics["val/score_mean"] == pytest.approx(config["score_mean"])
    assert run.callback_metrics["val/score_std"] == pytest.approx(config["score_std"])
    assert score_moments(tmp_path / "model") == (config["score_mean"], config["score_std"])
    assert load_reward_model(tmp_path / "model").classifier.config.score_mean == config["score_mean"]


def test_the_moments_of_two_processes_are_those_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, _ = reward(tmp_path)
    monkeypatch.setattr(module, "log_dict", lambda *args, **kwargs: None)
    scores = torch.tensor([1.0, 4.0, -2.0, 100.0, 7.0])
    for parts in ([scores], [scores[:2], scores[2:]], [scores, scores[:0]]):
        sent: list[torch.Tensor] = []
        monkeypatch.setattr(module, "gather", lambda x, sent=sent: sent.append(x) or torch.stack(sent))
        for part in parts:
            module._log_moments(part)
        assert module.moments == pytest.approx((float(scores.mean()), float(scores.std(correction=0))))


def test_a_run_resumed_after_its_last_validation_exports_the_moments_too(tmp_path: Path) -> None:
    module, data = reward(tmp_path)
    run = trainer(tmp_path)
    run.fit(module, datamodule=data)
    run.save_checkpoint(tmp_path / "last.ckpt")
    again, data = reward(tmp_path)
    trainer(tmp_path).fit(again, datamodule=data, ckpt_path=tmp_path / "last.ckpt")
    assert module.moments is not None and again.moments == module.moments


def test_without_held_out_pairs_no_moments_are_exported_not_even_those_of_an_earlier_model(tmp_path: Path) -> None:
    module, data = reward(tmp_path)
    module.configure_model()
    module.model.classifier.config.update({"score_mean": 3.0, "score_std": 2.0})
    data.val = None
    trainer(tmp_path).fit(module, datamodule=data)
    module.export(tmp_path / "model")
    assert score_moments(tmp_path / "model") is None


def test_an_adapter_folder_carries_the_moments_too(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    module, data = reward(tmp_path)
    module.configure_model()
    config = LoraConfig(task_type="SEQ_CLS", target_modules="all-linear", modules_to_save=["score"])
    module.model.classifier = get_peft_model(module.model.classifier, config)
    trainer(tmp_path).fit(module, datamodule=data)
    module.export(tmp_path / "model")
    assert (tmp_path / "model" / "adapter_model.safetensors").is_file()
    assert module.moments is not None and score_moments(tmp_path / "model") == module.moments
