"""How far a policy has moved from the reference, measured on its own samples."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_lightning.functional import kl_estimate


def response_kl(logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor) -> Tensor:
    """Return the KL estimate of each response in nats: the sum over response tokens of log pi - log pi_ref (k1).

    Its mean over responses sampled from pi is an unbiased estimate of KL(pi || pi_ref); single values may be negative.

    Shapes: all [B, T] -> [B]. `mask` is 1 on response tokens, including EOS.

    >>> logprobs, ref_logprobs = torch.tensor([[-1.0, -2.0, 9.0]]), torch.tensor([[-2.0, -2.5, 0.0]])
    >>> response_kl(logprobs, ref_logprobs, mask=torch.tensor([[1.0, 1.0, 0.0]]))
    tensor([1.5000])
    """
    estimate = kl_estimate(logprobs.float(), ref_logprobs.float(), kind="k1")
    return torch.where(mask > 0, estimate, torch.zeros_like(estimate)).sum(-1)
