from functools import partial
from pathlib import Path

import pytest
import torch

from rlhf_lightning.algorithms import SFTModule
from rlhf_lightning.data import SFTDataModule
from tests.algorithms.conftest import SGD, sft, sft_rows, trainer
from tests.tiny import tiny_model, tiny_tokenizer


def test_loss_equals_hugging_faces_on_the_completion_tokens() -> None:
    module, data = sft(batch_size=10)
    data.setup("fit")
    module.configure_model()
    batch = next(iter(data.train_dataloader()))
    expected = module.model(batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels).loss
    total, tokens = module.nll(batch)
    torch.testing.assert_close(total / tokens, expected)
    assert batch.denominator == tokens


@pytest.mark.parametrize("pad_is_eos", [False, True])
def test_the_end_of_a_completion_is_learned_also_when_pad_is_eos(pad_is_eos: bool, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(pad_is_eos)
    module = SFTModule(tiny_model, tokenizer, SGD)
    data = SFTDataModule(tokenizer, sft_rows(), batch_size=4)
    trainer(tmp_path, max_epochs=12).fit(module, datamodule=data)
    ids = torch.tensor([tokenizer("a b c d a b c d")["input_ids"]])
    before, after = (m(ids).logits[0, -1].softmax(-1)[1] for m in (tiny_model().eval(), module.model.eval()))
    assert after > 2 * before


def test_gradients_do_not_depend_on_how_a_step_is_split(tmp_path: Path) -> None:
    """1 x 8 == 2 x 4 == 8 x 1, with uneven lengths and an incomplete last window (10 rows)."""
    weights = []
    for batch_size, accumulate in ((8, 1), (4, 2), (1, 8)):
        tokenizer = tiny_tokenizer()
        module, data = (
            SFTModule(tiny_model, tokenizer, SGD),
            SFTDataModule(tokenizer, sft_rows(), batch_size=batch_size),
        )
        run = trainer(tmp_path, accumulate_grad_batches=accumulate)
        run.fit(module, datamodule=data)
        assert run.global_step == 2
        weights.append(torch.cat([p.detach().flatten() for p in module.model.parameters()]))
    for other in weights[1:]:
        torch.testing.assert_close(other, weights[0], atol=1e-6, rtol=0)


def test_a_fused_optimiser_is_clipped_under_bf16_mixed(tmp_path: Path) -> None:
    """Lightning refuses to clip a fused optimiser whose gradients might be scaled; in bfloat16 they are not."""
    moved = []
    for clip in (1e-8, 1.0):
        tokenizer = tiny_tokenizer()
        module = SFTModule(tiny_model, tokenizer, partial(torch.optim.SGD, lr=0.1, fused=True))
        data = SFTDataModule(tokenizer, sft_rows(), batch_size=4)
        run = trainer(tmp_path, precision="bf16-mixed", gradient_clip_val=clip)
        run.fit(module, datamodule=data)
        pairs = zip(module.model.parameters(), tiny_model().parameters(), strict=True)
        moved.append(sum(float((after - before).abs().sum()) for after, before in pairs))
    assert moved[0] < moved[1] / 1000


def test_validation_loss_is_per_token_over_the_whole_set(tmp_path: Path) -> None:
    losses = []
    for val_batch_size in (1, 4):
        module, data = sft(val_batch_size=val_batch_size)
        losses.append(trainer(tmp_path, limit_train_batches=0).validate(module, datamodule=data, verbose=False)[0])
    assert losses[0]["val/loss"] == pytest.approx(losses[1]["val/loss"], abs=1e-6)
    assert losses[0]["val/perplexity"] == pytest.approx(float(torch.tensor(losses[0]["val/loss"]).exp()), rel=1e-5)


def test_only_what_is_trained_is_in_the_checkpoint(tmp_path: Path) -> None:
    module, data = sft()
    module.configure_model()
    module.model.model.embed_tokens.requires_grad_(False)
    run = trainer(tmp_path)
    run.fit(module, datamodule=data)
    run.save_checkpoint(tmp_path / "x.ckpt")
    saved = torch.load(tmp_path / "x.ckpt", weights_only=True)["state_dict"]
    assert "model.model.embed_tokens.weight" not in saved
    assert "model.model.norm.weight" in saved
