"""How the responses to one prompt differ: the signal for a group baseline."""

from __future__ import annotations

from torch import Tensor

from rlhf_lightning.training.recording import Statistics


def group_statistics(scores: Tensor, group_size: int) -> Statistics:
    """Return the metrics of groups of responses, as name: (mean, number of groups); docs/metrics.md defines them.

    Args:
        scores: [B], unshaped, with the responses to a prompt adjacent.
        group_size: responses per prompt; a single one has nothing to differ from, so nothing is returned.
    """
    if group_size == 1:
        return {}
    groups = scores.view(-1, group_size)
    differ = groups.amax(dim=1) != groups.amin(dim=1)
    return {
        "rollout/group_spread": (differ.float().mean(), len(groups)),
        "rollout/group_std": (groups.std(dim=1).masked_fill(~differ, 0.0).mean(), len(groups)),
    }
