"""The comparisons: the rows of docs/performance.md, with their targets."""

from __future__ import annotations

from dataclasses import dataclass

from comparison.job import Job, Task

PPO_TRL, TRL = "1.12.0", "1.16.0"  # the last version with PPO, and the one for the rest


@dataclass(frozen=True)
class Row:
    """A comparison.

    Args:
        key: its name on the command line.
        what: its name in the table.
        trl: version of the peer's environment.
        unit: what is counted per second.
        aim: the smallest acceptable ratio of speeds, ours to the peer's.
        memory_aim: the largest acceptable ratio of memory peaks above what was resident before the models; for PPO,
            above the model's own bytes too.
        data: which of the user's files it reads; "": random prompts.
        count: rows, pairs or prompts per repetition.
        llama: layers and width of a random Llama; None: the user's model.
    """

    key: str
    what: str
    task: Task
    unit: str
    aim: float
    batch_size: int
    max_length: int
    count: int
    memory_aim: float | None = None
    trl: str = TRL
    lora: bool = True
    data: str = ""
    llama: tuple[int, int] | None = None
    response_length: int = 64

    def job(self, model: str, data: str, reward_model: str = "") -> Job:
        """Return the repetition that both sides are asked for."""
        return Job(
            self.task,
            model,
            data,
            self.batch_size,
            self.max_length,
            self.lora,
            self.response_length,
            reward_model=reward_model,
        )


def _ppo(layers: int, width: int, aim: float, lora: bool = False) -> Row:
    key = f"ppo-{layers}x{width}{'-lora' if lora else ''}"
    what = f"PPO, {layers}x{width}, {'LoRA' if lora else 'all weights'}"
    return Row(
        key,
        what,
        *("ppo", "episodes", aim),
        batch_size=32,
        max_length=64,
        count=32,
        memory_aim=0.5,
        trl=PPO_TRL,
        lora=lora,
        llama=(layers, width),
    )


ROWS = [
    _ppo(2, 128, aim=4),
    _ppo(4, 256, aim=3),
    _ppo(8, 512, aim=2),
    _ppo(8, 512, aim=3, lora=True),
    Row("dpo-persona", "DPO, persona", "dpo", "rows", 3.5, 8, 1024, 32, memory_aim=0.5, data="persona"),
    Row("dpo-hh", "DPO, hh", "dpo", "rows", 5, 4, 512, 16, memory_aim=0.4, data="hh"),
    Row("reward-persona", "reward model, persona", "reward", "rows", 2, 8, 1024, 64, data="persona"),
    Row("reward-hh", "reward model, hh", "reward", "rows", 3, 4, 512, 16, data="hh"),
    Row("sft", "SFT, selfinstruct", "sft", "rows", 1.5, 8, 512, 32, data="selfinstruct"),
    Row(
        *("decode", "decoding", "decode", "tokens", 2, 16, 512, 48),
        lora=False,
        data="selfinstruct",
        response_length=128,
    ),
]
UPDATE_ROW, UPDATE_AIM = "ppo-8x512", 0.6  # share of the matmul peak in the update phase
