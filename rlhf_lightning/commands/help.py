"""The pages that `--help` prints. Groups and options are read from the config folders, so extensions appear too."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

from rlhf_lightning.config.config_files import conf_dir
from rlhf_lightning.source.declarations import declared
from rlhf_lightning.working_folder import import_from_working_folder

# Group -> what its option decides, in the order a reader needs them.
GROUPS = {
    "experiment": "a whole run: the groups below with values that go together",
    "algorithm": "what is trained and by which loss",
    "model": "the network: a Hugging Face folder, an earlier run folder or a hub name",
    "data": "rows: JSONL, Parquet, a datasets folder or a hub name",
    "reward": "where scores come from, for algorithms that sample",
    "rollout": "how responses are sampled",
    "optimizer": "",
    "scheduler": "of the learning rate, over all optimiser steps",
    "trainer": "Lightning's Trainer: devices, strategy, precision, length",
    "callbacks": "checkpoints, metrics.jsonl, guardrails, speed, progress, samples",
    "logger": "where metrics go besides the run folder",
}
KEYS = {
    "seed": "of initial weights, order of the data and sampled responses",
    "ckpt": "resume from a checkpoint file, or `last`, the newest complete one",
    "resume_anyway": "true: resume although the config has changed in what the run means",
    "run_dir": "the run folder; default outputs/<experiment>/<time>",
    "explain": "true: print the batch arithmetic and stop",
    "register": "MLflow: make the trained model a new version of this registered model",
    "model.path": "Hugging Face folder, run folder or hub name",
    "data.train, data.val": "rows to learn from, and held-out ones (or data.val_fraction)",
    "data.batch_size": "rows per process and batch (SFT, reward model, DPO)",
    "optimizer.lr": "learning rate",
    "trainer.max_epochs": "passes over the data; of algorithms that sample: iterations",
    "trainer.devices": "processes on this machine",
    "trainer.strategy": "auto, ddp, ...",
    "trainer.precision": "32-true, bf16-mixed, bf16-true",
    "trainer.accumulate_grad_batches": "batches per optimiser step, or micro-batches per minibatch",
    "rollout.batch_size": "prompts per iteration and process",
    "rollout.samples_per_prompt": "responses to each prompt",
    "rollout.max_new_tokens": "tokens of a response, at most",
    "rollout.temperature": "of sampling",
    "rollout.server": "PPO, rollout=vllm: address of a running `vllm serve`",
    "reward.function | model | components": "PPO: dotted path of a Python function | reward model | weighted sum",
    "algorithm.kl.kind": "PPO: adaptive | fixed | multiplicative coefficient",
    "algorithm.kl.coef": "PPO: (initial) coefficient of the KL term, 1 / nats",
    "algorithm.kl.target": "PPO: KL per response (a sum over its tokens), nats",
    "algorithm.kl.horizon": "PPO: of the adaptive controller, in responses",
    "algorithm.kl.placement": "PPO: the KL term in the token rewards (reward) or in the loss (loss)",
    "algorithm.clip_range, gamma, lam": "PPO: ratio clip, discount, GAE lambda",
    "algorithm.ppo_epochs, num_minibatches": "PPO: passes over a rollout, optimiser steps per pass",
    "algorithm.target_kl": "PPO: ends an iteration's updates early, nats per token",
    "algorithm.beta, loss_type": "DPO: strength of the KL term, sigmoid | ipo | hinge | ...",
}


def train_help(config_dir: str | None = None) -> str:
    """The page of rlhf-train."""
    return f"""rlhf-train: train a language model from human feedback.

usage: rlhf-train [group=option ...] [key=value ...]

examples
  rlhf-train experiment=sft_demo                          the embedded world; needs no files and no network
  rlhf-train experiment=ppo_demo algorithm.kl.target=3 optimizer.lr=1e-5
  rlhf-train experiment=sft model.path=gpt2 data.train=my_rows.jsonl
  rlhf-train experiment=ppo model.path=outputs/sft/... data.train=prompts.jsonl reward.function=my_package.my_reward
  rlhf-train experiment=ppo_demo explain=true             the batch arithmetic, nothing is trained
  rlhf-train experiment=ppo_demo ckpt=last                go on where a run was stopped
  rlhf-train -m experiment=ppo_demo algorithm.kl.target=2,4,8     a sweep, one run a value
  rlhf-train experiment=ppo_demo --cfg job                the composed config
  rlhf-train --config-dir my_conf experiment=mine         your own config folder beside the project's

groups (group=option)
{_groups(config_dir)}

algorithms (algorithm=option)
{key_table(_titles(config_dir))}

keys learnt once (key=value; every key is in --cfg job)
{key_table(KEYS)}

