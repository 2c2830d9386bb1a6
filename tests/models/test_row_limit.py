"""A family whose angles depend on the longest row reads rows up to the length where that begins, and no longer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rlhf_lightning.errors import UserError
from rlhf_lightning.models import load_causal_lm, predict_tokens
from rlhf_lightning.models.limits import positions

DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
LONG = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "rope_theta": 1e4}
PHI3 = {"original_max_position_embeddings": 16, "pad_token_id": 0}
SIZE = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 32,
}


def loaded(folder: Path, kind: str, rope: dict[str, Any] | None, **extra: Any) -> Any:
    rotation = {} if rope is None else {"rope_parameters": rope}
    AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SIZE, **rotation, **extra)).save_pretrained(folder)
    return load_causal_lm(folder)


@pytest.mark.parametrize(
    ("kind", "rope", "extra", "limit"),
    [
        ("llama", DYNAMIC, {}, 32),
        ("phi3", {**LONG, "original_max_position_embeddings": 16}, PHI3, 16),
        ("llama", None, {}, None),
        ("llama", {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4}, {}, None),
    ],
)
def test_longer_rows_are_refused_where_they_would_change_shorter_ones(
    kind: str, rope: dict[str, Any] | None, extra: dict[str, Any], limit: int | None, tmp_path: Path
) -> None:
    model = loaded(tmp_path, kind, rope, **extra)
    assert getattr(model, "row_limit", None) == limit
    assert positions(model) == (limit or 32)
    ids = torch.arange(3, 3 + 40).unsqueeze(0)
    flags = torch.ones_like(ids)
    flags[:, 0] = 0
    if limit is None:
        return
    predict_tokens(model, ids[:, :limit], flags[:, :limit])
    with pytest.raises(UserError, match=rf"model_type {kind}.*beyond {limit} tokens; found a row of 40"):
        predict_tokens(model, ids, flags)
