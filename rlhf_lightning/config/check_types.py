"""Weight dtypes and precisions that are incompatible with each other, or with a strategy or device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rlhf_lightning.errors import UserError

if TYPE_CHECKING:
    from lightning import Trainer

# Precisions supported by Lightning's strategies that shard weights; all other strategies support every precision.
_PRECISIONS = {
    "FullySharded": ("32-true", "bf16-mixed", "bf16-true"),
    "ModelParallelStrategy": ("32-true", "bf16-mixed", "bf16-true"),
    "DeepSpeedStrategy": ("32-true", "16-mixed", "bf16-mixed", "bf16-true"),
}


def check_types(config: Mapping[str, Any]) -> None:
    """Raise UserError if model.dtype, trainer.precision and trainer.strategy of a training config are incompatible."""
    trainer, model = config["trainer"], config["model"]
    precision, strategy = trainer.get("precision", "32-true"), trainer.get("strategy")
    name = str(strategy.get("_target_", "")).rpartition(".")[2] if isinstance(strategy, Mapping) else ""
    if precision not in _PRECISIONS.get(name, (precision,)):
        raise UserError(
            f"trainer.precision: found {precision}; allowed with {name}: {' | '.join(_PRECISIONS[name])}; or choose "
            "trainer=ddp"
        )
    if precision == "16-mixed" and trainer.get("accelerator") == "cpu":
        raise UserError(_NEEDS_A_GPU)
    if model.get("dtype") == "float16" and not (model.get("adapter") and precision == "16-mixed"):
        raise UserError(
            f"model.dtype: found float16 with trainer.precision={precision}; float16 weights are for an adapter "
            "(model/adapter=lora) under trainer.precision=16-mixed; otherwise choose model.dtype=float32 or bfloat16"
        )


_NEEDS_A_GPU = (
    "trainer.precision: found 16-mixed, but float16 products need a GPU; choose trainer.precision=bf16-mixed or 32-true"
)


def check_trainer(config: Mapping[str, Any], trainer: Trainer) -> None:
    """Raise UserError if Lightning computes in another precision than the config says: on a CPU it falls back."""
    if config["trainer"].get("precision") == "16-mixed" != trainer.precision:
        raise UserError(_NEEDS_A_GPU)
