"""The task that a worker builds and repeats: the same for both sides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Task = Literal["sft", "reward", "dpo", "ppo", "decode"]
LORA_RANK, LORA_ALPHA = 16, 32  # on all linear layers except the output layer
LEARNING_RATE = 1e-6  # a repetition hardly moves the weights, so that all repetitions are alike


@dataclass(frozen=True)
class Job:
    """One repetition: an epoch over the rows of `data`, iterations of PPO, or an answer to every prompt.

    Args:
        model: a Hugging Face folder.
        data: a JSONL file; its rows are taken in its order, `batch_size` at a time.
        batch_size: rows per optimiser step (pairs, for preferences); prompts per iteration of PPO, or decoded at a
            time.
        max_length: tokens of a row; of a prompt, for PPO and decoding.
        lora: train a LoRA adapter; False: all weights.
        response_length: tokens of every response of PPO (no EOS ends one), and at most this many in decoding.
        reward_model: folder of a reward model (PPO).
        ppo_epochs, minibatches: per iteration.
        iterations: PPO iterations per repetition.
        overrides: of our config, for what the peer does not have.
        kernels: on our side: auto, none, or names.
    """

    task: Task
    model: str
    data: str
    batch_size: int
    max_length: int
    lora: bool = False
    response_length: int = 64
    reward_model: str = ""
    ppo_epochs: int = 4
    minibatches: int = 4
    iterations: int = 1
    overrides: tuple[str, ...] = ()
    kernels: str | list[str] = "auto"
