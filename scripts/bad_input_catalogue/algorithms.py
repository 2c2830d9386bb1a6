"""Algorithms, their rows, averages, and the best of several samples."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bad_input_catalogue.case import EVALUATE, PPO, TINY, Case, changed, nothing, writes
from bad_input_catalogue.fixtures import edit_json, write_rows

OWN = """
import asyncio

async def hangs(prompt, response, **columns): await asyncio.sleep(60)
async def fails(prompt, response, **columns): raise RuntimeError("the service says no")
async def words(prompt, response, **columns): return "good"
def fewer_tokens(completions, completion_ids, **columns): return [[1.0] * 99] * len(completions)
def mixed(prompts, responses, **columns): return [1.0, *([[1.0]] * (len(responses) - 1))]
def needs(completions, ground_truth, **kwargs): return [1.0] * len(completions)
def fine(completions, **kwargs): return [1.0] * len(completions)
def cost(prompts, responses, **columns): return [float("inf")] * len(responses)
def score(prompts, responses, **columns): return [float(len(each)) for each in responses]
"""


def _sampling(algorithm: str, *words: str) -> list[str]:
    """Return the words of a tiny run of an algorithm that samples, of two answers per prompt."""
    base = [word for word in PPO if not word.startswith("algorithm.")]
    passes = ["algorithm.num_minibatches=1", "algorithm.ppo_epochs=1", "rollout.samples_per_prompt=2"]
    return changed([*base, *passes], f"experiment={algorithm}", "rollout.batch_size=2", *words)


def _offline(algorithm: str, *words: str) -> list[str]:
    base = [f"experiment={algorithm}", "model.path=model", "data.train=bad.jsonl", "data.val_fraction=0"]
    return [*base, "scheduler=constant", "trainer.max_epochs=1", *TINY, *words]


def _row(name: str, algorithm: str, row: Any, names: str, fast: bool = False) -> Case:
    prepare = writes("bad.jsonl", f"{json.dumps(row)}\n")
    return Case(f"{algorithm}: {name}", "train", _offline(algorithm), names, prepare, fast=fast)


def _setting(algorithm: str, word: str, names: str = "", fast: bool = False) -> Case:
    key = word.partition("=")[0].lstrip("+")
    return Case(f"{algorithm}: {word}", "train", _sampling(algorithm, word), names or rf"{key}\b", fast=fast)


def _own(name: str, *words: str, names: str, fast: bool = False) -> Case:
    given = changed(_sampling("grpo"), *words)
    return Case(f"reward of one's own: {name}", "train", given, names, writes("own.py", OWN), fast=fast)


def _teacher(*words: str, names: str, name: str) -> Case:
    def rows(folder: Path) -> None:
        write_rows(
            folder / "bad.jsonl",
            [{"prompt": "how", "completion": " no"}, {"prompt": "how do i", "completion": " you can"}],
        )

    return Case(f"gkd: {name}", "train", _offline("gkd", *words), names, rows)


def _export(name: str, average: str, names: str, *words: str, prepare: Callable[[Path], object] = nothing) -> Case:
    return Case(f"average: {name}", "export", [f"average={average}", "to=out", *words], names, prepare)


def _second_run(folder: Path) -> None:
    import shutil

    shutil.copytree(folder / "run", folder / "other")
    edit_json("other/model/config.json", hidden_size=8)(folder)
    (folder / "other/model/hashes.json").unlink()


STEPS = {"prompt": "how do i", "completions": [" you", " can"], "labels": [True, False]}
REWARDED = {"prompt": "how do i", "completion": " you can", "reward": 1.0}
ALGORITHMS = [
    _row("fewer labels than steps", "process_reward", {**STEPS, "labels": [True]}, r"bad\.jsonl.*1.*label", fast=True),
    _row("labels that are words", "process_reward", {**STEPS, "labels": ["yes", "no"]}, r"bad\.jsonl.*labels"),
    _row("labels that are fractions", "process_reward", {**STEPS, "labels": [0.5, 1]}, r"bad\.jsonl.*labels"),
    _row("one text instead of steps", "process_reward", {**STEPS, "completions": "you can"}, r"completions"),
    _row("no steps", "process_reward", {**STEPS, "completions": [], "labels": []}, r"bad\.jsonl.*1"),
    _row("no labels", "process_reward", {"prompt": "how", "completions": [" you"]}, r"labels"),
    _row("a step that is a number", "process_reward", {**STEPS, "completions": [" you", 3]}, r"completions"),
    _row("no rewards", "ilql", {"prompt": "how do i", "completion": " you can"}, r"reward", fast=True),
    _row("a reward that is a word", "ilql", {**REWARDED, "reward": "good"}, r"bad\.jsonl.*reward"),
    _row("a reward that is null", "ilql", {**REWARDED, "reward": None}, r"bad\.jsonl.*reward"),
    _row("a reward that is infinite", "ilql", {**REWARDED, "reward": 1e999}, r"bad\.jsonl.*(reward|Infinity)"),
    _row("a reward beyond float32", "ilql", {**REWARDED, "reward": 1e39}, r"bad\.jsonl.*reward"),
    _row("a reward that is true", "ilql", {**REWARDED, "reward": True}, r"bad\.jsonl.*reward"),
    _row("a list of rewards", "ilql", {**REWARDED, "reward": [1.0, 2.0]}, r"bad\.jsonl.*reward"),
    _row("an empty completion", "ilql", {**REWARDED, "completion": ""}, r"bad\.jsonl.*completion"),
    _teacher(name="no teacher", names=r"algorithm\.teacher"),
    _teacher("algorithm.teacher=nowhere/x", name="a teacher that is missing", names=r"algorithm\.teacher.*nowhere/x"),
    _teacher("algorithm.teacher=scorer", name="a reward model as teacher", names=r"algorithm\.teacher"),
    _teacher("algorithm.teacher=model", "algorithm.lmbda=1.5", name="a share above 1", names=r"algorithm\.lmbda"),
    _teacher("algorithm.teacher=model", "algorithm.beta=-0.1", name="a beta below 0", names=r"algorithm\.beta"),
    _teacher(
        "algorithm.teacher=model", "algorithm.max_new_tokens=100000", name="more than fits", names=r"max_new_tokens"
    ),
    _teacher("algorithm.teacher=model", "algorithm.temperature=0", name="no temperature", names=r"temperature"),
    _setting("dapo", "algorithm.accuracy=nothing"),
    _setting("dapo", "algorithm.max_tries=0"),
    _setting("dapo", "algorithm.accuracy_threshold=nan"),
    _setting("dapo", "rollout.samples_per_prompt=1"),
    _setting("dapo", "algorithm.clip_range_high=-0.1"),
    _setting("gspo", "algorithm.ratio=word"),
    _setting("gspo", "algorithm.aggregation=sequences"),
    _setting("cispo", "algorithm.clip_range_high=0"),
    _setting("cispo", "algorithm.loss_type=cispoo"),
    _setting("online_dpo", "rollout.samples_per_prompt=1"),
    _setting("online_dpo", "algorithm.loss_type=robust"),
    _setting("online_dpo", "algorithm.beta=0"),
    _setting("raft", "rollout.samples_per_prompt=1"),
    _setting("raft", "algorithm.select=best"),
    _setting("nlpo", "algorithm.mask_top_p=1.5"),
    _setting("nlpo", "algorithm.mask_top_p=0"),
    _setting("nlpo", "algorithm.mask_refresh=0"),
    _setting("nlpo", "rollout=vllm", r"rollout"),
    _setting("ppo_lagrangian", "cost.function=null", r"cost\.(function|model)"),
    _setting("ppo_lagrangian", "cost.model=scorer", r"cost\.model|cost"),
    _setting("ppo_lagrangian", "cost.function=mine.nan", r"mine\.nan.*nan"),
    _setting("ppo_lagrangian", "+cost.functionn=mine.score", r"cost\.functionn"),
    _own("async that hangs", "reward.function=own.hangs", "reward.timeout=0.2", names=r"own\.hangs.*0\.2", fast=True),
    _own("async that fails", "reward.function=own.fails", "reward.attempts=1", names=r"own\.fails.*says no"),
    _own("async that returns words", "reward.function=own.words", names=r"own\.words.*good"),
    _own("another number of tokens", "reward.function=own.fewer_tokens", names=r"own\.fewer_tokens"),
    _own("numbers and lists", "reward.function=own.mixed", "rollout.batch_size=4", names=r"own\.mixed"),
    _own("a column that is missing", "reward.function=own.needs", names=r"own\.needs.*ground_truth"),
    _own(
        "as many weights as functions",
        "reward.function=null",
        "reward.functions=[own.fine,own.score]",
        "reward.weights=[1.0]",
        names=r"reward\.weights",
    ),
    _own(
        "a weight that is a word",
        "reward.function=null",
        "reward.functions=[own.fine]",
        "reward.weights=[much]",
        names=r"reward\.weights",
    ),
    _own("no functions", "reward.function=null", "reward.functions=[]", names=r"reward\.functions|reward"),
    _own("no concurrency", "reward.function=own.fine", "reward.concurrency=0", names=r"reward\.concurrency"),
    _own("no attempts", "reward.function=own.fine", "reward.attempts=0", names=r"reward\.attempts"),
    _own("a timeout of nothing", "reward.function=own.fine", "reward.timeout=0", names=r"reward\.timeout"),
    _own(
        "a dead server",
        "reward.function=null",
        "reward.url=http://127.0.0.1:9/score",
        "reward.attempts=1",
        names=r"reward\.url.*127\.0\.0\.1:9",
    ),
    _own("an address without a scheme", "reward.function=null", "reward.url=localhost", names=r"reward\.url"),
    _own("an address of a file", "reward.function=null", "reward.url=file:///etc/passwd", names=r"reward\.url"),
    _own("no models", "reward.function=null", "reward.models=[]", names=r"reward\.models|reward"),
    _own("one model of several", "reward.function=null", "reward.models=[scorer]", names=r"reward\.models"),
    _own("a model that is missing", "reward.function=null", "reward.models=[scorer,nowhere/x]", names=r"nowhere/x"),
    _own(
        "a combination",
        "reward.function=null",
        "reward.models=[scorer,scorer]",
        "reward.combine=median",
        names=r"reward\.combine",
    ),
    _own(
        "a broken pattern",
        "reward.function=rlhf_lightning.rewards.format_match",
        "reward.arguments={pattern: '('}",
        names=r"pattern",
    ),
    _own("no pattern", "reward.function=rlhf_lightning.rewards.format_match", names=r"pattern"),
    _own(
        "a setting of a verifier",
        "reward.function=rlhf_lightning.rewards.exact_match",
        "reward.arguments={colum: answer}",
        names=r"reward\.arguments.*colum",
    ),
    _own(
        "a column of a verifier",
        "reward.function=rlhf_lightning.rewards.exact_match",
        names=r"column: the rows have no column 'answer'; their columns: none",
    ),
    _own("code without permission", "reward.function=rlhf_lightning.rewards.code_runs", names=r"run_code"),
    _own(
        "numbers per token, clipped",
        "reward.function=own.fine",
        "algorithm.shaping.clip=0",
        names=r"algorithm\.shaping\.clip",
    ),
    _own(
        "a length penalty below 0",
        "reward.function=own.fine",
        "algorithm.shaping.length_penalty=-1",
        names=r"length_penalty",
    ),
    _own(
        "a buffer longer than the length",
        "reward.function=own.fine",
        "algorithm.shaping.overlong_penalty=1",
        "algorithm.shaping.overlong_buffer=99",
        names=r"overlong_buffer",
    ),
    Case("ema: a decay of 1", "train", [*_sampling("grpo"), "callbacks=ema", "callbacks.average.decay=1.0"], r"decay"),
    Case(
        "ema: a decay above 1", "train", [*_sampling("grpo"), "callbacks=ema", "callbacks.average.decay=1.5"], r"decay"
    ),
    _export("of nothing", "[]", r"average"),
    _export("of one", "[run]", r"average"),
    _export("of a missing run", "[run,nowhere]", r"average.*nowhere"),
    _export("of a folder without a run", "[run,model]", r"average.*model"),
    _export("of different models", "[run,other]", r"average.*other", prepare=_second_run),
    _export("with one weight", "[run,run]", r"weights|average", "weights=[1.0]"),
    _export("with a weight below 0", "[run,run]", r"weights|average", "weights=[2.0,-1.0]"),
    _export("beside a run", "[run,run]", r"average|run", "run=run"),
    Case("best of n: no reward", "evaluate", [*EVALUATE, "best_of=4"], r"reward|best_of"),
    Case("best of n: none", "evaluate", [*EVALUATE, "best_of=0", "reward.function=mine.score"], r"best_of"),
    Case("best of n: of half", "evaluate", [*EVALUATE, "best_of=1.5", "reward.function=mine.score"], r"best_of"),
    Case(
        "best of n: greedy",
        "evaluate",
        [*EVALUATE, "best_of=4", "reward.function=mine.score", "temperature=0"],
        r"best_of|temperature",
    ),
    Case("best of n: chat without a reward", "chat", ["model=model", "best_of=4"], r"reward|best_of"),
    Case(
        "best of n: chat with a policy as reward",
        "chat",
        ["model=model", "best_of=4", "reward.model=model"],
        r"reward\.model",
    ),
    Case("values: of a model without heads", "chat", ["model=model", "ilql_beta=1.0"], r"ilql_beta"),
    Case("values: not a number", "evaluate", [*EVALUATE, "ilql_beta=nan"], r"ilql_beta"),
    Case(
        "embeddings: a missing encoder",
        "evaluate",
        [*EVALUATE, "embeddings.model=nowhere/x"],
        r"embeddings\.model.*nowhere/x",
    ),
]
