import torch

from rlhf_lightning.training.weighted_mean import WeightedMean


def test_the_mean_is_over_items_and_not_over_batches() -> None:
    mean = WeightedMean()
    mean.update(torch.tensor(1.0), 3)
    mean.update(5.0, torch.tensor(1.0))
    mean.update(float("nan"), 0)
    assert mean.compute() == 2.0


def test_nan_stays_visible() -> None:
    mean = WeightedMean()
    mean.update(float("nan"), 2)
    assert mean.compute().isnan()
