"""In every algorithm, a network with nothing, or next to nothing, to train is an error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from rlhf_lightning.algorithms import AlignmentModule, DPOModule, PPOModule, RewardModule, SFTModule
from rlhf_lightning.errors import UserError
from rlhf_lightning.models import LoRA, load_causal_lm, load_reward_model
from tests.tiny import tiny_model, tiny_tokenizer


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


def module(kind: type[AlignmentModule], load: Callable[[], Any]) -> AlignmentModule:
    more = {"reward": lambda prompts, responses, **_: [0.0] * len(responses)} if kind is PPOModule else {}
    return kind(load, tiny_tokenizer(), sgd, **more)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    tiny_model("gpt2").save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def only(network: nn.Module, part: str) -> nn.Module:
    """Freeze every parameter whose name does not contain `part`."""
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(bool(part) and part in name)
    return network


@pytest.mark.parametrize("part", ["", ".bias", "ln_", "wte", "wpe", "score"])
@pytest.mark.parametrize("kind", [SFTModule, RewardModule, DPOModule, PPOModule])
def test_next_to_nothing_to_train_is_an_error(kind: type[AlignmentModule], part: str, base: Path) -> None:
    load = load_reward_model if kind is RewardModule else load_causal_lm
    with pytest.raises(UserError, match=r"^model\.path: almost none of the model would be trained \([\d,]+ of "):
        module(kind, lambda: only(load(base), part)).configure_model()


@pytest.mark.parametrize("kind", [SFTModule, RewardModule, DPOModule, PPOModule])
@pytest.mark.parametrize("trained", ["everything", "one matrix", "LoRA of rank 1"])
def test_a_part_of_the_layers_is_enough(kind: type[AlignmentModule], trained: str, base: Path) -> None:
    load: Any = load_reward_model if kind is RewardModule else load_causal_lm

    def network() -> Any:
        if trained == "LoRA of rank 1":
            return load(base, adapter=LoRA(rank=1, target_modules=["c_attn"]))
        return load(base) if trained == "everything" else only(load(base), "h.1.attn.c_attn.weight")

    module(kind, network).configure_model()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("bias", ["none", "all"])
@pytest.mark.parametrize("kind", [SFTModule, RewardModule, DPOModule, PPOModule])
def test_a_run_from_an_adapter_folder_without_an_adapter_trains_all_weights(
    kind: type[AlignmentModule], bias: Any, base: Path, tmp_path: Path
) -> None:
    plain: Any = load_causal_lm(base)
    get_peft_model(plain, LoraConfig(target_modules=["c_attn"], bias=bias)).save_pretrained(tmp_path / "adapter")
    load = load_reward_model if kind is RewardModule else load_causal_lm
    whole = module(kind, lambda: load(base))
    begun = module(kind, lambda: load(tmp_path / "adapter"))
    for each in (whole, begun):
        each.configure_model()
    names = [{name for name, p in each.named_parameters() if p.requires_grad} for each in (whole, begun)]
    assert names[0] == names[1]
