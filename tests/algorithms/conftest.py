"""Small runs of the modules through a real Trainer."""

from __future__ import annotations

import atexit
import random
import shutil
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml

from rlhf_lightning import algorithms
from rlhf_lightning.algorithms import (
    CostModule,
    DPOModule,
    KLPenalty,
    PPOModule,
    ProcessRewardModule,
    RewardModule,
    SFTModule,
)
from rlhf_lightning.commands.composition import conf_dir
from rlhf_lightning.data import (
    PreferenceDataModule,
    PromptDataModule,
    RewardedDataModule,
    SafetyDataModule,
    SFTDataModule,
    StepDataModule,
    UnpairedDataModule,
)
from rlhf_lightning.models import load_process_reward_model, load_reward_model
from rlhf_lightning.rollout import RolloutSettings
from rlhf_lightning.source.declarations import declared, our_algorithms
from tests.tiny import WORDS, tiny_model, tiny_tokenizer

SGD = partial(torch.optim.SGD, lr=0.1)
ADAM = partial(torch.optim.Adam, lr=1e-3)
SEPARATOR = " z"  # of steps


def trainer(folder: Path, **kwargs: Any) -> L.Trainer:
    settings: dict[str, Any] = {
        "max_epochs": 1,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        "log_every_n_steps": 1,
        "num_sanity_val_steps": 0,
        "default_root_dir": folder,
    }
    return L.Trainer(**{**settings, **kwargs})


def sft_rows(n: int = 10) -> list[dict[str, str]]:
    """Return rows of different lengths."""
    return [
        {"prompt": " ".join(WORDS[: 1 + i % 4]), "completion": " ".join(WORDS[i : i + 1 + i % 5])} for i in range(n)
    ]


def pair_rows(n: int = 10) -> list[dict[str, str]]:
    """Return pairs whose longer answer is chosen."""
    return [
        {"prompt": WORDS[i], "chosen": " ".join(WORDS[i : i + 3 + i % 3]), "rejected": WORDS[i + 1]} for i in range(n)
    ]


def count_early(prompts: list[str], responses: list[str], **columns: Any) -> list[float]:
    """Count words from the first half of the alphabet."""
    return [float(sum(word < "n" for word in response.split())) for response in responses]


def count_words(prompts: list[str], responses: list[str], **columns: Any) -> list[float]:
    """Return a cost: the number of words above two."""
    return [len(response.split()) - 2.0 for response in responses]


def sft(model: Callable[..., Any] = tiny_model, **kwargs: Any) -> tuple[SFTModule, SFTDataModule]:
    tokenizer = tiny_tokenizer()
    data = {"batch_size": 2, **kwargs}
    return SFTModule(model, tokenizer, ADAM), SFTDataModule(tokenizer, sft_rows(), sft_rows(4), **data)


def dpo(model: Callable[..., Any] = tiny_model, optimizer: Any = ADAM, **kwargs: Any) -> tuple[Any, Any]:
    tokenizer = tiny_tokenizer()
    data = PreferenceDataModule(tokenizer, pair_rows(), pair_rows(4), batch_size=2)
    return DPOModule(model, tokenizer, optimizer, **kwargs), data


