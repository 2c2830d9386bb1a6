from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

from rlhf_lightning.rollout.isolation import isolated


def spoil() -> None:
    """Do what an engine does that believes it is alone."""
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    torch.set_default_dtype(torch.bfloat16)
    torch.set_num_threads(1 + torch.get_num_threads() % 2)
    torch.set_num_threads = lambda count: None


def draws() -> list[Any]:
    return [torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()]


@pytest.mark.parametrize("fails", [False, True])
def test_what_is_drawn_afterwards_does_not_depend_on_what_happened_inside(fails: bool) -> None:
    seeds = (torch.manual_seed, np.random.seed, random.seed)
    for seed in seeds:
        seed(7)
    want = draws()
    for seed in seeds:
        seed(7)
    setter, threads = torch.set_num_threads, torch.get_num_threads()
    try:
        with isolated():
            spoil()
            if fails:
                raise RuntimeError
    except RuntimeError:
        pass
    assert draws() == want
    assert torch.get_default_dtype() == torch.float32
    assert (torch.set_num_threads, torch.get_num_threads()) == (setter, threads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_trainers_precision_does_not_reach_inside_and_is_back_afterwards(dtype: torch.dtype) -> None:
    product = torch.ones(2, 2)
    torch.set_default_dtype(dtype)
    try:
        with torch.autocast("cpu", torch.bfloat16):
            with isolated():
                assert torch.ones(1).dtype == torch.float32
                assert (product @ product).dtype == torch.float32
            assert torch.get_default_dtype() == dtype
            assert (product @ product).dtype == torch.bfloat16
    finally:
        torch.set_default_dtype(torch.float32)
