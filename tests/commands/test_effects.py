"""A setting without effect next to the others is refused by name; shipped settings never are."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from rlhf_lightning.commands import train
from rlhf_lightning.commands.composition import compose_config
from rlhf_lightning.commands.stages import compose_stages
from rlhf_lightning.config.callback_effects import CALLBACK_RULES
from rlhf_lightning.config.effect_rules import RULES
from rlhf_lightning.config.effects import _findings, check_effects, check_samples
from rlhf_lightning.config.evaluation_checks import check_settings
from rlhf_lightning.errors import UserError
from rlhf_lightning.guide.composed import options
from rlhf_lightning.source.declarations import declaration

GIVEN = ["model.path=gpt2", "data.train=org/name"]
BASES = {
    "sft": ["experiment=sft", *GIVEN],
    "reward": ["experiment=reward", *GIVEN],
    "dpo": ["experiment=dpo", *GIVEN],
    **{name: [f"experiment={name}", *GIVEN, "reward.function=my.fn"] for name in ("ppo", "grpo")},
    **{name: [f"experiment={name}", *GIVEN] for name in ("orpo", "simpo", "cpo", "kto", "ilql")},
    "gkd": ["experiment=gkd", *GIVEN],
    "lagrangian": ["experiment=ppo_lagrangian", *GIVEN, "reward.function=my.fn"],
    "ppo_demo": ["experiment=ppo_demo"],
}
NO_VAL = "data.val_fraction=0"
EXTRA = "+callbacks.more._target_=lightning.pytorch.callbacks"
WATCH = "+callbacks.watch._target_=rlhf_lightning.callbacks.OverOptimization +callbacks.watch.scorers.gold.function"
SERVER = "rollout=vllm rollout.server=http://localhost:8000"

CASES = [
    ("sft", "reward=default reward.function=my.fn", "reward: found a section; SFTModule learns from rows"),
    ("ppo", "cost=default cost.function=my.fn", "cost: found a section; PPOModule has no limit on costs"),
    ("grpo", "algorithm.max_tries=7", "algorithm.max_tries: found 7; nothing is sampled again"),
    ("dpo", "rollout=native", "rollout: found a section; DPOModule learns from rows"),
    ("sft", "resume_anyway=true", "resume_anyway: found true; nothing is resumed"),
    ("ppo", "model.dropout=false", "model.dropout: found false; PPOModule switches all dropout off"),
    ("dpo", "model/adapter=lora model.adapter.dropout=0.1", "model.adapter.dropout: found 0.1; DPOModule switches"),
    ("sft", "model.path=. model.revision=main", "model.revision: found main; a folder has no revisions"),
    ("sft", "data.val=org/held_out", "data.val_fraction: found 0.05; data.val gives the held-out rows"),
    ("ppo", "reward.function=my.fn reward.batch_size=5", "reward.batch_size: found 5; only a reward model or a server"),
    (
        "lagrangian",
        "cost.function=my.fn cost.batch_size=5",
        "cost.batch_size: found 5; only a reward model or a server",
    ),
    ("ppo", "+trainer.min_steps=10000000", "trainer.min_steps: found 10000000"),
    ("sft", f"{NO_VAL} data.val_batch_size=4", "data.val_batch_size: found 4; nothing is validated"),
    ("dpo", "data.max_length=64 data.max_prompt_length=64", "data.max_prompt_length: found 64; prompt and answer"),
    (
        "sft",
        "optimizer=sgd optimizer.momentum=0 +optimizer.nesterov=true",
        "optimizer.nesterov: found true; there is no",
    ),
    (
        "sft",
        "optimizer=sgd +optimizer.nesterov=true +optimizer.dampening=0.1",
        "optimizer.dampening: found 0.1; Nesterov",
    ),
    (
        "sft",
        "optimizer.fused=true +optimizer.foreach=true",
        "optimizer.foreach: found true; a fused optimiser cannot",
    ),
    ("sft", "optimizer.fused=true trainer.precision=16-mixed", "optimizer.fused: found true; it divides the gradients"),
    (
        "sft",
        "optimizer.fused=true trainer.accelerator=tpu",
        "optimizer.fused: found true; TPUs have no fused optimiser",
    ),
    ("sft", "+optimizer.capturable=true trainer.accelerator=cpu", "optimizer.capturable: found true; only CUDA graphs"),
    ("sft", "+scheduler.last_epoch=7", "scheduler.last_epoch: found 7; a resumed run knows its step"),
    (
        "sft",
        "matmul_precision=high trainer.accelerator=cpu",
        "matmul_precision: found high; it only affects matrix products on a GPU",
    ),
    ("sft", "trainer.max_epochs=0", "trainer.max_epochs: found 0; with 0 nothing is trained"),
    ("sft", "trainer.max_steps=0", "trainer.max_steps: found 0; with 0 nothing is trained"),
    ("sft", "trainer.limit_train_batches=0", "trainer.limit_train_batches: found 0; with 0 nothing is trained"),
    ("dpo", "trainer.limit_train_batches=0.0", "trainer.limit_train_batches: found 0.0; with 0 nothing is trained"),
    ("sft", "trainer.max_time=00:00:00:00", "trainer.max_time: found 00:00:00:00; nothing would be trained"),
    ("sft", "trainer.max_time.minutes=0", "trainer.max_time: found a section; nothing would be trained"),
    ("sft", "trainer.min_epochs=3", "trainer.min_epochs: found 3; trainer.max_epochs ends the run earlier"),
    (
        "sft",
        "trainer.max_steps=4 trainer.min_steps=5",
        "trainer.min_steps: found 5; trainer.max_steps ends the run earlier",
    ),
    (
        "sft",
        "trainer.gradient_clip_val=null trainer.gradient_clip_algorithm=value",
        "trainer.gradient_clip_algorithm: found value; nothing is clipped",
    ),
    (
        "sft",
        "trainer=deepspeed_zero2 trainer.gradient_clip_algorithm=value",
        "trainer.gradient_clip_algorithm: found value; DeepSpeed clips by the norm only",
    ),
    (
        "ppo",
        "trainer.check_val_every_n_epoch=2",
        "trainer.check_val_every_n_epoch: found 2; nothing is validated",
    ),
    ("ppo", "trainer.num_sanity_val_steps=2", "trainer.num_sanity_val_steps: found 2; nothing is validated"),
    ("sft", f"{NO_VAL} trainer.limit_val_batches=5", "trainer.limit_val_batches: found 5; nothing is validated"),
    ("dpo", f"{NO_VAL} trainer.inference_mode=false", "trainer.inference_mode: found false; nothing is validated"),
    ("sft", "trainer.overfit_batches=2", "trainer.overfit_batches: found 2; the loaders draw different rows"),
    (
        "sft",
        "+trainer.reload_dataloaders_every_n_epochs=1",
        "trainer.reload_dataloaders_every_n_epochs: found 1; rows are read once",
    ),
    ("sft", "+trainer.sync_batchnorm=true", "trainer.sync_batchnorm: found true; language models have no batch norm"),
    (
        "ppo",
        "algorithm.kl.kind=fixed algorithm.kl.coef=0 algorithm.kl.placement=loss",
        "algorithm.kl.placement: found loss; with algorithm.kl.kind=fixed and coef=0",
    ),
    ("ppo", "algorithm.kl.kind=fixed algorithm.kl.target=4", "algorithm.kl.target: found 4; algorithm.kl.kind=fixed"),
    ("ppo", "algorithm.kl.kind=multiplicative algorithm.kl.horizon=7", "algorithm.kl.horizon: found 7; only algorithm"),
    ("ppo", "algorithm.kl.kind=pid algorithm.kl.horizon=7", "algorithm.kl.horizon: found 7; only algorithm"),
    ("ppo", "algorithm.kl.kp=1", "algorithm.kl.kp: found 1; only algorithm.kl.kind=pid has gains"),
    (
        "ppo",
        "data.val_fraction=0.1 trainer.val_check_interval=0.5",
        "trainer.val_check_interval: found 0.5; PPOModule is validated at the end of an iteration",
    ),
    ("ppo", "data.val=org/held_out data.val_fraction=0.1", "data.val_fraction: found 0.1; data.val gives the held-out"),
    (
        "ppo",
        "callbacks.checkpoint.monitor=val/scores",
        "callbacks.checkpoint.monitor: found val/scores; it is never logged: nothing is validated",
    ),
    ("ppo", "trainer.limit_train_batches=0.5", "trainer.limit_train_batches: found 0.5; PPOModule would leave out"),
    ("ppo", "trainer.overfit_batches=2", "trainer.overfit_batches: found 2; the loaders draw different rows"),
    (
        "ppo",
        "algorithm.ppo_epochs=1 algorithm.num_minibatches=1 algorithm.target_kl=0.3",
        "algorithm.target_kl: found 0.3; an iteration has one optimiser step",
    ),
    ("ppo", "algorithm.ptx.data=org/text", "algorithm.ptx.data: found org/text; algorithm.ptx.coef=0 switches it off"),
    (
        "dpo",
        "algorithm.loss_type=ipo algorithm.label_smoothing=0.1",
        "algorithm.label_smoothing: found 0.1; only algorithm.loss_type=sigmoid | robust | exo_pair has it",
    ),
    ("ppo", "algorithm.ptx.batch_size=3", "algorithm.ptx.batch_size: found 3; algorithm.ptx.coef is 0"),
    ("ppo", "algorithm.value_coef=0 algorithm.value_clip_range=0.5", "algorithm.value_clip_range: found 0.5; with"),
    (
        "ppo",
        "algorithm.ppo_epochs=1 algorithm.num_minibatches=1 algorithm.clip_range=0.1",
        "algorithm.clip_range: found 0.1; with a single step per rollout",
    ),
    ("ppo", "algorithm.importance_cap=2.0", "algorithm.importance_cap: found 2.0; rollout=native samples with"),
    (
        "ppo",
        "reward.function=null reward.model=org/rm reward.standardize=true algorithm.shaping.normalize=true",
        "reward.standardize: found true; algorithm.shaping.normalize takes mean and scale out again",
    ),
    (
        "ppo",
        "callbacks.checkpoint.monitor=rollout/group_spread",
        "callbacks.checkpoint.monitor: found rollout/group_spread; it is never logged: there is one response",
    ),
    (
        "ppo",
        "algorithm.shaping.length_allowed=5",
        "algorithm.shaping.length_allowed: found 5; algorithm.shaping.length",
    ),
    (
        "ppo",
        "algorithm.shaping.overlong_buffer=5",
        "algorithm.shaping.overlong_buffer: found 5; algorithm.shaping.over",
    ),
    ("ppo", "rollout.generation_batch_size=500", "rollout.generation_batch_size: found 500; an iteration has only"),
    ("ppo", f"{SERVER} rollout.sleep=true", "rollout.sleep: found true; it is for an engine in this process"),
    ("ppo", "rollout=vllm rollout.timeout=5", "rollout.timeout: found 5; only a server has a time limit"),
    (
        "sft",
        "trainer=deepspeed_zero2 +trainer.strategy.offload_parameters=true",
        "trainer.strategy.offload_parameters: found true; only ZeRO-3 has parameters to offload",
    ),
    (
        "sft",
        "trainer=deepspeed_zero3 +trainer.strategy.offload_params_device=nvme",
        "trainer.strategy.offload_params_device: found nvme; no parameters are offloaded",
    ),
    ("sft", "+logger.save_dir=here", "logger.save_dir: found here; logger.tracking_uri says where runs are kept"),
    (
        "sft",
        "+logger.run_id=abc +logger.run_name=x",
        "logger.run_name: found x; the run of logger.run_id has one already",
    ),
    # callbacks
    (
        "ppo",
        "callbacks.checkpoint.monitor=val/loss callbacks.checkpoint.save_top_k=2",
        "callbacks.checkpoint.monitor: found",
    ),
    (
        "sft",
        "callbacks.checkpoint.monitor=objective/scores",
        'callbacks.checkpoint.monitor: found "objective/scores", which ',
    ),
    (
        "sft",
        f"{NO_VAL} {EXTRA}.EarlyStopping +callbacks.more.monitor=val/loss",
        "callbacks.more.monitor: found val/loss",
    ),
    ("sft", "callbacks.checkpoint.mode=max", "callbacks.checkpoint.mode: found max; nothing is monitored"),
    ("sft", "callbacks.checkpoint.save_top_k=3", "callbacks.checkpoint.save_top_k: found 3; nothing is monitored, so"),
    (
        "sft",
        "callbacks.checkpoint.save_last=false",
        "callbacks.checkpoint.save_last: found false; nothing would be saved",
    ),
    (
        "ppo",
        "callbacks.checkpoint.every_n_train_steps=5",
        "callbacks.checkpoint.every_n_train_steps: found 5; PPOModule is",
    ),
    ("sft", "callbacks.checkpoint.every_n_train_steps=5", "callbacks.checkpoint.every_n_train_steps: found 5; every_n"),
    (
        "sft",
        "callbacks.checkpoint.every_n_epochs=null +callbacks.checkpoint.train_time_interval=30",
        "callbacks.checkpoint.train_time_interval: found 30; must be a section",
    ),
    ("sft", "+callbacks.checkpoint.save_on_exception=true", "callbacks.checkpoint.save_on_exception: found true; an"),
    ("sft", f"{EXTRA}.OnExceptionCheckpoint", "callbacks.more._target_: found lightning.pytorch.callbacks.OnException"),
    (
        "sft",
        "callbacks=ppo",
        "callbacks.samples._target_: found rlhf_lightning.callbacks.SampleTable; SFTModule samples",
    ),
    (
        "sft",
        f"{WATCH}=my.gold",
        "callbacks.watch._target_: found rlhf_lightning.callbacks.OverOptimization; SFTModule samples",
    ),
    (
        "ppo",
        f"{WATCH}=my.gold",
        "callbacks.watch._target_: found rlhf_lightning.callbacks.OverOptimization; nothing is",
    ),
    ("ppo", f"data.val=org/held_out {WATCH}=my.fn", "callbacks.watch.scorers: found"),
    (
        "sft",
        "callbacks=ema trainer=fsdp2",
        "callbacks.average._target_: found rlhf_lightning.callbacks.TrainableAverage; it cannot average sharded",
    ),
    ("sft", "callbacks=ema callbacks.average.export=false", "callbacks.average.export: found false; beside validate"),
    ("ppo", "callbacks=ppo_ema callbacks.average.validate=true", "callbacks.average.validate: found true; nothing is"),
    (
        "sft",
        "+callbacks.guardrails.kl_factor=5",
        "callbacks.guardrails.kl_factor: found 5; SFTModule samples no responses",
    ),
    ("ppo", "+callbacks.sigterm.dirpath=here", "callbacks.sigterm.dirpath: found here; PPOModule saves nothing within"),
    # sections that were never chosen, and Lightning's own refusals
    ("sft", "logger=none +logger.experiment_name=x", "logger.experiment_name: nothing reads it, because logger has no"),
    ("sft", "+model.adapter.rank=4", "model.adapter.rank: nothing reads it, because model.adapter has no _target_"),
    (
        "sft",
        "model/adapter=lora +model.quantization.compute_dtype=float32",
        "model.quantization.compute_dtype: nothing reads it",
    ),
    (
        "sft",
        "+callbacks.mine.every=4",
        "callbacks.mine.every: nothing reads it, because callbacks.mine has no _target_",
    ),
    (
        "sft",
        "+trainer.enable_checkpointing=false",
        "trainer.enable_checkpointing: found false beside callbacks.checkpoint",
    ),
    ("sft", "+trainer.enable_progress_bar=false", "trainer.enable_progress_bar: found false beside callbacks.progress"),
]


def config_of(base: str, overrides: str) -> dict[str, Any]:
    """Compose with Hydra, which is slow, only once for each choice of groups."""
    words = overrides.split()
    chosen = tuple(word for word in words if "." not in word.partition("=")[0])
    values = OmegaConf.from_dotlist([word.lstrip("+") for word in words if word not in chosen])
    plain: Any = OmegaConf.to_container(OmegaConf.merge(composed(base, chosen), values))
    return plain


@functools.cache
def composed(base: str, chosen: tuple[str, ...]) -> DictConfig:
    return OmegaConf.create(compose_config("train", [*BASES[base], *chosen]))


@pytest.mark.parametrize(("base", "overrides", "expected"), CASES, ids=[f"{base} {more}" for base, more, _ in CASES])
def test_a_setting_without_effect_is_one_line_that_names_it(base, overrides, expected, empty_folder):
    config = config_of(base, overrides)
    with pytest.raises(UserError) as error:
        train.check(config)
    assert str(error.value).startswith(expected)
    assert "\n" not in str(error.value)


def test_every_rule_has_a_case(empty_folder):
    seen = set()
    for base, overrides, _ in CASES:
        config = config_of(base, overrides)
        seen |= {id(rule) for _, _, rule in _findings(config)}
    assert [rule.keys for rule in (*RULES, *CALLBACK_RULES) if id(rule) not in seen] == []


EFFECTIVE = [
    ("sft", "model.dropout=false"),
    ("reward", "model/adapter=lora model.adapter.dropout=0.1"),
    ("sft", "model.revision=main"),
    ("sft", "data.val_batch_size=4 trainer.val_check_interval=0.5 trainer.limit_val_batches=3"),
    ("sft", f"{NO_VAL} trainer.limit_val_batches=0 trainer.num_sanity_val_steps=0"),
    ("sft", "optimizer=sgd +optimizer.nesterov=true"),
    ("sft", "trainer.max_epochs=-1 trainer.max_steps=10 scheduler=constant"),
    ("sft", "trainer.limit_train_batches=1"),
    ("sft", "trainer.max_time=00:00:00:01"),
    ("sft", "trainer.max_time.minutes=1"),
    ("ppo", "algorithm.kl.kind=multiplicative algorithm.kl.target=5"),
    ("ppo", "algorithm.ppo_epochs=1 algorithm.num_minibatches=1"),
    ("ppo", "algorithm.shaping.normalize=true"),
    ("sft", "matmul_precision=high"),
    ("sft", "matmul_precision=highest trainer.accelerator=cpu"),
    ("sft", "trainer.precision=16-mixed +optimizer.fused=false"),
    ("ppo", "algorithm.ptx.coef=1 algorithm.ptx.data=org/text algorithm.ptx.batch_size=3"),
    ("ppo", "rollout=vllm algorithm.importance_cap=2.0 rollout.gpu_memory_utilization=0.5"),
    ("ppo", f"{SERVER} rollout.timeout=5"),
    (
        "ppo",
        "callbacks.checkpoint.monitor=objective/scores callbacks.checkpoint.mode=max callbacks.checkpoint.save_top_k=2",
    ),
    ("dpo", "callbacks.checkpoint.monitor=val/rewards/accuracies callbacks.checkpoint.save_top_k=2"),
    ("sft", "callbacks.checkpoint.every_n_epochs=null callbacks.checkpoint.every_n_train_steps=5"),
    ("sft", "callbacks.checkpoint=null callbacks.progress=null +trainer.enable_checkpointing=false"),
    # a value from an experiment is not set by the user
    ("ppo_demo", "reward.model=null reward.function=my.fn"),
    ("ppo_demo", "algorithm.layout=shared"),
]


@pytest.mark.parametrize(("base", "overrides"), EFFECTIVE)
def test_the_same_setting_is_taken_where_something_reads_it(base, overrides, empty_folder):
    train.check(config_of(base, overrides))


@pytest.mark.parametrize("experiment", options("experiment"))
def test_every_experiment_passes(experiment, empty_folder):
    given = [] if experiment.endswith("_demo") else GIVEN
    config = compose_config("train", [f"experiment={experiment}", *given])
    if declaration(config).on_policy and given:
        config = compose_config("train", [f"experiment={experiment}", *given, "reward.function=my.fn"])
    check_effects(config)


@pytest.mark.parametrize("name", options("pipeline"))
def test_every_pipeline_passes(name, empty_folder):
    pipeline = compose_config("pipeline", [f"pipeline={name}"])
    for stage in compose_stages(pipeline, Path("there"), {}):
        check_effects(stage.config)


def test_an_evaluation_that_will_not_be_has_no_settings():
    settings = compose_config("pipeline", ["pipeline=smollm2", "evaluation.batch_size=4"])["evaluation"]
    with pytest.raises(UserError, match=r"^evaluation\.batch_size=4: nothing is evaluated"):
        check_settings(settings, ["seed=1", "evaluation.batch_size=4"])
    check_settings({**settings, "prompts": "held_out.jsonl"}, ["evaluation.batch_size=4"])
    check_settings(settings, ["seed=1"])


def test_the_most_likely_answer_is_drawn_once():
    with pytest.raises(UserError, match=r"^samples_per_prompt: found 4; with temperature=0 all answers"):
        check_samples({"temperature": 0, "samples_per_prompt": 4})
    check_samples({"temperature": 0, "samples_per_prompt": 1})
    check_samples({"temperature": 1.0, "samples_per_prompt": 4})


@pytest.mark.parametrize(("stage", "key"), [("ppo", "model.path"), ("ppo", "reward.model"), ("reward", "model.path")])
def test_a_stage_takes_its_model_from_one_place(stage, key, empty_folder):
    pipeline = compose_config("pipeline", ["pipeline=demo"])
    with pytest.raises(UserError, match=rf"^stages\.{stage}\.{key}: the stage takes the model of"):
        compose_stages(pipeline, Path("there"), {stage: [f"{key}=elsewhere"]})
