from __future__ import annotations

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from rlhf_lightning.planning.live_bytes import Alive, LiveBytes

KIB = 1024


def test_bytes_are_counted_while_a_tensor_lives_and_not_afterwards():
    with LiveBytes(vocab_size=7) as live:
        x = torch.zeros(KIB)
        y = x + 1
        assert sum(live.now) == 8 * KIB
        del x
        assert sum(live.now) == 4 * KIB
        del y
    assert (sum(live.now), sum(live.peak)) == (0, 8 * KIB)


def test_views_and_tensors_from_outside_cost_nothing():
    outside = torch.zeros(KIB)
    with LiveBytes(vocab_size=7) as live:
        view = outside.view(2, -1).t()
        outside.add_(1)
        again = (outside + 1).view(2, -1)
    assert view.shape == (KIB // 2, 2)
    assert sum(live.now) == again.numel() * 4


def test_what_autograd_saves_is_alive_until_the_backward_pass():
    weight = torch.zeros(KIB, requires_grad=True)
    with LiveBytes(vocab_size=7) as live:
        loss = (weight.exp() * 3).sum()  # exp keeps its result
        assert sum(live.now) == 4 * KIB + 4
        loss.backward()
        del loss
        assert sum(live.now) == 4 * KIB  # the gradient
        weight.grad = None
    assert sum(live.now) == 0


def test_logits_are_told_by_their_last_dimension():
    with LiveBytes(vocab_size=7) as live:
        logits, hidden = torch.zeros(3, 7), torch.zeros(3, 5)
    assert live.now == Alive(logits=logits.numel() * 4, others=hidden.numel() * 4)


def test_a_mark_ends_a_part_and_its_peak():
    with LiveBytes(vocab_size=7) as live:
        torch.zeros(KIB)
        live.mark("first")
        kept = torch.zeros(2)
        live.mark("second")
    assert live.marks == [("first", Alive(0, 4 * KIB)), ("second", Alive(0, kept.numel() * 4))]


def test_fake_tensors_count_as_the_real_ones_do():
    def peak() -> Alive:
        with LiveBytes(vocab_size=7) as live:
            weight = torch.zeros(16, 16, requires_grad=True)
            (torch.zeros(8, 16) @ weight).relu().softmax(-1).sum().backward()
        return live.peak

    real = peak()
    with FakeTensorMode():
        assert peak() == real
