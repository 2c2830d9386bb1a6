"""Pipelines with rounds, names that YAML does not read as text, sweeps, plans and resent runs."""

from __future__ import annotations

import os

from bad_input_catalogue.case import EVALUATE, PPO, SFT, Case, changed, writes

ROUNDS = ["pipeline=rounds", "logger=none"]
PLAN = ["experiment=sft", "model.path=model", "logger=none"]
TRACK = ["run=run", "tracking_uri=sqlite:///m.db"]
SCORERS = "{_target_: rlhf_lightning.callbacks.OverOptimization, scorers: {1: {function: mine.score}}}"


def _round(name: str, names: str, *words: str, fast: bool = False) -> Case:
    return Case(f"rounds: {name}", "pipeline", changed(ROUNDS, *words), names, fast=fast)


def _name(name: str, command: str, words: list[str], names: str) -> Case:
    return Case(f"name: {name}", command, words, rf"{names}: found the name")


def _metrics(name: str, content: str, names: str) -> Case:
    return Case(f"metrics: {name}", "track", TRACK, names, writes("run/metrics.jsonl", content))


def _train(name: str, names: str, *words: str, base: list[str] = SFT) -> Case:
    return Case(f"chain: {name}", "train", changed(base, "run_dir=new", *words), names)


CHAINS = [
    _round("a fraction", r"rounds: found 1\.5", "rounds=1.5", fast=True),
    _round("none", r"rounds: found 0", "rounds=0"),
    _round("endless", r"rounds: found 100000000", "rounds=100000000", "explain=true"),
    _round("without stages", r"rounds: found 2", "pipeline=demo", "rounds=2"),
    _round("two stages of one name", r"round\.sft: stages\.sft", "++round.sft={experiment: sft_demo}"),
    _round("no store", r"^error: feedback: .*feedback\.store", "feedback=null"),
    _round("a store without a URL", r"feedback\.store", "feedback.store=foo"),
    _round("a store without its driver", r"feedback\.store", "feedback.store=mysql://x/y"),
    _round("a choice without scores", r"collect_1\.call\.choice", "round.collect.call.choice=uncertain"),
    _round("a reward of a policy", r"ppo_1\.reward_from", "round.ppo.reward_from=sft"),
    _round("a policy of a reward", r"ppo_1\.model_from", "round.ppo.model_from=reward"),
    _round("a model of a call", r"ppo_1\.model_from", "round.ppo.model_from=export"),
    _round(
        "a missing baseline",
        r"collect_1\.call\.baseline: no/such/one",
        "round.collect.call.baseline=no/such/one",
    ),
    _round("a baseline that scores", r"call\.baseline", "round.collect.call.baseline=scorer"),
    _round("a baseline that holds no model", r"call\.baseline", "round.collect.call.baseline=prompts.jsonl"),
    _round("an odd number beside a baseline", r"samples_per_prompt", "round.collect.call.samples_per_prompt=3"),
    _round("rows of a stage without", r"reward_1\.data_from", "round.reward.data_from=collect"),
    _round("an ensemble of policies", r"ppo_1\.members", "round.ppo.members=2"),
    _round("an ensemble of calls", r"collect_1\.members", "round.collect.members=2"),
    _round("an ensemble of one model", r"reward_1\.seed", "round.reward.seed=1"),
    _round("an endless ensemble", r"round\.reward\.members", "round.reward.members=1000000"),
    _round("an unknown member", r"reward_1_z", "stages.reward_1_z.optimizer.lr=1e-3"),
    _round("nothing collects", r"label_1\.call\.store", "~round.collect"),
    _round(
        "nothing collects, and the driver is named",
        r"label_1\.call\.store",
        "~round.collect",
        "feedback.store=sqlite+pysqlite:///nothere.db",
    ),
    _round("nobody labels", r"export_1\.call\.store", "~round.label"),
    _name(
        "a number, of a component",
        "train",
        changed(PPO, "reward.function=null", "reward.components={1: {function: mine.score}}"),
        r"reward\.components",
    ),
    _name(
        "a fraction, of a component",
        "train",
        changed(PPO, "reward.function=null", "reward.components={1.5: {function: mine.score}}"),
        r"reward\.components",
    ),
    _name(
        "a number, of a scorer",
        "train",
        changed(PPO, f"+callbacks.overoptimization={SCORERS}", "data.val=prompts.jsonl"),
        r"callbacks\.overoptimization\.scorers",
    ),
    _name("a number, of a need", "train", changed(SFT, "requires={1: x}"), "requires"),
    _name("a truth value, of an argument", "train", changed(PPO, "reward.arguments={true: 1}"), r"reward\.arguments"),
    _name("a number, of a policy", "evaluate", changed(EVALUATE, "policies={1: model, 2: run}"), "policies"),
    _name("a number, of a policy asked", "collect", ["prompts=prompts.jsonl", "policies={1: model}"], "policies"),
    _name("a number, of a reward", "evaluate", ["preferences=pairs.jsonl", "rewards={1: {model: scorer}}"], "rewards"),
    Case(
        "name: the same key twice",
        "evaluate",
        ["preferences=pairs.jsonl", "rewards={s: {model: scorer}}", "rewards={t: {model: scorer}}"],
        r"rewards: given twice",
    ),
    Case(
        "sweep: a job that fails",
        "train",
        ["-m", *changed(PPO, "reward.function=mine.score,mine.raises", "run_dir=new")],
        r"reward\.function.*\(job 1 of the sweep: reward\.function=mine\.raises in new_1\)",
        further_lines=2,
    ),
    Case("plan: a batch without end", "plan", [*PLAN, "data.batch_size=1000000000000"], r"data\.batch_size"),
    _metrics("a step that is text", '{"step": "a", "x": 1}\n', r"run/metrics\.jsonl, line 1: step"),
    _metrics("a value that is text", '{"step": 1, "x": "a"}\n', r"run/metrics\.jsonl, line 1: x"),
    _metrics("a line that is not JSON", '{"step": 1}\n{"step"\n', r"run/metrics\.jsonl, line 2: not JSON"),
    _metrics("a list", "[1]\n", r"run/metrics\.jsonl, line 1"),
    _train("ckpt is a run folder", r"ckpt: run .*ckpt=run/checkpoints/last\.ckpt", "ckpt=run"),
    _train("ckpt is the folder of checkpoints", r"ckpt=run/checkpoints/last\.ckpt", "ckpt=run/checkpoints"),
    Case(
        "chain: metrics that are a folder",
        "train",
        changed(SFT, "run_dir=run", "ckpt=last", "trainer.max_epochs=2"),
        r"^error: run/metrics\.jsonl",
        lambda folder: os.mkdir(folder / "run/metrics.jsonl"),
        further_lines=1,
    ),
    _train(
        "a schedule by a metric",
        r"scheduler\._target_",
        *("scheduler._target_=torch.optim.lr_scheduler.ReduceLROnPlateau", "~scheduler.num_warmup_steps"),
    ),
    _train("samples of no validation", r"data\.val_samples", "data.val_samples=5", "data.val_fraction=0", base=PPO),
    _train("more steps than epochs have", r"trainer\.min_steps", "trainer.min_steps=100", base=PPO),
    _train("batches of a function", r"reward\.batch_size", "reward.batch_size=5", base=PPO),
    _train(
        "a monitor that is logged too late",
        r"'train/loss' .*trainer\.log_every_n_steps=1",
        *("trainer.max_epochs=1", "callbacks.checkpoint.save_top_k=1", "callbacks.checkpoint.monitor=train/loss"),
    ),
    _train(
        "an end by a metric that is logged too late",
        r"'train/loss' .*trainer\.log_every_n_steps=1",
        "trainer.max_epochs=1",
        "+callbacks.stop={_target_: lightning.pytorch.callbacks.EarlyStopping, monitor: train/loss}",
    ),
]
