"""The settings of a training config that have no effect next to others: which keys, when, and why.

Those of callbacks are in `callback_effects`; `effects` looks for them in a config.
"""

from __future__ import annotations

from rlhf_lightning.config.conditions import (
    Rule,
    above,
    both,
    compares,
    deepspeed,
    equals,
    fewer_steps,
    get,
    is_section_of_ours,
    kl_kind,
    local_model,
    longer,
    no_kl_term,
    no_time,
    one_step,
    ours,
    part_of_a_rollout,
    reads_rows,
    samples,
    scores_one_by_one,
    validates,
    without,
)
from rlhf_lightning.source.declarations import declaration
from rlhf_lightning.tracking.store import uses_mlflow

_NO_VALIDATION = "nothing is validated; give data.val or data.val_fraction, or leave it out"
_NO_DROPOUT = "{algorithm} switches all dropout off, so that the comparison with its reference is exact; leave it out"
_ONE_STEP = "with a single step per rollout (ppo_epochs=1 num_minibatches=1) the policy is still the one that sampled"
_MAX_TIME = "give a time as DD:HH:MM:SS, or null"
_WHOLE_ROLLOUTS = (
    "{algorithm} would leave out minibatches of every rollout; leave it at its default, and for a shorter run lower "
    "rollout.batch_size or trainer.max_epochs"
)
_VALIDATION_KEYS = (
    *("trainer.val_check_interval", "trainer.check_val_every_n_epoch", "trainer.num_sanity_val_steps"),
    *("trainer.inference_mode", "trainer.limit_val_batches"),
)

