"""The last layer's feed-forward block runs only on the tokens that are read, and every result stays the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf_lightning.kernels.families import GATED_FAMILIES
from rlhf_lightning.kernels.last_layer import LastLayer, read_less
from rlhf_lightning.models import load_causal_lm, load_reward_model, predict_tokens
from tests.kernels.test_packing import assert_packed_is_padded, batch
from tests.tiny import tiny_model, tiny_tokenizer


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", GATED_FAMILIES)
def test_values_and_gradients_are_those_of_padded_rows(
    family: str, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make() -> Any:
        model = tiny_model(family.lower())
        read_less(model)
        assert isinstance(model.base_model.layers[-1], LastLayer)
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        return model.train()

    assert_packed_is_padded(make, monkeypatch)


def test_only_the_last_block_and_only_the_read_tokens() -> None:
    model, seen = tiny_model().eval(), []
    read_less(model)
    for layer in model.base_model.layers:
        layer.mlp.register_forward_hook(lambda module, given, out: seen.append(out.shape[1]))
    ids, flags = batch()
    predict_tokens(model, ids, flags)
    assert seen[-1] == flags.sum()
    assert all(tokens > flags.sum() for tokens in seen[:-1])


@pytest.mark.parametrize("load", [load_causal_lm, load_reward_model])
def test_a_loaded_model_reads_less_and_is_saved_as_before(load, tmp_path: Path) -> None:
    model, ids = tiny_model(), torch.randint(5, 20, (2, 7))
    model.save_pretrained(tmp_path / "given")
    tiny_tokenizer().save_pretrained(tmp_path / "given")
    loaded = load(tmp_path / "given")
    network = getattr(loaded, "classifier", loaded)
    assert isinstance(network.base_model.layers[-1], LastLayer)
    if load is load_causal_lm:
        assert torch.equal(network(ids).logits, model(ids).logits)
        network.save_pretrained(tmp_path / "saved")
        again = type(model).from_pretrained(tmp_path / "saved")
        assert torch.equal(again(ids).logits, model(ids).logits)


def test_another_form_is_left_alone() -> None:
    model = tiny_model("gpt2")
    read_less(model)
    assert not any(isinstance(module, LastLayer) for module in model.modules())