A run folder holds config.yaml, checkpoints/, metrics.jsonl, summary.json and model/, a Hugging Face folder that a later
stage, or any other tool, takes as its model. Metrics also go to MLflow:
mlflow ui --backend-store-uri sqlite:///outputs/mlflow.db
Wrong input ends with one line and exit code 2, before anything is loaded."""


def pipeline_help(config_dir: str | None = None) -> str:
    """The page of rlhf-pipeline."""
    keys = {
        "seed": "of every stage",
        "run_dir": "stage folders, summary.json and the report go here",
        "from": "a stage: those before it are taken as they are in run_dir",
        "rounds": "how often the stages of `round` follow; round.<stage>.<key>: any key of that stage in every round",
        "labelers": "of pipelines with rounds: " + " | ".join(options("labelers", config_dir)),
        "explain": "true: print the batch arithmetic of every stage and stop",
        "logger": "of every stage: " + " | ".join(options("logger", config_dir)),
        "stages.<stage>.<key>": "any key of rlhf-train, for that stage",
        "stages.<stage>.experiment": "the experiment of a stage",
        "stages.<stage>.model_from, reward_from": "the earlier stages it begins from",
        "evaluation.*": "prompts, baseline, reference, gold and proxy reward, sampling, dtype",
    }
    return f"""rlhf-pipeline: several stages as one run, each from the run folders of earlier ones, then an evaluation.

usage: rlhf-pipeline pipeline=<option> [key=value ...]

examples
  rlhf-pipeline pipeline=demo
  rlhf-pipeline pipeline=demo seed=1 run_dir=outputs/demo1 stages.ppo.algorithm.kl.target=3
  rlhf-pipeline pipeline=demo from=ppo                    keep the earlier stages of outputs/demo
  rlhf-pipeline pipeline=demo '~stages.dpo'               without a stage
  rlhf-pipeline pipeline=rounds rounds=3                  collect, label, reward model, PPO, three times

pipelines
{key_table({"pipeline": ", ".join(options("pipeline", config_dir))})}

keys (key=value)
{key_table(keys)}

All stages are checked before the first one starts. The end is a table, summary.json and report.html in run_dir."""


def evaluate_help(config_dir: str | None = None) -> str:
    """The page of rlhf-evaluate."""
    keys = {
        "policies": "{name: run folder, Hugging Face folder or hub name, ...}",
        "prompts": "held-out rows with a prompt",
        "baseline": "the policy that win rates are against",
        "reference": "the policy that the KL is to; default: the baseline",
        "gold.function, gold.model": "the true reward, where it is known",
        "proxy.function, proxy.model": "the reward that was trained on",
        "judge.function, judge.model, judge.url": "compares responses with the baseline's, in both orders",
        "refusals": "rows of prompt, response, refused: the error of the rule that sees refusals",
        "best_of, course": "best-of-n of the baseline beside the training in a run folder, in the report",
        "self_bleu": "responses of each policy that are compared with each other",
        "rewards, preferences, category": "accuracy of rewards on preference pairs by category; needs no policies",
        "samples_per_prompt, max_new_tokens, temperature, batch_size, seed": "how responses are sampled",
        "dtype, attn_implementation": "of policies and reference; gold.dtype, proxy.dtype: of a reward model",
        "run_dir": "for the report and summary.json; default outputs/evaluate/<time>",
    }
    return f"""rlhf-evaluate: compare policies on held-out prompts.

usage: rlhf-evaluate policies={{...}} prompts=<file> baseline=<name> [key=value ...]

example
  rlhf-evaluate 'policies={{sft:outputs/demo/sft,ppo:outputs/demo/ppo}}' baseline=sft \\
    prompts=outputs/demo/world/prompts_test.jsonl gold.function=rlhf_lightning.simulation.gold_reward

  rlhf-evaluate 'rewards={{demo:{{model:outputs/demo/reward}}}}' preferences=outputs/demo/world/preferences_test.jsonl

keys (key=value)
{key_table(keys)}

Reports, a policy: mean gold and proxy score, win rate against the baseline with its 95% interval, KL to the reference,
length, distinct-1 and -2, EOS rate, and refusals of unsafe and of harmless prompts where rows have a `kind`."""


def plan_help(config_dir: str | None = None) -> str:
    """The page of rlhf-plan."""
    keys = {
        "device_gb": "GiB of one device; default 80",
        "model.path": "a folder with a config.json, the file itself, a run folder or a hub name; no weights are read",
        "pipeline": "a pipeline: every stage is planned",
        "every key of rlhf-train": "data.train may be left out",
    }
    return f"""rlhf-plan: the memory that a run needs on each device, and what to change if it does not fit.

usage: rlhf-plan [group=option ...] [key=value ...] [device_gb=80]

examples
  rlhf-plan experiment=sft model.path=my_model/config.json
  rlhf-plan experiment=dpo model.path=my_model model/adapter=lora model/quantization=nf4 device_gb=24
  rlhf-plan experiment=ppo model.path=my_model reward.model=my_reward_model trainer.devices=8
  rlhf-plan pipeline=instructgpt stages.sft.model.path=my_model

keys (key=value)
{key_table(keys)}

experiments: {", ".join(options("experiment", config_dir))}

