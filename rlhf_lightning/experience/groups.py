"""How the responses to one prompt differ: what a group baseline learns from."""

from __future__ import annotations

from torch import Tensor

from rlhf_lightning.training.recording import Statistics


def group_statistics(scores: Tensor, group_size: int) -> Statistics:
    """Return what is logged of groups of responses, as name: (mean, number of groups); docs/metrics.md defines them.

    Args:
        scores: [B], as the reward gave them, the responses to a prompt side by side.
        group_size: responses per prompt; one has nothing to differ from, so nothing is returned.
    """
    if group_size == 1:
        return {}
    groups = scores.view(-1, group_size)
    differ = groups.amax(dim=1) != groups.amin(dim=1)
    return {
        "rollout/group_spread": (differ.float().mean(), len(groups)),
        "rollout/group_std": (groups.std(dim=1).masked_fill(~differ, 0.0).mean(), len(groups)),
    }
