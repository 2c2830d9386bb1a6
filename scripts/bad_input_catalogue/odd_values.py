"""Odd values, words and functions, over all commands: what a hostile user types and broken rewards return."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from bad_input_catalogue.case import DPO, EVALUATE, PPO, REWARD, SFT, Case, changed, writes

PLAN = ["experiment=sft", "model.path=model"]
EXPORT, CHAT, TRACK = ["run=run", "to=out"], ["model=model"], ["run=run", "tracking_uri=sqlite:///m.db"]
HUGE = "1" + "0" * 400


def _train(name: str, words: list[str], names: str, prepare: Callable[[Path], object] | None = None) -> Case:
    return Case(f"odd: {name}", "train", words, names, prepare or (lambda folder: None))


def _function(name: str, body: str, names: str = r"odd\.fn") -> Case:
    """Return a case with a reward function in its own module."""
    return Case(
        f"odd reward: {name}",
        "train",
        changed(PPO, "reward.function=odd.fn"),
        names,
        writes("odd.py", body),
    )


def _returns(name: str, expression: str, names: str = r"odd\.fn") -> Case:
    return _function(name, f"import numpy, torch\ndef fn(prompts, responses, **columns): return {expression}\n", names)


def _raises(name: str, statement: str, names: str = r"odd\.fn") -> Case:
    return _function(name, f"def fn(prompts, responses, **columns):\n    {statement}\n", names)


def _config(name: str, content: str | bytes, names: str) -> Case:
    words = ["--config-dir", "conf", "experiment=mine"]
    return Case(f"odd config: {name}", "train", words, names, writes("conf/experiment/mine.yaml", content))


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefg", "bcdefgh", strict=True)
)
ODD_VALUES = [
    *(
        Case(f"odd: rlhf-{command} with an unknown key", command, [*words, "nonsense=1"], r"nonsense", fast=True)
        for command, words in (
            ("plan", PLAN),
            ("evaluate", EVALUATE),
            ("export", EXPORT),
            ("chat", CHAT),
            ("track", TRACK),
            ("agreement", []),
            ("judge", ["judge.model=model"]),
            ("pipeline", ["pipeline=demo"]),
        )
    ),
    *(
        Case(f"odd: rlhf-{command} with an unknown option", command, ["--nonsense"], r"nonsense")
        for command in ("train", "plan", "evaluate", "export", "chat", "track", "agreement", "judge", "pipeline")
    ),
    *(
        Case(
            f"odd: rlhf-{command} without arguments",
            command,
            [],
            r"missing|\?\?\?|experiment|pipeline|no |feedback\.store",
        )
        for command in ("train", "plan", "evaluate", "export", "chat", "track", "agreement", "judge", "pipeline")
    ),
    _train("an empty key", [*SFT, "=1"], r"=1|key"),
    _train("an empty word", [*SFT, ""], r"word|key|=|empty"),
    _train("a space as a word", [*SFT, " "], r"word|key|=|empty"),
    _train("a plus on a key that is there", [*SFT, "+seed=1"], r"seed"),
    _train("a tilde on a key that does not exist", [*SFT, "~nonsense"], r"nonsense"),
    _train("a tilde on a section that is needed", [*SFT, "~model"], r"model"),
    _train("a tilde on the optimiser", [*SFT, "~optimizer"], r"optimizer"),
    _train("a tilde on the trainer", [*SFT, "~trainer"], r"trainer"),
    _train("a tilde on the data", [*SFT, "~data"], r"data"),
    _train("a section that is a number", [*SFT, "data=3"], r"data"),
    _train("a section that is a list", [*SFT, "trainer=[1]"], r"trainer"),
    _train("a section that is null", [*SFT, "model=null"], r"model"),
    _train("callbacks that are a list", [*SFT, "callbacks=[1]"], r"callbacks"),
    _train("a circular interpolation", [*changed(SFT), "name=${run_dir}", "run_dir=${name}"], r"name|run_dir"),
    _train("an interpolation to nowhere", [*SFT, "run_dir=${nope}"], r"run_dir|nope"),
    _train("an unknown resolver", [*SFT, "run_dir=${nope:1}"], r"run_dir|nope"),
    _train("an unbalanced quote", [*SFT, "run_dir='x"], r"run_dir"),
    _train("an unbalanced brace", [*SFT, "trainer={a:1"], r"trainer"),
    _train("a huge whole number", changed(SFT, f"seed={HUGE}"), r"seed"),
    _train("a huge learning rate", changed(SFT, f"optimizer.lr={HUGE}"), r"optimizer\.lr"),
    _train("a truth as a number", changed(SFT, "data.batch_size=true"), r"data\.batch_size"),
    _train("a number as a truth", changed(SFT, "model.dropout=2"), r"model\.dropout"),
    _train("a list as a path", changed(SFT, "model.path=[a]"), r"model\.path"),
    _train("a number as a path", changed(SFT, "model.path=3"), r"model\.path"),
    _train("an empty path", changed(SFT, "model.path=''"), r"model\.path"),
    _train("an empty path of rows", changed(SFT, "data.train=''"), r"data\.train"),
    _train("a seed beyond 32 bits", changed(SFT, "seed=99999999999"), r"seed"),
    _train("betas of one", [*SFT, "optimizer.betas=[1,1]"], r"optimizer|betas"),
    _train("betas that are too many", [*SFT, "optimizer.betas=[0.9,0.9,0.9]"], r"optimizer|betas"),
    _train("betas that are words", [*SFT, "optimizer.betas=[a,b]"], r"optimizer|betas"),
    _train("a negative weight decay", [*SFT, "optimizer.weight_decay=-1"], r"optimizer\.weight_decay"),
    _train("a run folder with a newline", [*SFT, '"run_dir=a\nb"'], r"run_dir|cannot be read"),
    _train("a run folder whose name is too long", [*SFT, f"run_dir={'a' * 300}"], r"run_dir"),
    _train("a run folder that is a device", [*SFT, "run_dir=/dev/null"], r"run_dir|/dev/null"),
    _train(
        "a run folder that is a dead link",
        [*SFT, "run_dir=dead"],
        r"run_dir|dead",
        lambda f: os.symlink("x/y", f / "dead"),
    ),
    _train(
        "a run folder in a link to itself",
        [*SFT, "run_dir=loop/x"],
        r"run_dir|loop",
        lambda f: os.symlink("loop", f / "loop"),
    ),
    _train("a name that is too long", changed(SFT, f"name={'a' * 300}"), r"name|run_dir"),
    _train("an empty name", changed(SFT, "name=''"), r"name"),
    _train("a name of dots", changed(SFT, "name=.."), r"name"),
    _train("a model path that is too long", changed(SFT, f"model.path={'a/' * 3000}"), r"model\.path"),
    _train("a rows path that is too long", changed(SFT, f"data.train={'a' * 3000}.jsonl"), r"data\.train"),
    _train("a checkpoint that is a device", [*SFT, "ckpt=/dev/null"], r"ckpt"),
    _train("a checkpoint that is a pipe", [*SFT, "ckpt=pipe"], r"ckpt", lambda f: os.mkfifo(f / "pipe")),
    _train("a checkpoint that is a model", [*SFT, "ckpt=model", "run_dir=new"], r"ckpt"),
    _train("a checkpoint whose path is too long", [*SFT, f"ckpt={'a' * 300}"], r"ckpt"),
    _train("devices that are a word", changed(SFT, "trainer.devices=many"), r"trainer\.devices"),
    _train("zero devices", changed(SFT, "trainer.devices=0"), r"trainer\.devices|devices"),
    _train("a device that does not exist", changed(SFT, "trainer.devices=[7]"), r"trainer\.devices|devices"),
    _train("zero nodes", [*SFT, "trainer.num_nodes=0"], r"trainer\.num_nodes"),
    _train("a strategy for a GPU", changed(SFT, "trainer.strategy=deepspeed"), r"strategy|deepspeed"),
    _train("a strategy that is a number", changed(SFT, "trainer.strategy=3"), r"trainer\.strategy"),
    _train("a precision that is a number", changed(SFT, "trainer.precision=7"), r"trainer\.precision"),
    _train("a profiler that is not", [*SFT, "trainer.profiler=psychic"], r"trainer\.profiler|profiler"),
    _train("a callback that is not one", [*SFT, "+callbacks.mine={_target_: builtins.dict}"], r"callbacks"),
    _train("a callback that is a number", [*SFT, "+callbacks.mine=3"], r"callbacks"),
    _train("a callback without a class", [*SFT, "+callbacks.mine={a: 1}"], r"callbacks"),
    _train("a callback that does not exist", [*SFT, "+callbacks.mine={_target_: mine.Nope}"], r"callbacks"),
    _train(
        "a callback with a wrong key",
        [*SFT, "+callbacks.mine={_target_: lightning.pytorch.callbacks.Timer, x: 1}"],
        r"callbacks",
    ),
    _train("a logger that is not one", [*changed(SFT, "logger=null"), "+logger={_target_: builtins.dict}"], r"logger"),
    _train("an optimiser that is not one", [*SFT, "optimizer._target_=builtins.dict"], r"optimizer"),
    _train("an optimiser that does not exist", [*SFT, "optimizer._target_=torch.optim.Nope"], r"optimizer"),
    _train("a scheduler that does not exist", [*SFT, "+scheduler._target_=nope.Nope"], r"scheduler"),
    _train("an algorithm that is not one", [*SFT, "algorithm._target_=builtins.dict"], r"algorithm"),
    _train("a data module that is not one", [*SFT, "data._target_=builtins.dict"], r"data"),
    _train("a target that is a number", [*SFT, "algorithm._target_=3"], r"algorithm"),
    _train("a target that is a list", [*SFT, "algorithm._target_=[a]"], r"algorithm"),
    _train("a prepare that does not exist", [*SFT, "+prepare={_target_: nope.fn}"], r"prepare"),
    _train(
        "a prepare that raises",
        [*SFT, "+prepare={_target_: odd.fn}"],
        r"prepare",
        writes("odd.py", "def fn(): return 1/0\n"),
    ),
    _train("a beta that is a word for DPO", changed(DPO, "algorithm.beta=warm"), r"algorithm\.beta"),
    _train("a negative limit of rows", [*REWARD, "data.limit=-1"], r"data\.limit"),
    Case("odd: plan for no memory", "plan", [*PLAN, "device_gb=-1"], r"device_gb"),
    Case("odd: plan for memory without an end", "plan", [*PLAN, "device_gb=.inf"], r"device_gb"),
    Case("odd: chat of no tokens", "chat", [*CHAT, "max_new_tokens=0"], r"max_new_tokens"),
    Case("odd: chat in an unknown type", "chat", [*CHAT, "dtype=int3"], r"dtype"),
    Case(
        "odd: chat with an unknown attention",
        "chat",
        [*CHAT, "attn_implementation=telepathy"],
        r"attn_implementation",
    ),
    Case("odd: chat compared with nothing", "chat", [*CHAT, "compare_with=nowhere/x/y"], r"compare_with"),
    Case("odd: chat with rows", "chat", ["model=rows.jsonl"], r"model"),
    Case("odd: export to a name that is too long", "export", ["run=run", f"to={'a' * 300}"], r"to\b"),
    Case("odd: export below a file", "export", ["run=run", "to=rows.jsonl/x"], r"to\b|rows\.jsonl"),
    Case("odd: export to a place that cannot be written", "export", ["run=run", "to=/proc/x/y"], r"to\b|/proc"),
    Case("odd: export of nothing", "export", ["run=''", "to=out"], r"run"),
    Case("odd: export into nothing", "export", ["run=run", "to=''"], r"to\b"),
    Case("odd: track a run that does not exist", "track", ["run=nowhere", "tracking_uri=sqlite:///m.db"], r"run"),
    Case("odd: track a model", "track", ["run=model", "tracking_uri=sqlite:///m.db"], r"run"),
    Case("odd: track to an invalid address", "track", ["run=run", "tracking_uri=gopher://x"], r"tracking_uri"),
    Case(
        "odd: track to a database that is text",
        "track",
        ["run=run", "tracking_uri=sqlite:///rows.jsonl"],
        r"tracking_uri|rows",
    ),
    _returns("a generator", "(1.0 for r in responses)"),
    _returns("a matrix", "numpy.zeros((len(responses), 2))"),
    _returns("a tensor with two columns", "torch.zeros(len(responses), 2)"),
    _returns("a single number", "1.0"),
    _returns("a tensor without a shape", "torch.tensor(1.0)"),
    _returns("an array without a shape", "numpy.array(1.0)"),
    _returns("too many", "[1.0] * 99"),
    _returns("none at all", "[]"),
    _returns("complex numbers", "[1j] * len(responses)"),
    _returns("an infinite score", "[float('inf')] * len(responses)"),
    _returns("a null among numbers", "[None] + [1.0] * (len(responses) - 1)"),
    _returns("a set", "set(range(len(responses)))"),
    _returns("bytes", "b'1' * len(responses)"),
    _returns("a class", "int"),
    _returns("an object whose length lies", "type('L', (), {'__len__': lambda s: len(responses)})()"),
    _raises("divides by zero", "return 1 / 0", r"odd\.fn.*division"),
    _raises("recurses for ever", "return fn(prompts, responses)", r"odd\.fn.*recursion"),
    _raises("asserts", "assert False, 'not so'", r"odd\.fn.*not so"),
    _raises("lacks a name", "return undefined_name", r"odd\.fn.*undefined_name"),
    _raises("lacks an attribute", "return prompts.nope", r"odd\.fn.*nope"),
    _raises("imports a missing module", "import nowhere_at_all", r"odd\.fn.*nowhere_at_all"),
    _raises("reads a file that does not exist", "open('not/there')", r"odd\.fn.*not/there"),
    _raises("calls quit", "raise SystemExit('bye')", r"odd\.fn"),
    _raises("says nothing", "raise ValueError", r"odd\.fn.*ValueError"),
    _raises("says several lines", "raise ValueError('first\\nsecond')", r"odd\.fn.*first"),
    _raises("stops iterating", "raise StopIteration", r"odd\.fn.*StopIteration"),
    _raises("raises a base exception", "raise type('Own', (BaseException,), {})('mine')", r"odd\.fn"),
    _function("a module of NUL bytes", "a = 1\0", r"odd"),
    _function("a module in latin-1", "# caf\xe9 \ndef fn(:", r"odd"),
    _function("a class that is not called so", "class fn:\n    pass\n"),
    _config("a bomb of aliases", BOMB, r"mine|config"),
    _config("an alias of nothing", "a: *b", r"mine\.yaml, line 1"),
    _config("no package", "seed: 2\nmodel: {path: model}", r"experiment|mine|seed|missing|package"),
    _config("a number", "3", r"mine|config|experiment"),
    _config("a text", "hello", r"mine|config|experiment"),
    _config("empty", "", r"missing|model\.path|data|experiment"),
    _config("two documents", "a: 1\n---\nb: 2", r"mine"),
    _config("a default that is itself", "# @package _global_\ndefaults:\n  - mine", r"mine|--config-dir: conf"),
    _config("defaults that are a word", "# @package _global_\ndefaults: hello", r"mine|defaults"),
    _config("a key that is a list", "? [1, 2]\n: 3", r"mine|key|config"),
    _config("a key that is null", "# @package _global_\n~: 3", r"mine|key|config|None|null"),
    _config("nested too deeply", "a: " + "[" * 3000 + "]" * 3000, r"mine|config"),
    _config("UTF-16", "seed: 1".encode("utf-16"), r"mine|config|seed"),
]
