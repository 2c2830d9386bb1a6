"""The typed schema of the outside classes that the configs name: Lightning's and torch's."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field
from typing_extensions import TypedDict

from rlhf_lightning.commands.schema import strict
from rlhf_lightning.value_types import BelowOne, Count, Fraction, Limited, Mapping, NonNegative, Number, Text, Whole

Limit = Count | Fraction | None
Betas = Annotated[list[BelowOne], Field(min_length=2, max_length=2)]
Switch = bool | None


Duration = Annotated[str, Field(pattern=r"^\d{1,6}:\d\d:\d\d:\d\d$")]  # DD:HH:MM:SS


TimeDelta = dict[Literal["weeks", "days", "hours", "minutes", "seconds"], Annotated[float, Field(ge=0, le=1e6)]]


# Lightning's registry, which only its import fills; a test compares the two.
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


@strict
class Trainer(TypedDict, total=False):
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps", "tpu"]
    devices: Count | Literal["auto"] | list[Whole]
    num_nodes: Count
    strategy: Strategy | Mapping
    precision: Literal["32-true", "bf16-mixed", "bf16-true", "16-mixed", "64-true"]
    max_epochs: Limited
    min_epochs: Count | None
    max_steps: Limited
    min_steps: Count | None
    max_time: Duration | TimeDelta | None
    accumulate_grad_batches: Count
    gradient_clip_val: NonNegative | None
    gradient_clip_algorithm: Literal["norm", "value"] | None
    val_check_interval: Limit
    check_val_every_n_epoch: Count | None
    num_sanity_val_steps: Limited
    limit_train_batches: Limit
    limit_val_batches: Whole | Fraction | None
    overfit_batches: Whole | Fraction
    fast_dev_run: bool | Count
    log_every_n_steps: Count
    enable_checkpointing: Switch
    enable_progress_bar: Switch
    detect_anomaly: bool
    deterministic: bool | Literal["warn"]
    benchmark: Switch
    inference_mode: bool
    profiler: Literal["simple", "advanced", "pytorch"] | None
    plugins: Any
    sync_batchnorm: bool
    reload_dataloaders_every_n_epochs: Whole


@strict
class AdamW(TypedDict, total=False):
    lr: NonNegative
    betas: Betas
    eps: NonNegative
    weight_decay: NonNegative
    amsgrad: bool
    foreach: Switch
    maximize: bool
    capturable: bool
    differentiable: bool
    fused: Switch


@strict
class SGD(TypedDict, total=False):
    lr: NonNegative
    momentum: NonNegative
    dampening: Number
    weight_decay: NonNegative
    nesterov: bool
    maximize: bool
    foreach: Switch
    differentiable: bool
    fused: Switch


@strict
class WarmUp(TypedDict, total=False):
    num_warmup_steps: Whole
    last_epoch: Limited


@strict
class CosineWarmUp(TypedDict, total=False):
    num_warmup_steps: Whole
    num_cycles: NonNegative
    last_epoch: Limited


@strict
class ModelCheckpoint(TypedDict, total=False):
    dirpath: Text | None
    filename: Text | None
    monitor: Text | None
    verbose: bool
    save_last: bool | Literal["link"] | None
    save_top_k: Limited
    save_on_exception: bool
    save_weights_only: bool
    mode: Literal["min", "max"]
    auto_insert_metric_name: bool
    every_n_train_steps: Whole | None
    train_time_interval: Any
    every_n_epochs: Whole | None
    save_on_train_epoch_end: Switch
    enable_version_counter: bool


@strict
class MLFlowLogger(TypedDict, total=False):
    experiment_name: Text
    run_name: Text | None
    tracking_uri: Text
    tags: Mapping | None
    save_dir: Text | None
    log_model: bool | Literal["all"]
    prefix: str
    artifact_location: Text | None
    run_id: Text | None
    synchronous: Switch


@strict
class DeepSpeedStrategy(TypedDict, total=False):
    stage: Literal[1, 2, 3]
    offload_optimizer: bool
    offload_parameters: bool
    offload_params_device: Literal["cpu", "nvme"]
    overlap_comm: bool
    allgather_bucket_size: Count
    reduce_bucket_size: Count


@strict
class DDPStrategy(TypedDict, total=False):
    process_group_backend: Literal["nccl", "gloo", "mpi"] | None
    gradient_as_bucket_view: bool
    static_graph: bool
    find_unused_parameters: bool
    bucket_cap_mb: Count


LIBRARY_SECTIONS: dict[str, Any] = {
    "lightning.Trainer": Trainer,
    "lightning.pytorch.Trainer": Trainer,
    "lightning.pytorch.callbacks.ModelCheckpoint": ModelCheckpoint,
    "lightning.pytorch.loggers.MLFlowLogger": MLFlowLogger,
    "rlhf_lightning.callbacks.SteadyMLFlowLogger": MLFlowLogger,
    "lightning.pytorch.strategies.DDPStrategy": DDPStrategy,
    "lightning.pytorch.strategies.DeepSpeedStrategy": DeepSpeedStrategy,
    "transformers.get_constant_schedule_with_warmup": WarmUp,
    "transformers.get_linear_schedule_with_warmup": WarmUp,
    "transformers.get_cosine_schedule_with_warmup": CosineWarmUp,
    "torch.optim.AdamW": AdamW,
    "torch.optim.Adam": AdamW,
    "torch.optim.SGD": SGD,
}
