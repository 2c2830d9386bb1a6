from __future__ import annotations

import math
import random

import pytest
import torch

from rlhf_lightning.evaluation import expected_calibration_error, reliability_curve
from rlhf_lightning.functional import calibration_error


def test_margins_that_mean_their_probability_are_calibrated():
    rng = random.Random(0)
    claimed = [rng.gauss(0, 2) for _ in range(20000)]
    margins = [m if rng.random() < 1 / (1 + math.exp(-m)) else -m for m in claimed]  # the better one comes first
    assert expected_calibration_error(margins) < 0.01
    assert expected_calibration_error([3 * m for m in margins]) > 0.1


def test_the_error_is_the_one_training_logs():
    margins = [random.Random(i).gauss(0.5, 1) for i in range(200)]
    tensor = torch.tensor(margins, dtype=torch.float64)
    expected = calibration_error(torch.sigmoid(tensor.abs()), tensor > 0)
    assert expected_calibration_error(margins) == pytest.approx(float(expected), abs=1e-9)


def test_a_bin_by_hand():
    curve = reliability_curve([math.log(4)] * 3 + [-math.log(4)] + [0.0])
    assert curve.confidence == pytest.approx([0.5, 0.8])
    assert curve.accuracy == [0.5, 0.75]
    assert curve.count == [1, 4]


def test_extreme_margins_and_no_margins():
    assert expected_calibration_error([1e6]) == pytest.approx(0.0)
    with pytest.raises(ValueError, match="at least one pair"):
        expected_calibration_error([])
