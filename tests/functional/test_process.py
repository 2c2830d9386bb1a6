from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from rlhf_lightning.functional import aggregate_steps, process_reward_loss


def test_the_loss_is_the_mean_cross_entropy_of_the_steps_that_count() -> None:
    logits = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([1, 0, -100, 1, -100, 0])
    torch.testing.assert_close(process_reward_loss(logits, labels), F.cross_entropy(logits, labels))
    torch.testing.assert_close(
        process_reward_loss(logits, labels, denominator=8.0), F.cross_entropy(logits, labels, reduction="sum") / 8
    )


def test_steps_that_do_not_count_are_never_read() -> None:
    logits = torch.tensor([[0.0, 1.0], [float("nan"), float("inf")]], requires_grad=True)
    loss = process_reward_loss(logits, torch.tensor([1, -100]))
    loss.backward()
    assert loss.isfinite() and logits.grad is not None and logits.grad.isfinite().all()
    assert process_reward_loss(logits, torch.tensor([-100, -100])) == 0


def test_half_precision_is_computed_in_float32() -> None:
    logits = torch.tensor([[100.0, 0.0]], dtype=torch.bfloat16)
    loss = process_reward_loss(logits, torch.tensor([1]))
    assert loss.dtype == torch.float32 and float(loss) == 100.0


@pytest.mark.parametrize("bad", [torch.zeros(3), torch.zeros(3, 3), torch.zeros(2, 2)])
def test_other_shapes_are_refused(bad: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="has shape"):
        process_reward_loss(bad, torch.tensor([1, 0, 1]))


def test_a_response_is_as_good_as_its_worst_step_the_product_or_the_last() -> None:
    scores = torch.tensor([[0.9, 0.2, 0.8], [0.5, float("nan"), float("nan")], [float("nan")] * 3])
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [0, 0, 0]])
    for how, wanted in {"min": [0.2, 0.5, 0.0], "product": [0.144, 0.5, 0.0], "last": [0.8, 0.5, 0.0]}.items():
        assert aggregate_steps(scores, mask, how).tolist() == pytest.approx(wanted)
    with pytest.raises(ValueError, match="`aggregation` is 'sum'"):
        aggregate_steps(scores, mask, "sum")


def test_one_more_step_never_raises_the_minimum_or_the_product() -> None:
    scores = torch.rand(50, 6, generator=torch.Generator().manual_seed(1))
    for how in ("min", "product"):
        found = [aggregate_steps(scores, (torch.arange(6) < n).expand(50, 6), how) for n in range(1, 7)]
        assert all(bool((later <= earlier).all()) for earlier, later in pairwise(found))
