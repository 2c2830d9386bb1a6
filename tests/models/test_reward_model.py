from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from rlhf_lightning.errors import UserError
from rlhf_lightning.models import load_reward_model, load_scorer, save_model
from rlhf_lightning.models.forward import bare_model
from tests.tiny import tiny_model, tiny_tokenizer


@pytest.fixture(params=["llama", "gpt2"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    tiny_model(request.param).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    return tmp_path


def test_score_is_read_at_the_last_valid_token_whatever_the_padding(folder: Path) -> None:
    model = load_reward_model(folder).eval()
    assert not bare_model(model.classifier).own_pooling  # which would be used if this package's were wrong
    ids = torch.tensor([[5, 6, 7, 1]])
    alone = model(ids, torch.ones_like(ids))
    for pad_id in (0, 1, 9):  # the pad token, the EOS, any other token
        padded = torch.cat([ids, torch.full((1, 5), pad_id)], dim=1)
        mask = torch.tensor([[1] * 4 + [0] * 5])
        torch.testing.assert_close(model(padded, mask), alone, atol=1e-5, rtol=0)


def test_a_new_head_is_the_same_at_every_load_and_leaves_the_global_generator_alone(folder: Path) -> None:
    torch.manual_seed(3)
    first = load_reward_model(folder).classifier.score.weight
    torch.manual_seed(4)
    assert torch.equal(first, load_reward_model(folder).classifier.score.weight)
    assert float(first.std()) == pytest.approx((first.shape[1] + 1) ** -0.5, rel=0.5)


def test_saved_folder_loads_with_plain_transformers_and_scores_the_same(folder: Path, tmp_path: Path) -> None:
    model = load_reward_model(folder).eval()
    save_model(model, tiny_tokenizer(), tmp_path / "saved")
    ids = torch.tensor([[5, 6, 7, 1]])
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")(ids).logits.squeeze(-1)
    torch.testing.assert_close(plain, model(ids, torch.ones_like(ids)))
    again = load_reward_model(tmp_path / "saved").eval()
    torch.testing.assert_close(again(ids, torch.ones_like(ids)), plain)


@pytest.mark.parametrize("kind", ["bert", "roberta", "llama", "opt", "ctrl"])
def test_any_classifier_scores_a_padded_row_as_it_scores_that_row_alone(kind: str, tmp_path: Path) -> None:
    size = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = AutoConfig.for_model(kind, **size, intermediate_size=64, pad_token_id=0, num_labels=1)
    torch.manual_seed(0)
    plain = AutoModelForSequenceClassification.from_config(config).eval()
    plain.save_pretrained(tmp_path)
    model = load_scorer(tmp_path).eval()
    ids, lengths = torch.randint(3, 60, (3, 12)), (12, 9, 4)
    mask = torch.tensor([[1] * n + [0] * (12 - n) for n in lengths])
    with torch.no_grad():
        scores = model(ids, mask)
        alone = torch.stack([plain(input_ids=row[None, :n]).logits[0, 0] for row, n in zip(ids, lengths, strict=True)])
    torch.testing.assert_close(scores, alone, atol=1e-5, rtol=0)


def test_scores_that_depend_on_the_padding_are_refused(tmp_path: Path) -> None:
    config = AutoConfig.for_model("fnet", vocab_size=60, hidden_size=32, num_hidden_layers=2, intermediate_size=64)
    config.num_labels = 1
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"FNet.*different scores from each row alone.*must be at most"):
        load_scorer(tmp_path)
