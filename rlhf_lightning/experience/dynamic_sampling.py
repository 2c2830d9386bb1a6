"""Dynamic sampling (Yu et al. 2025, section 3.2): groups that are all right or all wrong are sampled again.

Such a group teaches a group baseline nothing. What is right is judged by an accuracy, not by the shaped score, in which
penalties differ between responses that are all right.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_lightning.errors import UserError
from rlhf_lightning.experience.sampled import Sampled, joined
from rlhf_lightning.rollout import endless_order
from rlhf_lightning.rollout.groups import rows_of_groups
from rlhf_lightning.setting_rules import check_accuracy
from rlhf_lightning.training.recording import Statistics

log = logging.getLogger(__name__)


@dataclass
class DynamicSampling:
    """Samples further prompts until every place of the batch has a group of both right and wrong responses.

    Args:
        accuracy: what judges a response: a part of the reward by its name, or `score`, the reward's own score, even if
            a part has that name.
        threshold: a response is right if that is at least this.
        max_tries: how often prompts are sampled at most, the first time included.
        group_size: responses per prompt.
    """

    accuracy: str
    threshold: float
    max_tries: int
    group_size: int
    warned: bool = False

    def __call__(
        self, ask: Callable[[int, int, int], Sampled], most: Callable[[int], int], groups: int
    ) -> tuple[Sampled, Statistics]:
        """Return the responses of `groups` prompts, and the statistics of sampling them.

        Every try asks for the number of prompts that the process with the fewest groups lacks, so that all processes
        take part in all tries. Places that are still empty after the last try get groups that do not teach: their
        responses are not learned from.

        Args:
            ask: (try, prompts asked for so far beyond the first try's, prompts) -> their responses.
            most: returns the largest of a number over all processes.
            groups: places of this process.
        """
        pieces, mixed, right = [], [], []
        further, missing = 0, groups
        for attempt in range(self.max_tries):
            pieces.append(ask(attempt, further, missing))
            further += missing if attempt else 0
            correct = self.correct(pieces[-1]).view(-1, self.group_size)
            mixed.append(correct.any(dim=1) & ~correct.all(dim=1))
            right.append(correct.float().mean())
            missing = most(groups - int(torch.cat(mixed).sum()))
            if missing <= 0:
                break
        teaches = torch.cat(mixed)
        chosen = torch.cat([teaches.nonzero(), (~teaches).nonzero()]).flatten()[:groups]
        learned = teaches[chosen].float().repeat_interleave(self.group_size)
        unfilled = 1 - teaches[chosen].float().mean()
        if missing > 0 and not self.warned:
            self.warned = True
            log.warning(
                f"algorithm.max_tries: after {self.max_tries} tries {float(unfilled):.0%} of the groups are still all "
                "right or all wrong; they are not learned from (rollout/unfilled). Give prompts that the policy "
                "sometimes answers right, raise rollout.samples_per_prompt or algorithm.max_tries"
            )
        sizes = torch.tensor([len(each) for each in mixed], dtype=torch.float32, device=teaches.device)
        statistics: Statistics = {
            "rollout/accuracy": ((torch.stack(right) * sizes).sum() / sizes.sum(), sizes.sum()),
            "rollout/kept": (teaches.float().mean(), sizes.sum()),
            "rollout/resampled": (further / groups, groups),
            "rollout/unfilled": (unfilled, groups),
        }
        return joined(pieces, rows_of_groups(chosen, self.group_size), learned), statistics

    def correct(self, sampled: Sampled) -> Tensor:
        """Return whether each response is right, [B].

        Raises:
            UserError: the reward has no part of that name, or it does not apply to a response.
        """
        check_accuracy(self.accuracy, self.group_size, [*sampled.parts], False)
        part = None if self.accuracy == "score" else sampled.parts.get(self.accuracy)
        if part is None:
            return sampled.scores >= self.threshold
        if None in part:
            raise UserError(
                f"algorithm.accuracy: found {self.accuracy}, which returned None for {list(part).count(None)} of "
                f"{len(part)} responses; return a number for each, or choose score"
            )
        found = torch.tensor(part, device=sampled.scores.device)
        return found >= self.threshold


def further_rows(rows: int, first: list[int], start: int, count: int, *key: int | str) -> list[int]:
    """Return the rows that are asked next, `count` from the position `start` of an order that is a function of `key`.

    Rows that the first try has asked come only if there are no others.
    """
    asked = set(first)
    others = [i for i in range(rows) if i not in asked] or list(range(rows))
    return [others[i] for i in endless_order(len(others), start, count, "further prompts", *key)]