RULES: tuple[Rule, ...] = (
    # ---- top level
    Rule(("reward", "rollout"), reads_rows, "{algorithm} learns from rows and does not sample; set it to null"),
    Rule(
        ("cost",),
        lambda c: ours(c) and "cost" not in declaration(c).roles,
        "{algorithm} has no limit on costs; choose algorithm=ppo_lagrangian, or set it to null",
        contradicts=True,
    ),
    Rule(("resume_anyway",), without("ckpt"), "nothing is resumed; give ckpt=last, or leave it out"),
    # ---- model
    Rule(("model.dropout", "model.adapter.dropout"), compares, _NO_DROPOUT),
    Rule(("model.revision",), local_model, "a folder has no revisions; only a name on the hub does"),
    # ---- data
    Rule(("data.val_batch_size", "data.val_samples"), lambda c: not validates(c), _NO_VALIDATION),
    Rule(
        ("data.max_prompt_length",),
        longer,
        "prompt and answer together have data.max_length tokens; choose a smaller number, or null",
        contradicts=True,
    ),
    # ---- optimiser and schedule
    Rule(
        ("optimizer.dampening", "optimizer.nesterov"),
        both(equals("optimizer._target_", "torch.optim.SGD"), without("optimizer.momentum")),
        "there is no momentum; set optimizer.momentum, or leave it out",
    ),
    Rule(
        ("optimizer.dampening",), equals("optimizer.nesterov", True), "Nesterov momentum has none; set one of the two"
    ),
    Rule(
        ("optimizer.foreach", "optimizer.differentiable"),
        equals("optimizer.fused", True),
        "a fused optimiser cannot be combined with it; set optimizer.fused=null, or leave it out",
    ),
    Rule(
        ("optimizer.fused",),
        both(equals("optimizer.fused", True), equals("trainer.precision", "16-mixed")),
        "it divides the gradients by the loss scale itself, so they cannot be clipped; set it to null, or choose "
        "trainer.precision=bf16-mixed",
        contradicts=True,
    ),
    Rule(
        ("optimizer.fused",),
        both(equals("optimizer.fused", True), equals("trainer.accelerator", "tpu")),
        "TPUs have no fused optimiser",
        contradicts=True,
    ),
    Rule(
        ("optimizer.capturable",),
        equals("trainer.accelerator", "cpu"),
        "only CUDA graphs need it; leave it out on a CPU",
    ),
    Rule(
        ("scheduler.last_epoch",),
        lambda c: get(c, "scheduler.last_epoch") != -1,
        "a resumed run knows its step: use ckpt",
    ),
    # ---- trainer
    Rule(
        ("matmul_precision",),
        equals("trainer.accelerator", "cpu"),
        "it only affects matrix products on a GPU; leave it out",
    ),
    *(
        Rule((key,), equals(key, 0), "with 0 nothing is trained; give 1 or more, or leave it out", contradicts=True)
        for key in ("trainer.max_epochs", "trainer.max_steps", "trainer.limit_train_batches")
    ),
    Rule(("trainer.max_time",), no_time, f"nothing would be trained; {_MAX_TIME}", contradicts=True),
    Rule(
        ("trainer.min_epochs",),
        above("trainer.min_epochs", "trainer.max_epochs"),
        "trainer.max_epochs ends the run earlier",
        contradicts=True,
    ),
    Rule(
        ("trainer.min_steps",),
        above("trainer.min_steps", "trainer.max_steps"),
        "trainer.max_steps ends the run earlier",
        contradicts=True,
    ),
    Rule(
        ("trainer.min_steps",),
        fewer_steps,
        "trainer.max_epochs ends the run earlier",
        contradicts=True,
    ),
    Rule(
        ("trainer.gradient_clip_algorithm",),
        without("trainer.gradient_clip_val"),
        "nothing is clipped; set trainer.gradient_clip_val, or leave it out",
    ),
    Rule(
        ("trainer.gradient_clip_algorithm",),
        both(deepspeed, equals("trainer.gradient_clip_algorithm", "value")),
        "DeepSpeed clips by the norm only",
        contradicts=True,
    ),
    Rule(
        ("trainer.val_check_interval",),
        both(samples, lambda c: get(c, "trainer.val_check_interval") != 1.0),
        "{algorithm} is validated at the end of an iteration; set trainer.check_val_every_n_epoch (iterations) instead",
        contradicts=True,
    ),
    Rule(_VALIDATION_KEYS, lambda c: not validates(c), _NO_VALIDATION),
    Rule(
        ("trainer.overfit_batches",),
        lambda c: str(c["data"].get("_target_", "")).startswith("rlhf_lightning.data."),
        "the loaders draw different rows in every epoch, so nothing would be overfitted; use data.limit=<rows>",
    ),
    Rule(("trainer.reload_dataloaders_every_n_epochs",), lambda c: True, "rows are read once, before training"),
    Rule(("trainer.sync_batchnorm",), lambda c: True, "language models have no batch norm"),
    # ---- algorithms that sample
    Rule(
        ("algorithm.kl.placement", "algorithm.kl.estimator"),
        no_kl_term,
        "with algorithm.kl.kind=fixed and coef=0 there is no KL term; leave it out",
    ),
    Rule(
        ("algorithm.kl.target", "algorithm.kl.horizon"),
        kl_kind("fixed"),
        "algorithm.kl.kind=fixed has none; leave it out, or choose algorithm.kl.kind=adaptive",
    ),
    Rule(
        ("algorithm.kl.horizon",),
        kl_kind("multiplicative", "pid"),
        "only algorithm.kl.kind=adaptive has one; leave it out, or choose that kind",
    ),
    Rule(
        ("algorithm.kl.kp", "algorithm.kl.ki", "algorithm.kl.kd"),
        kl_kind("adaptive", "multiplicative", "fixed"),
        "only algorithm.kl.kind=pid has gains; leave it out, or choose that kind",
    ),
    Rule(
        ("algorithm.accuracy_threshold", "algorithm.max_tries"),
        both(samples, without("algorithm.accuracy")),
        "nothing is sampled again; set algorithm.accuracy, or leave it out",
    ),
    Rule(
        ("trainer.limit_train_batches",),
        part_of_a_rollout("trainer.limit_train_batches", 1.0),
        _WHOLE_ROLLOUTS,
        contradicts=True,
    ),
    Rule(
        ("trainer.overfit_batches",),
        part_of_a_rollout("trainer.overfit_batches", 0.0, 0),
        _WHOLE_ROLLOUTS,
        contradicts=True,
    ),
    Rule(
        ("algorithm.target_kl",),
        one_step,
        "an iteration has one optimiser step and nothing to stop; set it to null, or raise algorithm.ppo_epochs or "
        "algorithm.num_minibatches",
    ),
    Rule(
        ("algorithm.ptx.data",),
        both(is_section_of_ours("algorithm.ptx"), without("algorithm.ptx.coef")),
        "algorithm.ptx.coef=0 switches it off; give a coefficient, or set it to null",
    ),
    # ---- reward and rollout
    Rule(
        ("algorithm.ptx.batch_size", "algorithm.ptx.max_length"),
        both(is_section_of_ours("algorithm.ptx"), without("algorithm.ptx.coef")),
        "algorithm.ptx.coef is 0, so no pretraining text is mixed in; set it, or leave this out",
    ),
    Rule(
        ("algorithm.value_clip_range",),
        both(ours, equals("algorithm.value_coef", 0)),
        "with algorithm.value_coef=0 no value function is learned; leave it out",
    ),
    Rule(
        ("algorithm.clip_range", "algorithm.value_clip_range"),
        both(one_step, equals("algorithm.old_logprobs", "trainer", None)),
        f"{_ONE_STEP}, so nothing is clipped; leave it out",
    ),
    Rule(
        ("algorithm.importance_cap",),
        both(ours, equals("rollout.engine", "native")),
        "rollout=native samples with the trainer's own probabilities, so there is nothing to weigh; set it to null",
    ),
    *(
        Rule(
            (f"{name}.batch_size",),
            scores_one_by_one(name),
            "only a reward model or a server takes responses in batches; leave it at its default",
        )
        for name in ("reward", "cost")
    ),
    Rule(
        ("reward.standardize",),
        both(ours, equals("reward.standardize", True), equals("algorithm.shaping.normalize", True)),
        "algorithm.shaping.normalize takes mean and scale out again; set one of the two",
        contradicts=True,
    ),
    Rule(
        ("algorithm.shaping.length_allowed",),
        both(is_section_of_ours("algorithm.shaping"), without("algorithm.shaping.length_penalty")),
        "algorithm.shaping.length_penalty is 0, so a token beyond it costs nothing; set it, or leave this out",
    ),
    Rule(
        ("algorithm.shaping.overlong_length", "algorithm.shaping.overlong_buffer"),
        both(is_section_of_ours("algorithm.shaping"), without("algorithm.shaping.overlong_penalty")),
        "algorithm.shaping.overlong_penalty is 0, so there is no such penalty; set it, or leave this out",
    ),
    Rule(
        ("rollout.generation_batch_size",),
        above("rollout.generation_batch_size", "rollout.batch_size"),
        "an iteration has only rollout.batch_size prompts; choose a smaller number, or null",
        contradicts=True,
    ),
    Rule(
        ("rollout.gpu_memory_utilization", "rollout.sleep", "rollout.engine_args"),
        both(equals("rollout.engine", "vllm"), lambda c: get(c, "rollout.server")),
        "it is for an engine in this process; beside rollout.server give it to `vllm serve`",
    ),
    Rule(
        ("rollout.timeout",),
        both(equals("rollout.engine", "vllm"), without("rollout.server")),
        "only a server has a time limit; set rollout.server, or leave it out",
    ),
    # ---- where it runs, what is logged
    Rule(
        ("trainer.strategy.offload_parameters",),
        lambda c: deepspeed(c) and get(c, "trainer.strategy.stage") != 3,
        "only ZeRO-3 has parameters to offload; choose trainer=deepspeed_zero3, or leave it out",
    ),
    Rule(
        ("trainer.strategy.offload_params_device",),
        without("trainer.strategy.offload_parameters"),
        "no parameters are offloaded; set trainer.strategy.offload_parameters=true, or leave it out",
    ),
    Rule(("logger.save_dir",), uses_mlflow, "logger.tracking_uri says where runs are kept; leave it out"),
    Rule(
        ("logger.run_name", "logger.artifact_location"),
        both(uses_mlflow, lambda c: get(c, "logger.run_id")),
        "the run of logger.run_id has one already; leave it out",
    ),
)
