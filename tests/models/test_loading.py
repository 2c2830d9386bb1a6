import json
from pathlib import Path

import pytest
import torch

from rlhf_lightning.errors import UserError
from rlhf_lightning.models import (
    disable_dropout,
    fingerprint,
    load_causal_lm,
    load_reward_model,
    load_tokenizer,
    run_model_folder,
)
from tests.tiny import FAMILIES, tiny_model, tiny_tokenizer


def test_a_run_folder_stands_for_its_exported_model(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path / "model")
    assert run_model_folder(tmp_path) == str(tmp_path / "model")
    assert run_model_folder(tmp_path / "model") == str(tmp_path / "model")
    assert run_model_folder("org/name") == "org/name"


def test_a_folder_without_a_model_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.path: no model in"):
        run_model_folder(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        run_model_folder(tmp_path / "nowhere")


def test_a_tokenizer_without_pad_token_gets_its_eos(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(tiny_model().config.to_json_string())
    assert load_tokenizer(tmp_path).pad_token_id == tokenizer.eos_token_id


def test_dtype_is_float32_unless_asked_otherwise(tmp_path: Path) -> None:
    tiny_model().to(torch.bfloat16).save_pretrained(tmp_path)
    assert load_causal_lm(tmp_path).dtype == torch.float32
    assert load_causal_lm(tmp_path, dtype="auto").dtype == torch.bfloat16


@pytest.mark.parametrize("method", ["a method of tomorrow", 3])
def test_weights_packed_in_an_unknown_way_are_not_read_as_plain_ones(method: object, tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": method}}))
    for load in (load_causal_lm, load_reward_model):
        with pytest.raises(UserError, match=rf"model\.path: .* is quantised by '{method}'"):
            load(tmp_path)


def test_remote_code_needs_a_pinned_revision(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.revision"):
        load_causal_lm(tmp_path, trust_remote_code=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_without_dropout_training_mode_equals_evaluation_mode(family: str) -> None:
    model = tiny_model(family, dropout=0.5)
    ids = torch.arange(3, 11).unsqueeze(0)
    assert not torch.equal(model.train()(ids).logits, model.train()(ids).logits)
    disable_dropout(model)
    torch.testing.assert_close(model.train()(ids).logits, model.eval()(ids).logits)


def test_fingerprint_sees_one_changed_bit() -> None:
    model = tiny_model()
    before = fingerprint(model)
    assert before == fingerprint(tiny_model())
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1e-3
    assert fingerprint(model) != before
