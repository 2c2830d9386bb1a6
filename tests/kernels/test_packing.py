"""Packed rows give the values and gradients of padded rows, in every family that may be packed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from rlhf_lightning.kernels.packing import IN_ROWS, PACKABLE, pack, packable
from rlhf_lightning.models import RewardModel, load_reward_model, predict_tokens
from rlhf_lightning.models import forward as forward_module
from tests.tiny import FAMILIES, tiny_model, tiny_tokenizer

PROMPTS = [[5, 6, 7, 8, 9], [5, 6], [10, 11]]
# Prompts with three, two and one answers; the second is the beginning of the first and as long as the third.
ROWS = [
    (0, [20, 1]),
    (0, [21, 22, 23, 24, 25, 1]),
    (1, [7, 8, 1]),
    (0, [20, 21, 1]),
    (1, [13, 1]),
    (2, [14, 15, 16, 1]),
]


def batch() -> tuple[Tensor, Tensor]:
    rows = [PROMPTS[p] + answer for p, answer in ROWS]
    length = max(map(len, rows)) + 3
    ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
    flags = torch.zeros_like(ids)
    for i, (p, answer) in enumerate(ROWS):
        flags[i, len(PROMPTS[p]) : len(PROMPTS[p]) + len(answer)] = 1
    return ids, flags


def without_packing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward_module, "packable", lambda *_: False)


def assert_packed_is_padded(make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare values, entropies, states and gradients of the model that `make` makes, packed and in separate rows."""
    results = []
    for packed in (True, False):
        if not packed:
            without_packing(monkeypatch)
        model = make()
        tokens = predict_tokens(model, *batch(), with_entropy=True)
        assert tokens.entropy is not None
        weights = torch.linspace(-1, 1, len(tokens.logprobs))
        (tokens.logprobs @ weights + tokens.hidden.pow(2).mean()).backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        results.append((tokens.logprobs, tokens.entropy, tokens.hidden, gradient))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-5 * max(1, float(expected.detach().abs().max())), rtol=0)


@pytest.mark.parametrize("family", PACKABLE)
def test_values_entropies_and_gradients_are_those_of_padded_rows(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_packed_is_padded(lambda: tiny_model(family).eval(), monkeypatch)


def test_a_batch_is_packed_at_all() -> None:
    ids, flags = batch()
    seen = []
    model = tiny_model()
    model.model.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs["input_ids"]), with_kwargs=True)
    predict_tokens(model, ids, flags)
    needed = sum(len(p) for p in PROMPTS) + sum(len(answer) - 1 for _, answer in ROWS)  # the EOS predicts nothing
    assert seen[0].shape == (1, needed)


def test_every_token_is_found_where_it_was_put() -> None:
    ids, flags = batch()
    lengths = (flags * torch.arange(1, ids.shape[1] + 1)).amax(dim=1)
    packed = pack(ids, lengths, flags.argmax(dim=1))
    assert packed is not None
    needed = torch.arange(ids.shape[1]) < lengths[:, None]
    assert torch.equal(packed.input_ids.flatten()[packed.places][needed], ids[needed])
    columns = torch.arange(ids.shape[1]).expand(ids.shape)
    assert torch.equal(packed.position_ids.flatten()[packed.places][needed], columns[needed])


def test_what_would_not_get_smaller_stays_as_it_is() -> None:
    ids = torch.randint(3, 20, (4, 6))
    full = torch.full((4,), 6)
    assert pack(ids, full, torch.zeros_like(full)) is None
    assert pack(ids, torch.zeros_like(full), torch.zeros_like(full)) is None


def test_attention_sees_rows_however_many_tokens_are_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []

    def attention(module, query, key, value, attention_mask, **kwargs):
        shapes.append((query.shape[:1] + query.shape[2:3], attention_mask, kwargs["is_causal"]))
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)

    monkeypatch.setattr("rlhf_lightning.kernels.packing.sdpa_attention_forward", attention)
    ids, flags = batch()
    predict_tokens(tiny_model(), ids, flags)
    assert shapes == [(ids.shape, None, True)] * 2


@pytest.mark.parametrize("family", PACKABLE)
def test_layers_that_are_computed_again_in_the_backward_pass_have_the_same_gradients(family: str) -> None:
    gradients = []
    for again in (True, False):
        model = tiny_model(family).train()
        if again:
            model.activation_checkpointing_enable({"use_reentrant": False})
        predict_tokens(model, *batch()).logprobs.sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert torch.equal(*gradients)


def test_a_network_that_was_packed_reads_padded_rows_as_before_and_saves_nothing_of_it(tmp_path: Path) -> None:
    ids, flags = batch()
    model = tiny_model().eval()
    mask = (ids != 0).long()
    before = model(ids, attention_mask=mask).logits
    predict_tokens(model, ids, flags)
    assert model.config._attn_implementation == IN_ROWS
    assert torch.equal(model(ids, attention_mask=mask).logits, before)
    model.save_pretrained(tmp_path)
    assert IN_ROWS not in (tmp_path / "config.json").read_text(encoding="utf-8")


def test_rows_that_share_only_their_first_token_stay_apart() -> None:
    """With the loss on all tokens, rows may share only the BOS."""
    ids = torch.tensor([[4] + [5 + i] * (3 + 8 * i) + [0] * (16 - 8 * i) for i in range(3)])
    lengths = (ids != 0).sum(dim=1)
    packed = pack(ids, lengths, torch.ones(3, dtype=torch.long))
    assert packed is not None
    assert int((packed.input_ids == 4).sum()) == 3


def test_rows_without_a_wanted_token_are_left_out() -> None:
    ids, flags = batch()
    flags[1:5] = 0
    model = tiny_model().eval()
    alone = [predict_tokens(model, ids[i : i + 1], flags[i : i + 1]).logprobs for i in (0, 5)]
    torch.testing.assert_close(predict_tokens(model, ids, flags).logprobs, torch.cat(alone), atol=1e-5, rtol=0)
    assert predict_tokens(model, ids, torch.zeros_like(flags)).logprobs.shape == (0,)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_reward_models_scores_and_gradients_are_those_of_padded_rows(family, tmp_path, monkeypatch) -> None:
    tiny_model(family).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    ids, flags = batch()
    mask = (ids != 0).long()
    results = []
    for prompts in (flags.argmax(dim=1), None, "padded"):
        if prompts == "padded":
            without_packing(monkeypatch)
            prompts = None
        model: RewardModel = load_reward_model(tmp_path).eval()
        scores = model(ids, mask, prompts)
        (scores @ torch.linspace(-1, 1, len(scores))).backward()
        results.append((scores, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])))
    for got in results[:2]:
        for x, y in zip(got, results[2], strict=True):
            torch.testing.assert_close(x, y, atol=1e-5 * max(1, float(y.detach().abs().max())), rtol=0)


def test_attention_that_reads_more_than_the_mask_is_left_alone() -> None:
    assert [family for family in FAMILIES if packable(tiny_model(family).config, 128)] == [
        "llama",
        "gpt2",
        "mistral",
        "qwen2",
        "qwen3",
        "gemma",
    ]
    windowed = tiny_model("mistral").config
    windowed.sliding_window = 8
    assert packable(windowed, 8)
    assert not packable(windowed, 9)
    eager = tiny_model().config
    eager._attn_implementation = "eager"
    assert not packable(eager, 8)
