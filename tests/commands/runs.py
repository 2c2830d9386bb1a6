"""Run folders as rlhf-train leaves them, written quickly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from rlhf_lightning.models import RewardModel, ScoreMoments, load_reward_model, save_model
from tests.tiny import tiny_model, tiny_tokenizer

ALGORITHM = "rlhf_lightning.algorithms."
LOADER = "rlhf_lightning.models."


def write_run(
    folder: Path, begins_from: str = "gpt2", algorithm: str = "SFTModule", summary: Any = None, **config: Any
) -> Path:
    """Write a run folder's config.yaml and summary.json, without a model."""
    loader = "load_reward_model" if algorithm == "RewardModule" else "load_causal_lm"
    whole = {
        "name": folder.name,
        "seed": 3,
        "algorithm": {"_target_": ALGORITHM + algorithm},
        "model": {"_target_": LOADER + loader, "path": begins_from, "dtype": "float32"},
        "data": {"train": "rows.jsonl", "val": None, "val_fraction": 0.1},
        **config,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(json.dumps(whole))  # JSON is YAML
    (folder / "summary.json").write_text(
        json.dumps({"val/loss": 0.25, "train_rows": 90} if summary is None else summary)
    )
    return folder


CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m['role'][:1] }} {{ m['content'] }} {% if m['role'] == 'assistant' %}<eos> {% endif %}"
    "{% endfor %}{% if add_generation_prompt %}a {% endif %}"
)


def write_model(folder: Path, chat: bool = False, classifier: bool = False) -> Path:
    """Write a tiny model with its tokenizer to a Hugging Face folder."""
    tokenizer = tiny_tokenizer()
    if chat:
        tokenizer.chat_template = CHAT_TEMPLATE
    tiny_model().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if classifier:
        save_model(load_reward_model(folder), tokenizer, folder)
    return folder


def write_adapter(folder: Path, base: Path, classifier: bool = False) -> Path:
    """Write an adapter on `base` that changes its answers, with the tokenizer."""
    model: Any = load_reward_model(base).classifier if classifier else tiny_model()
    model.config._name_or_path = str(base)
    task = {"task_type": "SEQ_CLS", "modules_to_save": ["score"]} if classifier else {"task_type": "CAUSAL_LM"}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        adapted = get_peft_model(model, LoraConfig(target_modules="all-linear", init_lora_weights=False, **task))
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    network: Any = RewardModel(adapted) if classifier else adapted  # type: ignore[arg-type]
    if classifier:
        network.keep_moments(ScoreMoments(0.5, 2.0))
    save_model(network, tiny_tokenizer(), folder)
    return folder
