"""A checkpoint's random states on a machine with another number of GPUs."""

from __future__ import annotations

import logging

import pytest
import torch

from rlhf_lightning.callbacks.resume import restore_cuda

STATES = [torch.tensor([i], dtype=torch.uint8) for i in range(3)]


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
    """Pretend two GPUs, with the process on the second; return what their states were set to."""
    restored: dict[int, int] = {}

    def set_state(state: torch.Tensor, device: int) -> None:
        if device >= 2:
            raise RuntimeError("CUDA error: invalid device ordinal")
        restored[device] = int(state)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_rng_state", set_state)
    return restored


def test_states_of_more_gpus_than_are_visible(gpus: dict[int, int]) -> None:
    restore_cuda(STATES, own=1)
    assert gpus == {0: 0, 1: 1}


def test_the_state_that_the_process_drew_from_goes_where_it_draws_now(gpus: dict[int, int]) -> None:
    restore_cuda(STATES, own=2)
    assert gpus == {0: 0, 1: 2}


def test_states_of_fewer_gpus_than_are_visible(gpus: dict[int, int]) -> None:
    restore_cuda(STATES[:1], own=0)
    assert gpus == {0: 0, 1: 0}


def test_another_kind_of_device_is_said_in_one_line(
    gpus: dict[int, int], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with caplog.at_level(logging.WARNING):
        restore_cuda([], own=0)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        restore_cuda(STATES, own=0)
        restore_cuda([], own=0)
    assert gpus == {}
    assert [record.message.partition(":")[2][:29] for record in caplog.records] == [
        " saved on a CPU, resumed on a",
        " saved on a GPU, resumed on a",
    ]