def labelled_rows(n: int = 10) -> list[dict[str, Any]]:
    """Return two answers to each prompt, of different lengths."""
    return [
        {"prompt": WORDS[i // 2], "completion": " ".join(WORDS[i : i + 1 + i % 4]), "label": i % 3 != 0}
        for i in range(n)
    ]


def rewarded_rows(n: int = 10) -> list[dict[str, Any]]:
    """Return answers of different lengths with rewards, every third with one for each of its tokens."""
    rows: list[dict[str, Any]] = []
    for i in range(n):
        reward = float(i % 4) if i % 3 else [0.5 * j for j in range(2 + i % 4)]
        rows.append({"prompt": WORDS[i // 2], "completion": " ".join(WORDS[i : i + 1 + i % 4]), "reward": reward})
    return rows


@cache
def teacher_folder() -> Path:
    """Return the folder of a teacher with other weights than `tiny_model`, made once per test run."""
    folder = Path(tempfile.mkdtemp(prefix="teacher-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    model = tiny_model(hidden=16)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def of_kind(*kinds: str) -> list[str]:
    """Return the names of our algorithms (without bases) with one of these kinds of data that train a policy."""
    found = [each for each in our_algorithms() if each.data in kinds and not each.scores]
    return [each.name for each in found if each.name not in ("PreferenceModule", "UnpairedModule")]


def offline(name: str, model: Callable[..., Any] = tiny_model, optimizer: Any = ADAM, **kwargs: Any) -> tuple[Any, Any]:
    """Return the algorithm of this name, and rows of the kind that it declares."""
    make, tokenizer = getattr(algorithms, name), tiny_tokenizer()
    if make.data == "sft":
        data: Any = SFTDataModule(tokenizer, sft_rows(), sft_rows(4), batch_size=2)
        kwargs = {"teacher": str(teacher_folder()), "max_new_tokens": 4, **kwargs}
    elif make.data == "rewarded":
        data = RewardedDataModule(tokenizer, rewarded_rows(), rewarded_rows(4), batch_size=2)
    elif make.data == "unpaired":
        data = UnpairedDataModule(tokenizer, labelled_rows(), labelled_rows(4), batch_size=2)
    else:
        data = PreferenceDataModule(tokenizer, pair_rows(), pair_rows(4), batch_size=2)
    return make(model, tokenizer, optimizer, **kwargs), data


def reward(folder: Path, optimizer: Any = ADAM, rows: Any = None, **kwargs: Any) -> tuple[Any, Any]:
    tokenizer = tiny_tokenizer()
    if not (folder / "base").exists():
        tiny_model().save_pretrained(folder / "base")
    data = PreferenceDataModule(tokenizer, rows or pair_rows(), pair_rows(4), batch_size=2)
    return RewardModule(partial(load_reward_model, folder / "base"), tokenizer, optimizer, **kwargs), data


def cost(folder: Path, optimizer: Any = ADAM) -> tuple[Any, Any]:
    """Return a cost model and pairs, of which every other has an unsafe answer beside the safer one."""
    tokenizer = tiny_tokenizer()
    rows = [{**row, "chosen_safe": True, "rejected_safe": i % 2 > 0} for i, row in enumerate(pair_rows())]
    data = SafetyDataModule(tokenizer, rows, rows[:4], batch_size=2)
    return CostModule(partial(load_reward_model, folder / "base"), tokenizer, optimizer), data


def step_rows(n: int = 10, seed: int = 0) -> list[dict[str, Any]]:
    """Return chains of one to four steps of two letters, which are early in a right step and late in a wrong one."""
    draw, rows = random.Random(seed), []
    for i in range(n):
        labels = [draw.random() < 0.5 for _ in range(1 + i % 4)]
        halves = [WORDS[:12] if right else WORDS[12:24] for right in labels]
        steps = [f" {draw.choice(letters)} {draw.choice(letters)}" for letters in halves]
        rows.append({"prompt": WORDS[i % 24], "completions": steps, "labels": labels})
    return rows


def process(folder: Path, optimizer: Any = ADAM, rows: Any = None, **model: Any) -> tuple[Any, Any]:
    tokenizer = tiny_tokenizer()
    if not (folder / "base").exists():
        tiny_model(hidden=64 if model else 32).save_pretrained(folder / "base")
        tokenizer.save_pretrained(folder / "base")
    data = StepDataModule(tokenizer, rows or step_rows(), step_rows(6), batch_size=2, step_separator=SEPARATOR)
    return ProcessRewardModule(partial(load_process_reward_model, folder / "base", **model), tokenizer, optimizer), data


def ppo(model: Callable[..., Any] = tiny_model, optimizer: Any = ADAM, **kwargs: Any) -> tuple[Any, Any]:
    tokenizer = tiny_tokenizer()
    rows = [{"prompt": f"{a} {b}"[: 1 + 2 * (a < "d")]} for a in "bcdef" for b in "ghij"]
    settings = {
        "reward": count_early,
        "rollout": RolloutSettings(max_new_tokens=6, batch_size=16),
        "kl": KLPenalty(target=2.0, horizon=100),
        **kwargs,
    }
    return PPOModule(model, tokenizer, optimizer, **settings), PromptDataModule(tokenizer, rows)


def _declares(section: dict[str, Any], kind: str) -> bool:
    return declared(section["_target_"]).data == kind


CONFIGS = {file.stem: yaml.safe_load(file.read_text()) for file in sorted((conf_dir() / "algorithm").glob("*.yaml"))}
ON_POLICY = [name for name, section in CONFIGS.items() if _declares(section, "prompts")]
"""Every algorithm that learns from its own samples, by the name of its config."""

GROUPS = [name for name in ON_POLICY if CONFIGS[name].get("estimator") in ("group_mean", "leave_one_out")]
"""The algorithms whose baseline is the other responses to a prompt."""


def on_policy(name: str, model: Callable[..., Any] = tiny_model, optimizer: Any = ADAM, **kwargs: Any) -> Any:
    """Return the module of conf/algorithm/NAME.yaml and its data: 16 responses per iteration, 4 to each prompt."""
    tokenizer, section = tiny_tokenizer(), dict(CONFIGS[name])
    kind = getattr(algorithms, section.pop("_target_").rpartition(".")[2])
    for key, value in section.items():
        if isinstance(value, dict):
            part = dict(value)
            section[key] = getattr(algorithms, part.pop("_target_").rpartition(".")[2])(**part)
    rows = [{"prompt": f"{a} {b}"[: 1 + 2 * (a < "d")]} for a in "bcdef" for b in "ghij"]
    rollout = RolloutSettings(max_new_tokens=6, batch_size=4, samples_per_prompt=4)
    settings = {**section, "reward": count_early, "rollout": rollout, **kwargs}
    if "cost" in kind.roles:
        settings.setdefault("cost", count_words)
    return kind(model, tokenizer, optimizer, **settings), PromptDataModule(tokenizer, rows)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
