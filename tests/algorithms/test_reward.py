from pathlib import Path

import pytest
import torch
from torch.nn.functional import logsigmoid

from tests.algorithms.conftest import SGD, pair_rows, reward, trainer
from tests.tiny import WORDS


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
    from rlhf_lightning.models import load_reward_model

    module, data = reward(tmp_path)
    trainer(tmp_path).fit(module, datamodule=data)
    module.export(tmp_path / "model")
    batch = next(iter(data.val_dataloader()))
    loaded = load_reward_model(tmp_path / "model").eval()
    want = module.model.eval()(batch.input_ids, batch.attention_mask)
    assert loaded(batch.input_ids, batch.attention_mask).tolist() == pytest.approx(want.tolist(), abs=1e-6)
