"""Each part of a weighted reward in its own unit: normalised by its own running moments before it is weighted."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from rlhf_lightning.experience.reward_shaping import RunningMoments
from rlhf_lightning.experience.token_scores import placed
from rlhf_lightning.rewards import Scores, totals


class PartMoments:
    """The running moments of each part, over all responses so far on all processes."""

    def __init__(self) -> None:
        self.of: dict[str, RunningMoments] = {}

    def combine(
        self,
        parts: Mapping[str, tuple[float, Scores]],
        mask: Tensor,
        everywhere: Callable[[Tensor], Tensor],
    ) -> tuple[Tensor, Tensor | None]:
        """Return the sum over parts of weight * (score - mean) / std, after the moments have seen these responses.

        Args:
            parts: weight and unnormalised scores of each part.
            mask: [B, T], nonzero on valid response tokens.
            everywhere: returns the scores of all processes.

        Returns:
            The sums [B], and the share of them that belongs to certain tokens [B, T]; None if no part has numbers per
            token. Means are subtracted at the last token.
        """
        scores = mask.new_zeros(len(mask), dtype=torch.float32)
        tokens: Tensor | None = None
        for name, (weight, result) in parts.items():
            found = torch.tensor(totals(result), dtype=torch.float32, device=mask.device)
            moments = self.of.setdefault(name, RunningMoments())
            moments.update(everywhere(found).flatten())
            scores = scores + weight * (found - moments.mean) / moments.std
            own = placed(result, mask)
            if own is not None:
                own = weight / moments.std * own
                tokens = own if tokens is None else tokens + own
        return scores, tokens

    def state_dict(self) -> dict[str, float]:
        return {f"{name}/{key}": x for name, moments in self.of.items() for key, x in moments.state_dict().items()}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.of = {}
        for name in dict.fromkeys(key.rpartition("/")[0] for key in state):
            self.of[name] = RunningMoments()
            self.of[name].load_state_dict({key: state[f"{name}/{key}"] for key in ("count", "mean", "m2")})
