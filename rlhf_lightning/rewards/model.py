"""A trained reward model as a reward."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rlhf_lightning.data import tokenize_completions
from rlhf_lightning.errors import UserError
from rlhf_lightning.models import (
    RewardModel,
    ScoreMoments,
    SharedRewardModel,
    freeze,
    load_scorer,
    load_tokenizer,
    run_model_folder,
    score_moments,
)
from rlhf_lightning.models.adapters import base_name, base_of, has_adapter, is_adapter_folder
from rlhf_lightning.rewards.function import check_scores


class ModelReward:
    """Score text with a reward model, through the model's own tokenizer.

    Responses are tokenised again from their text by the function that prepared the reward model's training data, so it
    sees what it saw in training whichever tokenizer the policy has. A response that was cut off gets no EOS.

    Args:
        path: a run folder, a Hugging Face folder or a hub name.
        batch_size: responses scored at a time.
        standardize: return (score - mean) / std, with the moments of the scores of held-out answers that the model
            carries: the unit is then one standard deviation, whatever model it is.

    Raises:
        UserError: `standardize` of a model without moments, or one that gave all held-out answers the same score.
    """

    def __init__(self, path: str | Path, batch_size: int = 32, standardize: bool = False) -> None:
        self.name = "model"
        self.folder = run_model_folder(path)
        self.tokenizer = load_tokenizer(path)
        self.batch_size = batch_size
        self.moments = _moments_of(path) if standardize else ScoreMoments(0.0, 1.0)

    @cached_property
    def model(self) -> RewardModel | SharedRewardModel:
        """The network, loaded when it is first needed, unless `share_backbone` found it in the policy's base."""
        return freeze(load_scorer(self.folder))  # type: ignore[return-value]

    def share_backbone(self, policy: nn.Module) -> None:
        """Score with an adapter on the policy's own base, if that is what this reward model is."""
        if has_adapter(policy) and is_adapter_folder(self.folder) and base_of(self.folder) == base_name(policy):
            self.model = SharedRewardModel(policy, self.folder)

    def to(self, device: torch.device | str) -> ModelReward:
        """Move the network; PPO calls it with the policy's device."""
        if isinstance(self.model, nn.Module):
            self.model.to(device)
        return self

    @torch.no_grad()
    def __call__(self, prompts: list[str], responses: list[str], **columns: Any) -> list[float]:
        """Scores of the responses; `columns` may carry `messages` (conversational prompts) and `ended`."""
        sources = columns.get("messages", prompts)
        ended = columns.get("ended", [True] * len(responses))
        texts = [prompts[i] if source is None else source for i, source in enumerate(sources)]
        rows = [prompt + ids for prompt, ids in tokenize_completions(self.tokenizer, texts, responses, ended)]
        scores = torch.empty(len(rows), dtype=torch.float32)
        by_length = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        for start in range(0, len(rows), self.batch_size):
            picked = by_length[start : start + self.batch_size]
            scores[picked] = self._score([rows[i] for i in picked])
        scores = (scores - self.moments.mean) / self.moments.std
        return check_scores(scores.tolist(), len(responses), self.name)

    def _score(self, rows: list[list[int]]) -> torch.Tensor:
        device = self.model.device
        length = max(map(len, rows))
        ids = torch.tensor([row + [0] * (length - len(row)) for row in rows], device=device)
        mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows], device=device)
        return self.model(ids, mask).cpu()


def _moments_of(path: str | Path) -> ScoreMoments:
    moments = score_moments(path)
    if moments is None:
        raise UserError(
            f"reward.standardize=true: {path} carries no score_mean and score_std; train it with held-out pairs "
            "(data.val or data.val_fraction), or set reward.standardize=false"
        )
    if moments.std == 0:
        raise UserError(f"reward.standardize=true: {path} gave all held-out answers the same score (score_std is 0)")
    return moments
