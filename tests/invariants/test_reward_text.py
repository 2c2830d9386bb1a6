"""A reward model reads text through its own tokenizer and its own chat template."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rlhf_lightning.rewards import ModelReward
from tests.tiny import tiny_tokenizer, write_reward_model

TEMPLATE = (
    "{% for m in messages %}{{ 'q' if m['role'] == 'user' else 'a' }} {{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}a {% endif %}"
)


def test_a_conversation_is_rendered_by_the_reward_models_template_not_by_the_policys(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(write_reward_model(tmp_path))
    reward = ModelReward(tmp_path)
    messages = [[{"role": "user", "content": "b c"}]]
    rendered = ["z y b c x"]  # what the policy's own template made of it
    (score,) = reward(rendered, ["d e"], messages=messages, ended=[True])
    ids = torch.tensor([[*tokenizer("q b c a d e")["input_ids"], tokenizer.eos_token_id]])
    assert score == pytest.approx(float(reward.model(ids, torch.ones_like(ids))), abs=1e-6)
