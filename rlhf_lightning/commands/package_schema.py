"""The typed schema of this package's classes that configs name as `_target_`. A test keeps it in step with them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field
from typing_extensions import Required, TypedDict

from rlhf_lightning.commands.library_schema import ModelCheckpoint
from rlhf_lightning.commands.schema import strict
from rlhf_lightning.value_types import (
    BelowOne,
    Count,
    Dtype,
    Fraction,
    Kernels,
    Mapping,
    NonNegative,
    Number,
    Positive,
    Seconds,
    Text,
    Whole,
)


@strict
class Model(TypedDict, total=False):
    path: Required[Text]
    dtype: Dtype
    attn_implementation: Text | None
    revision: Text | None
    trust_remote_code: bool
    dropout: bool
    activation_checkpointing: bool
    kernels: Kernels
    adapter: Mapping | None
    quantization: Mapping | None


@strict
class LoRA(TypedDict, total=False):
    rank: Count
    alpha: Positive
    dropout: BelowOne
    use_rslora: bool
    use_dora: bool
    target_modules: Text | list[Text]
    init: Text


@strict
class NF4(TypedDict, total=False):
    double_quant: bool
    compute_dtype: Literal["float32", "bfloat16", "float16"]


@strict
class SFTData(TypedDict, total=False):
    train: Required[Text]
    val: Text | None
    val_fraction: BelowOne
    batch_size: Count
    val_batch_size: Count | None
    max_length: Count | None
    loss_on: Literal["completion", "all", "assistant"]
    limit: Count | None


@strict
class PreferenceData(TypedDict, total=False):
    train: Required[Text]
    val: Text | None
    val_fraction: BelowOne
    batch_size: Count
    max_length: Count | None
    max_prompt_length: Count | None
    limit: Count | None


@strict
class PromptData(TypedDict, total=False):
    train: Required[Text]
    val: Text | None
    val_fraction: BelowOne
    max_prompt_length: Count | None
    limit: Count | None


@strict
class RewardPart(TypedDict, total=False):
    function: Text | None
    model: Text | None
    weight: Number
    standardize: bool
    dtype: Dtype
    attn_implementation: Text | None


@strict
class Reward(TypedDict, total=False):
    function: Text | None
    model: Text | None
    components: dict[str, RewardPart] | None
    batch_size: Count
    standardize: bool
    dtype: Dtype
    attn_implementation: Text | None
    timeout: Seconds | None


@strict
class Rollout(TypedDict, total=False):
    engine: Literal["native"]
    max_new_tokens: Count
    temperature: Positive
    batch_size: Count
    generation_batch_size: Count | None
    samples_per_prompt: Count


@strict
class VLLMRollout(TypedDict, total=False):
    engine: Literal["vllm"]
    max_new_tokens: Count
    temperature: Positive
    batch_size: Count
    generation_batch_size: Count | None
    samples_per_prompt: Count
    server: Annotated[str, Field(pattern="^https?://[^/]+")] | None
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)]
    sleep: bool
    sync_dir: Text | None
    timeout: Seconds
    engine_args: Mapping | None


@strict
class SFT(TypedDict, total=False):
    pass


@strict
class RewardModel(TypedDict, total=False):
    center_coef: NonNegative


@strict
class DPO(TypedDict, total=False):
    beta: Positive
    loss_type: Literal["sigmoid", "ipo", "hinge", "robust", "exo_pair", "nca_pair", "sppo_hard", "apo_zero", "apo_down"]
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)]
    nll_coef: NonNegative
    per_token: bool | None
    precompute_reference: bool


@strict
class PPO(TypedDict, total=False):
    clip_range: Annotated[float, Field(gt=0, lt=1)]
    value_clip_range: Positive | None
    value_coef: NonNegative
    entropy_coef: NonNegative
    gamma: Fraction
    lam: Fraction
    ppo_epochs: Count
    num_minibatches: Count
    tokens_per_microbatch: Count | None
    target_kl: Positive | None
    old_logprobs: Literal["trainer", "engine"]
    importance_cap: Positive | None
    whiten_advantages: bool
    layout: Literal["shared", "separate"]
    kl: Mapping
    shaping: Mapping
    ptx: Mapping


@strict
class KLPenalty(TypedDict, total=False):
    kind: Literal["adaptive", "fixed", "multiplicative", "pid"]
    coef: NonNegative
    target: Positive | None
    horizon: Count | None
    estimator: Literal["k1", "k2", "k3", "abs"] | None
    placement: Literal["reward", "loss"]
    kp: NonNegative
    ki: NonNegative
    kd: NonNegative


@strict
class RewardShaping(TypedDict, total=False):
    normalize: bool
    clip: Positive | None
    missing_eos_penalty: NonNegative


@strict
class PretrainingMix(TypedDict, total=False):
    coef: NonNegative
    data: Text | None
    batch_size: Count
    max_length: Count


@strict
class FullySharded(TypedDict, total=False):
    process_group_backend: Literal["nccl", "gloo"] | None


@strict
class World(TypedDict, total=False):
    folder: Required[Text]
    seed: Whole
    n_train_prompts: Count
    n_test_prompts: Count
    demonstrations_per_prompt: Count
    pairs_per_prompt: Count
    answers_per_ranking: Annotated[int, Field(ge=0, le=9)]
    rankings_per_prompt: Count
    temperature: NonNegative
    flip_rate: Annotated[float, Field(ge=0, le=0.5)]
    length_bias: Number


@strict
class Guardrails(TypedDict, total=False):
    kl_factor: Positive
    kl_target: Positive | None
    entropy_factor: NonNegative


@strict
class Instruments(TypedDict, total=False):
    pass


@strict
class MetricsFile(TypedDict, total=False):
    path: Text | None


@strict
class ProgressBar(TypedDict, total=False):
    refresh_rate: Count
    seconds: Seconds


@strict
class ReproducibleResume(TypedDict, total=False):
    pass


@strict
class StopOnSigterm(TypedDict, total=False):
    dirpath: Text | None


@strict
class SampleTable(TypedDict, total=False):
    every_n_epochs: Count
    rows: Count
    path: Text | None


@strict
class TrainableAverage(TypedDict, total=False):
    decay: BelowOne


PACKAGE_SECTIONS: dict[str, Any] = {
    "rlhf_lightning.models.load_causal_lm": Model,
    "rlhf_lightning.models.load_reward_model": Model,
    "rlhf_lightning.models.LoRA": LoRA,
    "rlhf_lightning.models.NF4": NF4,
    "rlhf_lightning.data.SFTDataModule": SFTData,
    "rlhf_lightning.data.PreferenceDataModule": PreferenceData,
    "rlhf_lightning.data.PromptDataModule": PromptData,
    "rlhf_lightning.rewards.make_reward": Reward,
    "rlhf_lightning.rollout.RolloutSettings": Rollout,
    "rlhf_lightning.rollout.VLLMRollout": VLLMRollout,
    "rlhf_lightning.algorithms.SFTModule": SFT,
    "rlhf_lightning.algorithms.RewardModule": RewardModel,
    "rlhf_lightning.algorithms.DPOModule": DPO,
    "rlhf_lightning.algorithms.PPOModule": PPO,
    "rlhf_lightning.algorithms.KLPenalty": KLPenalty,
    "rlhf_lightning.algorithms.RewardShaping": RewardShaping,
    "rlhf_lightning.algorithms.PretrainingMix": PretrainingMix,
    "rlhf_lightning.algorithms.FullySharded": FullySharded,
    "rlhf_lightning.simulation.write_world": World,
    "rlhf_lightning.callbacks.Guardrails": Guardrails,
    "rlhf_lightning.callbacks.Instruments": Instruments,
    "rlhf_lightning.callbacks.MetricsFile": MetricsFile,
    "rlhf_lightning.callbacks.ProgressBar": ProgressBar,
    "rlhf_lightning.callbacks.ReproducibleResume": ReproducibleResume,
    "rlhf_lightning.callbacks.ResumableCheckpoint": ModelCheckpoint,
    "rlhf_lightning.callbacks.SampleTable": SampleTable,
    "rlhf_lightning.callbacks.StopOnSigterm": StopOnSigterm,
    "rlhf_lightning.callbacks.TrainableAverage": TrainableAverage,
}
