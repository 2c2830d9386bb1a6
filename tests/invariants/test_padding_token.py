"""The padding token does not matter: a whole run with pad == EOS equals the run with a separate pad token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.algorithms.conftest import dpo, offline, ppo, reward, sft, trainer
from tests.tiny import tiny_tokenizer


def count_a_to_m(prompts: list[str], responses: list[str], **columns: Any) -> list[float]:
    """Count words: an untrained policy also samples the pad token, which only a tokenizer that pads with it skips."""
    return [float(sum("a" <= word < "n" for word in response.split())) for response in responses]


def trained(kind: str, folder: Path, pad_is_eos: bool) -> tuple[Any, torch.Tensor]:
    make = {"sft": sft, "dpo": dpo, "ppo": lambda: ppo(reward=count_a_to_m), "reward": lambda: reward(folder)}
    module, data = make[kind]() if kind in make else offline(kind)
    module.tokenizer = data.tokenizer = tiny_tokenizer(pad_is_eos)
    trainer(folder, limit_val_batches=0).fit(module, datamodule=data)
    return module, torch.cat([p.detach().flatten() for p in module.parameters()])


@pytest.mark.parametrize("kind", ["sft", "reward", "dpo", "ppo", "KTOModule", "ORPOModule", "ILQLModule"])
def test_a_run_with_pad_as_eos_equals_one_without(kind: str, tmp_path: Path) -> None:
    (apart, expected), (same, weights) = (trained(kind, tmp_path, pad_is_eos) for pad_is_eos in (False, True))
    assert apart.tokenizer.pad_token_id != apart.tokenizer.eos_token_id
    assert same.tokenizer.pad_token_id == same.tokenizer.eos_token_id
    torch.testing.assert_close(weights, expected, atol=1e-6, rtol=0)
    if kind == "ppo":
        assert 0 < apart.last_rollout.ended.sum() < len(apart.last_rollout)
        assert torch.equal(same.last_rollout.mask, apart.last_rollout.mask)
