"""Updates too small for the dtype of the weights: adding them changes nothing."""

from __future__ import annotations

import logging

import torch
from torch import Tensor
from torch.optim import Optimizer

log = logging.getLogger(__name__)

SAMPLE = 2**16  # numbers of a parameter that are sampled
LEAST = 0.5  # share of the weights that should change


@torch.no_grad()
def share_changed(weight: Tensor, step: float) -> float:
    """Return the share of numbers that change when `step` is added or subtracted, in their dtype.

    A bfloat16 number has 8 significant bits: a step below 1/512 to 1/256 of it is lost.

    >>> share_changed(torch.tensor([1.0, 0.001], dtype=torch.bfloat16), 1e-4)
    0.5
    """
    flat = weight.detach().flatten()
    some = flat[:: max(1, len(flat) // SAMPLE)]
    changed = [(some.float() + signed).to(some.dtype) != some for signed in (step, -step)]
    return float(torch.cat(changed).double().mean())


def warn_of_lost_updates(optimizer: Optimizer) -> None:
    """Warn about a learning rate of 0, and if an update of its size would leave most half-precision weights unchanged.

    That is the size of updates of Adam and its relatives; SGD's depend on the gradients.
    """
    if not any(float(group["lr"]) for group in optimizer.param_groups):
        log.warning("optimizer.lr: found 0, so nothing is learned; give a learning rate above 0")
    counts = [0.0, 0.0]
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if "betas" in group and parameter.is_floating_point() and parameter.dtype.itemsize < 4:
                local = parameter.to_local() if hasattr(parameter, "to_local") else parameter
                if local.numel():
                    counts[0] += share_changed(local, float(group["lr"])) * local.numel()
                    counts[1] += local.numel()
    if counts[1] and counts[0] / counts[1] < LEAST:
        rate = float(optimizer.param_groups[0]["lr"])
        log.warning(
            f"optimizer.lr: an update of {rate:g} changes {counts[0] / counts[1]:.1%} "
            "of the 16-bit weights, the rest are rounded away; train float32 weights (model.dtype=float32 "
            "trainer.precision=bf16-mixed), or an adapter (model/adapter=lora), which stays in float32"
        )
