"""The assistant world: prompts split into train and test, and the rows made from them, all a function of the seed."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from rlhf_lightning.simulation.demonstrations import demonstrate
from rlhf_lightning.simulation.gold import gold_reward
from rlhf_lightning.simulation.labelers import Labeler
from rlhf_lightning.simulation.preferences import preference_row, ranked_row
from rlhf_lightning.simulation.prompts import Prompt, split_prompts


@dataclass(frozen=True)
class World:
    """Disjoint train and test prompts. The rows that its methods draw depend only on the seed and their arguments."""

    seed: int
    train: tuple[Prompt, ...]
    test: tuple[Prompt, ...]

    def prompt_rows(self, split: str) -> list[dict[str, Any]]:
        """Return rows `prompt`, `kind`, `topic`, one per prompt of the split ("train" or "test")."""
        return [{"prompt": p.text, "kind": p.kind, "topic": p.topic} for p in self._prompts(split)]

    def demonstrations(self, per_prompt: int) -> list[dict[str, Any]]:
        """Return rows `prompt`, `completion`, `kind`, `quality`, `gold` for the train prompts, shuffled."""
        rng = self._rng("demonstrations")
        rows = []
        for prompt in self.train * per_prompt:
            answer, quality = demonstrate(prompt, rng)
            gold = round(gold_reward([prompt.text], [answer])[0], 4)
            rows.append(
                {"prompt": prompt.text, "completion": answer, "kind": prompt.kind, "quality": quality, "gold": gold}
            )
        rng.shuffle(rows)
        return rows

    def preferences(self, split: str, per_prompt: int, labeler: Labeler) -> list[dict[str, Any]]:
        """Return labelled pairs (see `preference_row`) for the prompts of the split, shuffled."""
        rng = self._rng(f"preferences:{split}")
        rows = [preference_row(prompt, labeler, rng) for prompt in self._prompts(split) * per_prompt]
        rng.shuffle(rows)
        return rows

    def rankings(self, split: str, n_answers: int, per_prompt: int, labeler: Labeler) -> list[dict[str, Any]]:
        """Return ranked lists of `n_answers` (see `ranked_row`) for the prompts of the split, shuffled."""
        rng = self._rng(f"rankings:{split}")
        rows = [ranked_row(prompt, n_answers, labeler, rng) for prompt in self._prompts(split) * per_prompt]
        rng.shuffle(rows)
        return rows

    def _prompts(self, split: str) -> tuple[Prompt, ...]:
        return {"train": self.train, "test": self.test}[split]

    def _rng(self, purpose: str) -> random.Random:
        return random.Random(f"{purpose}:{self.seed}")


def build_world(seed: int = 0, n_train_prompts: int = 1100, n_test_prompts: int = 200) -> World:
    """Return the world of a seed.

    Raises:
        UserError: more prompts are requested than the world has.
    """
    train, test = split_prompts(n_train_prompts, n_test_prompts, random.Random(f"prompts:{seed}"))
    return World(seed, tuple(train), tuple(test))
