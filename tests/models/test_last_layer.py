"""The last layer's feed-forward block runs on the tokens that are read, and every number stays what it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rlhf_lightning.models import load_causal_lm, load_reward_model, predict_tokens
from rlhf_lightning.models.last_layer import LastLayer, read_less
from tests.models.test_packing import batch, without_packing
from tests.tiny import tiny_model, tiny_tokenizer

FAMILIES = ("gemma", "llama", "mistral", "qwen2", "qwen3")


@pytest.mark.parametrize("family", FAMILIES)
def test_values_and_gradients_are_those_of_padded_rows(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for packed in (True, False):
        if not packed:
            without_packing(monkeypatch)
        model = tiny_model(family).eval()
        read_less(model.base_model)
        assert isinstance(model.base_model.layers[-1], LastLayer)
        tokens = predict_tokens(model, *batch())
        (tokens.logprobs @ torch.linspace(-1, 1, len(tokens.logprobs)) + tokens.hidden.pow(2).mean()).backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        results.append((tokens.logprobs, tokens.hidden, gradient))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-5 * max(1, float(expected.detach().abs().max())), rtol=0)


def test_only_the_last_block_and_only_the_read_tokens() -> None:
    model, seen = tiny_model().eval(), []
    read_less(model.base_model)
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
    read_less(model.base_model)
    assert not any(isinstance(module, LastLayer) for module in model.modules())
