"""Incompatible dtypes, precisions and strategies are refused before anything is loaded."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from rlhf_lightning.config.check_types import check_trainer, check_types
from rlhf_lightning.errors import UserError

FSDP2 = {"_target_": "rlhf_lightning.algorithms.FullySharded"}
DEEPSPEED = {"_target_": "lightning.pytorch.strategies.DeepSpeedStrategy", "stage": 2}


@pytest.mark.parametrize(
    ("trainer", "model", "message"),
    [
        (
            {"precision": "64-true", "strategy": FSDP2},
            {},
            "trainer.precision: found 64-true; allowed with FullySharded",
        ),
        ({"precision": "16-mixed", "strategy": FSDP2}, {}, "32-true . bf16-mixed . bf16-true"),
        ({"precision": "64-true", "strategy": DEEPSPEED}, {}, "allowed with DeepSpeedStrategy"),
        ({"precision": "16-mixed", "accelerator": "cpu"}, {}, "float16 products need a GPU"),
        ({}, {"dtype": "float16"}, "model.dtype: found float16 with trainer.precision=32-true"),
        ({"precision": "16-mixed"}, {"dtype": "float16"}, "model.dtype: found float16"),
        ({"precision": "bf16-true"}, {"dtype": "float16", "adapter": {"rank": 4}}, "model.dtype: found float16"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(trainer: Any, model: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as refusal:
        check_types({"trainer": trainer, "model": model})
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("trainer", "model"),
    [
        ({}, {}),
        ({"precision": "bf16-mixed", "strategy": FSDP2}, {"dtype": "float32"}),
        ({"precision": "64-true", "strategy": "ddp"}, {}),
        ({"precision": "16-mixed"}, {"dtype": "float16", "adapter": {"rank": 4}}),
    ],
)
def test_what_fits_passes(trainer: Any, model: Any) -> None:
    check_types({"trainer": trainer, "model": model})


def test_a_precision_that_lightning_replaces_is_refused() -> None:
    config = {"trainer": {"precision": "16-mixed"}}
    check_trainer(config, SimpleNamespace(precision="16-mixed"))
    with pytest.raises(UserError, match="float16 products need a GPU"):
        check_trainer(config, SimpleNamespace(precision="bf16-mixed"))
