"""Several reward models as one, which is harder to deceive than each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from rlhf_lightning.errors import UserError
from rlhf_lightning.rewards.protocol import Reward
from rlhf_lightning.rewards.scores import check_scores
from rlhf_lightning.value_types import Kernels

Combine: TypeAlias = Literal["mean", "min", "mean_minus_std"]


class Ensemble(Reward):
    """Combines the scores of n reward models (Coste et al. 2023, arXiv:2310.02743, section 3).

        mean: 1/n sum_i r_i        min: min_i r_i        mean_minus_std: 1/n sum_i r_i - k std_i r_i

    The standard deviation is that of the n members (n in the denominator); the paper subtracts a multiple of the
    variance. It is also what is logged as `reward/disagreement`.

    Args:
        members: the reward models. Their scores must have one unit: standardise them.
        combine: how scores are combined.
        std_coef: k, of `mean_minus_std`.
        key: the key that errors begin with.

    Raises:
        UserError: fewer than two members.
    """

    reads_tokens = True

    def __init__(
        self, members: Sequence[Reward], combine: Combine = "mean", std_coef: float = 1.0, key: str = "reward.models"
    ) -> None:
        if len(members) < 2:
            raise UserError(f"{key}: found {len(members)} of at least 2 members; for one model use reward.model")
        self.name, self.key = f"{combine} of {len(members)} models", key
        self.members, self.combine, self.std_coef = list(members), combine, std_coef
        self.figures: Mapping[str, list[float]] = {}

    def __call__(self, prompts: list[str], responses: list[str], **columns: Any) -> list[float]:
        """Return the combined scores."""
        found = [
            check_scores(member(prompts, responses, **columns), len(responses), member.name, member.key or self.key)
            for member in self.members
        ]
        scores = torch.tensor(found, dtype=torch.float64)
        self.figures = {"disagreement": scores.std(dim=0, correction=0).tolist()}
        return combined(scores, self.combine, self.std_coef).tolist()

    def origin(self) -> dict[str, str]:
        """Return the marks of every member, and how they are combined, which a resumed run must find unchanged."""
        marks = {key: mark for member in self.members for key, mark in member.origin().items()}
        return marks | {f"{self.key}.combine": f"{self.combine} {self.std_coef!r} {len(self.members)}"}

    def to(self, device: torch.device | str) -> Ensemble:
        """Move every member's network."""
        for member in self.members:
            member.to(device)
        return self

    def use_kernels(self, kernels: Kernels) -> None:
        """Let the members' networks compute with these kernels, as far as they fit."""
        for member in self.members:
            member.use_kernels(kernels)

    def share_backbone(self, policy: nn.Module) -> None:
        """Let every member that is an adapter on the policy's base use that base."""
        for member in self.members:
            member.share_backbone(policy)

    def check_length(self, max_new_tokens: int) -> None:
        """Raise UserError if a member cannot read a response of this many tokens."""
        for member in self.members:
            member.check_length(max_new_tokens)


def combined(scores: Tensor, combine: Combine, std_coef: float) -> Tensor:
    """Return one score per response [B] from those of n members [n, B]."""
    if combine == "min":
        return scores.amin(dim=0)
    mean = scores.mean(dim=0)
    return mean - std_coef * scores.std(dim=0, correction=0) if combine == "mean_minus_std" else mean