Two tables in GiB: weights, optimiser state and gradients of each role (policy, reference, value head or critic, reward
model), and what each phase of the run adds to them (activations, KV cache, logits). Rows are taken to be as long as
data.max_length (PPO: max_prompt_length + max_new_tokens) lets them be."""


def export_help(config_dir: str | None = None) -> str:
    """The page of rlhf-export."""
    keys = {
        "run": "the folder of a finished training run",
        "to": "the folder to write; it must not exist, or be empty",
        "form": "merged: a whole model, a LoRA run's adapter added to its base | adapter: the adapter alone",
        "dtype": "float32 | bfloat16 | float16; default: as the run trained it",
        "attn_implementation": "to load the model with; default: what the family has",
        "overwrite": "true: replace a model that is there already",
    }
    return f"""rlhf-export: a run's model as a folder that plain transformers or peft loads, with a model card.

usage: rlhf-export run=<run folder> to=<new folder> [key=value ...]

examples
  rlhf-export run=outputs/demo/ppo to=my_model
  rlhf-export run=outputs/demo/ppo to=my_model dtype=bfloat16 overwrite=true
  rlhf-export run=outputs/my/lora to=my_adapter form=adapter

keys (key=value)
{key_table(keys)}

The folder holds weights, tokenizer with its chat template, generation config, and README.md: what the model is, its
data, config, final metrics, the runs it went through, and the lines of Python that load it. An error leaves `to` as it
was."""


def track_help(config_dir: str | None = None) -> str:
    """The page of rlhf-track."""
    keys = {
        "run": "the folder of a training run, of a pipeline with its stages, or of several runs (a sweep)",
        "tracking_uri": "the MLflow store; default: the run's own (give it again if it has a password)",
    }
    return f"""rlhf-track: sends runs to their MLflow store again, where the store has missed a part of them.

usage: rlhf-track run=<folder> [key=value ...]

examples
  rlhf-track run=outputs/demo/ppo
  rlhf-track run=outputs/demo              a pipeline, its stages under it
  rlhf-track run=outputs/my_sweep          every run below
  rlhf-track run=outputs/demo/ppo tracking_uri=http://server:5000

keys (key=value)
{key_table(keys)}

A store that does not answer does not stop a run: metrics.jsonl in the run folder has everything. What the store has
already is not sent twice; a model that was to be registered becomes a version now."""


def chat_help(config_dir: str | None = None) -> str:
    """The page of rlhf-chat."""
    keys = {
        "model": "run folder, Hugging Face folder or hub name",
        "compare_with": "a second model, which answers the same",
        "system": "the system message, where the tokenizer has a chat template",
        "temperature": "of sampling; 0: the most likely token",
        "max_new_tokens": "tokens of an answer, at most",
        "seed": "the same seed and the same lines give the same answers",
        "dtype, attn_implementation": "of the networks; default: the checkpoint's, and what the family has",
    }
    return f"""rlhf-chat: talk to a model in the terminal.

usage: rlhf-chat model=<folder or name> [key=value ...]

examples
  rlhf-chat model=outputs/demo/ppo
  rlhf-chat model=outputs/demo/ppo compare_with=outputs/demo/sft temperature=0
  echo 'how do i fix the lamp?' | rlhf-chat model=my_model

keys (key=value)
{key_table(keys)}

With a chat template the model remembers the conversation; without one each line is completed alone. /reset forgets
what was said, /exit (or Ctrl-D) leaves; Ctrl-C ends an answer."""


def options(group: str, config_dir: str | None = None) -> list[str]:
    """The options of a config group, the user's own folder included."""
    folders = [conf_dir(), *([Path(config_dir)] if config_dir else [])]
    return sorted({file.stem for folder in folders for file in (folder / group).glob("*.yaml")})


def _titles(config_dir: str | None) -> dict[str, str]:
    """Every option of the group `algorithm`, and what its class calls itself."""
    import_from_working_folder()
    titles = {}
    for folder in (conf_dir(), *([Path(config_dir)] if config_dir else [])):
        for file in sorted((folder / "algorithm").glob("*.yaml")):
            target = re.search(r"^_target_: *([\w.]+)", file.read_text(encoding="utf-8"), re.MULTILINE)
            if target is not None:
                titles[file.stem] = declared(target[1]).title or target[1]
    return titles


def _groups(config_dir: str | None) -> str:
    own = {path.name for path in Path(config_dir).iterdir() if path.is_dir()} if config_dir else set()
    rows = {}
    for group in [*GROUPS, *sorted(own - set(GROUPS) - {"pipeline"})]:
        names = ", ".join(options(group, config_dir))
        meaning = GROUPS.get(group, "")
        rows[group] = f"{names}  ({meaning})" if meaning else names
    return key_table(rows)


def key_table(rows: dict[str, str]) -> str:
    """Names and what they mean, in two columns."""
    width = min(40, max(map(len, rows)))
    lines = []
    for name, text in rows.items():
        wrapped = textwrap.wrap(re.sub(r"\s+", " ", text), 116 - width) or [""]
        lines.append(f"  {name:<{width}}  {wrapped[0]}")
        lines += [" " * (width + 4) + line for line in wrapped[1:]]
    return "\n".join(lines)
