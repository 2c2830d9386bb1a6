from __future__ import annotations

import torch

from rlhf_lightning.evaluation import response_kl


def test_the_sum_of_log_ratios_over_valid_tokens():
    logprobs, ref_logprobs = torch.tensor([[-1.0, -2.0], [-0.5, 7.0]]), torch.tensor([[-2.0, -1.5], [-1.0, -9.0]])
    mask = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    assert response_kl(logprobs, ref_logprobs, mask).tolist() == [0.5, 0.5]


def test_what_stands_on_padding_is_never_read():
    mask = torch.tensor([[1.0, 0.0]])
    assert response_kl(torch.tensor([[-1.0, float("nan")]]), torch.tensor([[-1.5, 0.0]]), mask).tolist() == [0.5]
