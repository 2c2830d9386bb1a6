"""A row that the model cannot read is one line before the first step, not an IndexError in some batch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from rlhf_lightning.algorithms import DPOModule, PPOModule, PretrainingMix, RewardModule, SFTModule
from rlhf_lightning.data import PreferenceDataModule, PromptDataModule, SFTDataModule
from rlhf_lightning.errors import UserError
from rlhf_lightning.models import load_reward_model
from rlhf_lightning.rewards import ModelReward
from rlhf_lightning.rollout import RolloutSettings
from tests.algorithms.conftest import SGD, count_early, trainer
from tests.tiny import tiny_model, tiny_tokenizer, write_reward_model

ALGORITHMS = ["sft", "reward", "dpo", "ppo"]


def build(name: str, tokenizer: Any, folder: Path, words: str, family: str = "gpt2") -> tuple[Any, Any]:
    """Return an algorithm and its data: one row of one word, and one of `words`."""
    model: Callable[..., Any] = partial(tiny_model, family)
    if name == "sft":
        rows: list[dict[str, Any]] = [{"prompt": "a", "completion": text} for text in ("b", words)]
        return SFTModule(model, tokenizer, SGD), SFTDataModule(tokenizer, rows, batch_size=1)
    if name == "ppo":
        settings = RolloutSettings(max_new_tokens=4, batch_size=4)
        rows = [{"prompt": text} for text in ("b", words)]
        module = PPOModule(model, tokenizer, SGD, reward=count_early, rollout=settings)
        return module, PromptDataModule(tokenizer, rows)
    rows = [{"prompt": "a", "chosen": text, "rejected": "c"} for text in ("b", words)]
    data = PreferenceDataModule(tokenizer, rows, batch_size=1)
    if name == "dpo":
        return DPOModule(model, tokenizer, SGD), data
    model().save_pretrained(folder / "base")
    return RewardModule(partial(load_reward_model, folder / "base"), tokenizer, SGD), data


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_rows_beyond_the_positions_are_refused(name: str, family: str, tmp_path: Path) -> None:
    key = "data.max_prompt_length" if name == "ppo" else "data.max_length"
    longest = {"ppo": "prompt has 130"}.get(name, "row has 132")
    module, data = build(name, tiny_tokenizer(), tmp_path, "b " * 130, family)
    with pytest.raises(UserError, match=rf"{key}: the longest {longest} tokens.* has 128 positions; set {key} to"):
        trainer(tmp_path).fit(module, datamodule=data)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_tokens_without_an_embedding_are_refused(name: str, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["new"])
    module, data = build(name, tokenizer, tmp_path, "new b")
    with pytest.raises(UserError, match=r"model\.path: the tokenizer's token 'new' has the id 29.* 29 embeddings"):
        trainer(tmp_path).fit(module, datamodule=data)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_pad_token_without_an_embedding_is_refused(name: str, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    module, data = build(name, tokenizer, tmp_path, "b c")
    with pytest.raises(UserError, match=r"the tokenizer's token '\[PAD\]' has the id 29"):
        trainer(tmp_path).fit(module, datamodule=data)


def test_a_prompt_and_its_response_must_fit_together(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    module, data = build("ppo", tokenizer, tmp_path, "b " * 125)
    with pytest.raises(
        UserError, match=r"prompt has 125 tokens and rollout\.max_new_tokens is 4, and the model has 128"
    ):
        trainer(tmp_path).fit(module, datamodule=data)


def test_what_ppo_reads_besides_is_checked_too(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    (tmp_path / "text.jsonl").write_text('{"text": "' + "a " * 140 + '"}\n')
    module, data = build("ppo", tokenizer, tmp_path, "b")
    module.ptx = PretrainingMix(coef=1.0, data=str(tmp_path / "text.jsonl"), batch_size=1)
    with pytest.raises(UserError, match=r"algorithm\.ptx\.max_length: the longest row has 141 tokens"):
        trainer(tmp_path).fit(module, datamodule=data)
    module, data = build("ppo", tokenizer, tmp_path, "b", "llama")
    module.scorer.given = ModelReward(write_reward_model(tmp_path / "reward"))
    module.scored_by()[0].network.config.max_position_embeddings = 4
    with pytest.raises(UserError, match=r"rollout\.max_new_tokens: found 4, and .*reward \(reward\.model\) has 4"):
        trainer(tmp_path).fit(module, datamodule=data)


def test_dpo_refuses_an_answer_that_nothing_comes_before(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    rows = [{"prompt": "a", "chosen": "b", "rejected": "c"}, {"prompt": "", "chosen": "b", "rejected": "c"}]
    data = PreferenceDataModule(tokenizer, rows, batch_size=1)
    with pytest.raises(UserError, match=r"data\.train, row 2: the prompt is empty and the tokenizer has no BOS"):
        trainer(tmp_path).fit(DPOModule(tiny_model, tokenizer, SGD), datamodule=data)
