"""What the annotations of Lightning's, torch's and transformers' constructors leave open.

These are ranges, choices, and the arguments that are not for configs.
"""

from __future__ import annotations

from functools import reduce
from operator import or_
from typing import Annotated, Any, Literal

from pydantic import Field

from rlhf_lightning.value_types import (
    BelowOne,
    Count,
    Fraction,
    Limited,
    Mapping,
    NonNegative,
    Number,
    Section,
    Text,
    Whole,
)

NOT_A_SETTING = object()  # the commands give it, or nothing would read it

Limit = Count | Fraction | None
Betas = Annotated[list[BelowOne], Field(min_length=2, max_length=2)]
Switch = bool | None
Duration = Annotated[str, Field(pattern=r"^\d{1,6}:\d\d:\d\d:\d\d$", description="like DD:HH:MM:SS")]
TimeDelta = dict[Literal["weeks", "days", "hours", "minutes", "seconds"], Annotated[float, Field(ge=0, le=1e6)]]
# Lightning's registry, which is only filled when it is imported; a test compares the two.
Strategy = Literal[
    "auto",
    "ddp",
    "ddp_find_unused_parameters_false",
    "ddp_find_unused_parameters_true",
    "ddp_fork",
    "ddp_fork_find_unused_parameters_false",
    "ddp_fork_find_unused_parameters_true",
    "ddp_notebook",
    "ddp_notebook_find_unused_parameters_false",
    "ddp_notebook_find_unused_parameters_true",
    "ddp_spawn",
    "ddp_spawn_find_unused_parameters_false",
    "ddp_spawn_find_unused_parameters_true",
    "deepspeed",
    "deepspeed_stage_1",
    "deepspeed_stage_2",
    "deepspeed_stage_2_offload",
    "deepspeed_stage_3",
    "deepspeed_stage_3_offload",
    "deepspeed_stage_3_offload_nvme",
    "fsdp",
    "fsdp_cpu_offload",
    "single_device",
    "single_tpu",
    "single_xla",
    "xla",
    "xla_debug",
]

# Sections of this package's algorithms: null would mean their defaults, not leaving them out.
NEVER_NULL = {"kl", "shaping", "ptx"}

# What the commands supply if a config does not.
MAY_BE_LEFT_OUT = {"dirpath"}

# Constructors that pass further arguments to another class.
HANDS_ON = {"lightning.pytorch.strategies.ddp.DDPStrategy": "torch.nn.parallel.DistributedDataParallel"}

# Prefix of a module's name -> argument -> its type.
_TYPES: dict[str, dict[str, Any]] = {
    "rlhf_lightning.algorithms.": {"engine": NOT_A_SETTING},
    "rlhf_lightning.data.": {"train": Text, "val": Text | None},  # in Python they may also be lists of rows
    "rlhf_lightning.callbacks.mlflow_logger": dict.fromkeys(("notice", "parent", "store"), NOT_A_SETTING),
    "lightning.pytorch.trainer.": {
        **dict.fromkeys(("logger", "callbacks", "default_root_dir", "use_distributed_sampler"), NOT_A_SETTING),
        **dict.fromkeys(("enable_model_summary", "limit_test_batches", "limit_predict_batches"), NOT_A_SETTING),
        **dict.fromkeys(("barebones", "model_registry", "enable_autolog_hparams"), NOT_A_SETTING),
        "accelerator": Literal["auto", "cpu", "gpu", "cuda", "mps", "tpu"],
        "devices": Count | Literal["auto"] | list[Whole],
        "num_nodes": Count,
        "strategy": Strategy | Section,
        "precision": Literal["32-true", "bf16-mixed", "bf16-true", "16-mixed", "64-true"],
        "max_epochs": Limited,
        "min_epochs": Count | None,
        "max_steps": Limited,
        "min_steps": Count | None,
        "max_time": Duration | TimeDelta | None,
        "accumulate_grad_batches": Count,
        "gradient_clip_val": NonNegative | None,
        "gradient_clip_algorithm": Literal["norm", "value"] | None,
        "val_check_interval": Limit,
        "check_val_every_n_epoch": Count | None,
        "num_sanity_val_steps": Limited,
        "limit_train_batches": Limit,
        "limit_val_batches": Whole | Fraction | None,
        "overfit_batches": Whole | Fraction,
        "fast_dev_run": bool | Count,
        "log_every_n_steps": Count,
        "deterministic": bool | Literal["warn"],
        "inference_mode": bool,
        "profiler": Literal["simple", "advanced", "pytorch"] | None,
        "plugins": Any,
        "reload_dataloaders_every_n_epochs": Whole,
    },
    "lightning.pytorch.callbacks.": {
        **dict.fromkeys(("dirpath", "filename", "monitor"), Text | None),
        "save_top_k": Limited,
        "mode": Literal["min", "max"],
        **dict.fromkeys(("every_n_train_steps", "every_n_epochs"), Whole | None),
        "patience": Count,
        "min_delta": Number,
    },
    "lightning.pytorch.loggers.": {
        **dict.fromkeys(("experiment_name", "tracking_uri"), Text),
        **dict.fromkeys(("run_name", "save_dir", "artifact_location", "run_id"), Text | None),
        "log_model": bool | Literal["all"],
        "tags": Mapping | None,
    },
    "lightning.pytorch.strategies.ddp": {"process_group_backend": Literal["nccl", "gloo", "mpi"] | None},
    "lightning.pytorch.strategies.deepspeed": {
        "stage": Literal[1, 2, 3],
        "offload_params_device": Literal["cpu", "nvme"],
        **dict.fromkeys(("allgather_bucket_size", "reduce_bucket_size"), Count),
    },
    "torch.nn.parallel.distributed": {
        **dict.fromkeys(("module", "device_ids", "output_device", "dim", "process_group"), NOT_A_SETTING),
        **dict.fromkeys(("check_reduction", "delay_all_reduce_named_params"), NOT_A_SETTING),
        **dict.fromkeys(("param_to_hook_all_reduce", "mixed_precision", "device_mesh"), NOT_A_SETTING),
        **dict.fromkeys(("gradient_as_bucket_view", "static_graph", "find_unused_parameters"), bool),
        **dict.fromkeys(("broadcast_buffers", "init_sync", "skip_all_reduce_unused_params"), bool),
        "bucket_cap_mb": Count,
    },
    "torch.optim.": {
        **dict.fromkeys(("lr", "eps", "weight_decay", "momentum", "eta_min", "lr_decay"), NonNegative),
        "dampening": Number,
        "betas": Betas,
        "last_epoch": Limited,
        "T_max": Count,
    },
    "transformers.optimization": {
        "num_warmup_steps": Whole,
        "num_cycles": NonNegative,
        "last_epoch": Limited,
    },
}


def types_of(module: str) -> dict[str, Any]:
    """Return argument -> type, for the constructors of this module."""
    return reduce(or_, (table for start, table in _TYPES.items() if module.startswith(start)), {})
