"""The formula compared with torch's own counter, which sees every operator that runs."""

from __future__ import annotations

import importlib
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from rlhf_lightning.models import NF4, LoRA, load_causal_lm, load_reward_model
from rlhf_lightning.models.forward import bare_model, hidden_states, output_head
from rlhf_lightning.models.operations import Operations, operations_of
from tests.tiny import tiny_model

ROOT = Path(__file__).parents[2]
ROWS, LENGTH = 3, 10
# The counter assumes that every token attends to all tokens of its row.
NEEDED = (ROWS * LENGTH, ROWS * LENGTH**2, ROWS * LENGTH)


def counted(model: nn.Module, backward: bool) -> int:
    with FlopCounterMode(display=False) as counter:
        ids = torch.ones(ROWS, LENGTH, dtype=torch.long)
        loss = output_head(model)(hidden_states(model, ids)).sum()
        if backward:
            loss.backward()
    return counter.get_total_flops()


def eager(family: str, layers: int) -> nn.Module:
    model = tiny_model(family, layers=layers)
    model.set_attn_implementation("eager")
    return model.train()


def family(kind: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a tiny model of any transformers family."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    return importlib.import_module("families.configs").tiny(kind)


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3", "gemma"])
def test_a_step_on_all_weights_is_what_torch_counts(family: str) -> None:
    """Also with tied embeddings, Conv1D layers, fewer key heads than query heads, and heads of their own width."""
    model = eager(family, 2)
    operations = operations_of(model)
    assert operations.frozen == 0
    assert operations.forward(*NEEDED) == counted(model, backward=False)
    assert operations.step(*NEEDED) == counted(model, backward=True)


def test_layers_whose_heads_differ_are_counted_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model = family("gemma4_text", monkeypatch)
    model.set_attn_implementation("eager")
    assert operations_of(model).forward(*NEEDED) == counted(model, backward=False)


@pytest.mark.parametrize("kind", ["mamba", "blt"])
def test_a_family_without_attention_or_without_one_depth_has_operations(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only its linear layers are counted."""
    operations = operations_of(family(kind, monkeypatch))
    assert operations.width == 0
    assert operations.forward(*NEEDED) > 0


def test_a_layer_on_a_frozen_base_is_what_torch_counts() -> None:
    """By the difference of two depths: the first layer needs no gradient of its input."""
    seen, formula = [], []
    for layers in (2, 3):
        adapted = get_peft_model(eager("llama", layers), LoRA(rank=4).config("CAUSAL_LM", None))
        operations = operations_of(adapted)
        assert operations.trained < 0.3 * operations.frozen
        assert not operations.output_trained
        seen.append(counted(adapted, backward=True))
        formula.append(operations.step(*NEEDED))
    assert formula[1] - formula[0] == seen[1] - seen[0]


def test_weights_in_four_bits_count_as_the_numbers_they_stand_for(tmp_path) -> None:
    tiny_model(hidden=64).save_pretrained(tmp_path)
    plain = operations_of(load_causal_lm(tmp_path, adapter=LoRA(rank=4)))
    packed = operations_of(load_causal_lm(tmp_path, adapter=LoRA(rank=4), quantization=NF4()))
    assert packed == plain


def test_adapters_of_other_roles_are_not_counted() -> None:
    config = LoRA(rank=4).config("CAUSAL_LM", None)
    model = get_peft_model(tiny_model(), config)
    alone = operations_of(model)
    model.add_adapter("reference", config)
    assert operations_of(model) == alone


def test_networks_without_an_output_layer_have_none(tmp_path) -> None:
    model = tiny_model()
    model.save_pretrained(tmp_path)
    whole = operations_of(model)
    for network in (load_reward_model(tmp_path), bare_model(model).base_model):
        assert operations_of(network) == Operations(whole.trained, 0, 0, False, whole.width)


def test_a_reward_models_head_of_one_number_is_not_counted(tmp_path) -> None:
    tiny_model().save_pretrained(tmp_path)
    adapted = partial(load_reward_model, tmp_path, adapter=LoRA(rank=4))
    assert operations_of(adapted()).trained == operations_of(load_causal_lm(tmp_path, adapter=LoRA(rank=4))).trained
