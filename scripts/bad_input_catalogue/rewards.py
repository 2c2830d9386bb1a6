"""Rewards: functions, and sums of several."""

from __future__ import annotations

import shutil
from pathlib import Path

from bad_input_catalogue.case import PPO, Case, changed, writes
from bad_input_catalogue.fixtures import edit_json


def _function(name: str, function: str, names: str, fast: bool = False) -> Case:
    return Case(f"reward: {name}", "train", changed(PPO, f"reward.function={function}"), names, fast=fast)


def _components(name: str, components: str, names: str, fast: bool = False) -> Case:
    words = changed(PPO, "reward.function=null", f"reward.components={components}")
    return Case(f"components: {name}", "train", words, names, fast=fast)


def _process_model(folder: Path) -> None:
    shutil.copytree(folder / "scorer", folder / "steps")
    edit_json("steps/config.json", step_separator="\n")(folder)


REWARDS = [
    _function("raises", "mine.raises", r"mine\.raises.*no such thing", fast=True),
    _function("leaves", "mine.leaves", r"mine\.leaves.*exit", fast=True),
    _function("a dict", "mine.maps", r"mine\.maps.*dict"),
    _function("one text of digits", "mine.digits", r"mine\.digits.*str"),
    _function("too few", "mine.short", r"mine\.short.*4"),
    _function("nothing", "mine.nothing", r"mine\.nothing.*NoneType"),
    _function("NaN", "mine.nan", r"mine\.nan.*nan"),
    _function("texts", "mine.texts", r"mine\.texts.*'1\.0'"),
    _function("nested", "mine.nested", r"mine\.nested"),
    _function("huge", "mine.huge", r"mine\.huge"),
    _function("takes no columns", "mine.no_columns", r"mine\.no_columns.*\*\*columns"),
    _function("is a number", "mine.NUMBER", r"mine\.NUMBER"),
    _function("missing", "mine.nope", r"nope"),
    _function("module missing", "nowhere.fn", r"nowhere"),
    _function("no dots", "score", r"reward\.function"),
    Case(
        "reward: a syntax error",
        "train",
        changed(PPO, "reward.function=broken.fn"),
        r"broken",
        writes("broken.py", "def fn(:\n"),
        fast=True,
    ),
    Case(
        "reward: an import that fails",
        "train",
        changed(PPO, "reward.function=broken.fn"),
        r"broken.*nowhere_at_all",
        writes("broken.py", "import nowhere_at_all\n"),
    ),
    Case(
        "reward: a module that leaves",
        "train",
        changed(PPO, "reward.function=broken.fn"),
        r"broken.*exit",
        writes("broken.py", "raise SystemExit(0)\n"),
    ),
    _components("a wrong key", "{a: {functoin: mine.score}}", r"reward\.components", fast=True),
    _components(
        "a weight that is a word", "{a: {function: mine.score, weight: two}}", r"reward\.components\.a\.weight"
    ),
    _components(
        "a weight that is a text", "{a: {function: mine.score, weight: '2'}}", r"reward\.components\.a\.weight"
    ),
    _components("none", "{}", r"reward"),
    _components("a part without a source", "{a: {weight: 1}}", r"reward\.components\.a"),
    _components("a part with two sources", "{a: {function: mine.score, model: scorer}}", r"reward\.components\.a"),
    _components("a part that is missing", "{a: {model: nowhere/x}}", r"reward\.components\.a\.model"),
    _components("a part that is a word", "{a: mine.score}", r"reward\.components"),
    Case("reward: two sources", "train", [*PPO, "reward.model=scorer"], r"reward"),
    Case("reward: standardised function", "train", [*PPO, "reward.standardize=true"], r"reward\.standardize"),
    *(
        Case(
            f"reward: {name}",
            "train",
            changed(PPO, "reward.function=own.fn", "rollout.samples_per_prompt=2"),
            rf"reward\.function: own\.fn.*{names}",
            writes("own.py", f"import asyncio\n{content}\n"),
        )
        for name, content, names in (
            ("cancelled", "async def fn(prompt, response, **c): raise asyncio.CancelledError", "CancelledError"),
            (
                "cancels every task",
                "async def fn(prompt, response, **c):\n    for t in asyncio.all_tasks(): t.cancel()\n"
                "    await asyncio.sleep(0)",
                "CancelledError",
            ),
            ("out of memory", "def fn(prompts, responses, **c): raise MemoryError('no')", "out of memory"),
            (
                "a column of another length",
                "def fn(completions, log_extra, **k): log_extra('a', [1]); return [1.0] * len(completions)",
                "column 'a' has 1 values",
            ),
            (
                "a metric that is NaN",
                "def fn(completions, log_metric, **k): log_metric('a', float('nan')); return [1.0] * len(completions)",
                "a is nan",
            ),
            (
                "a metric with a path for a name",
                "def fn(completions, log_metric, **k): log_metric('../x', 1.0); return [1.0] * len(completions)",
                "name '../x'",
            ),
        )
    ),
    *(
        Case(
            f"reward: an address {name}",
            "train",
            changed(PPO, "reward.function=null", f"reward.url='{url}'"),
            rf"reward\.url: found.*{names}",
            fast=name == "with a port beyond 65535",
        )
        for name, url, names in (
            ("with a port beyond 65535", "http://127.0.0.1:73713/ok", "port"),
            ("with a port of letters", "http://h:abc", "port"),
            ("with a password", "http://u:p@127.0.0.1:8177/404", r"reward\.key_env"),
            ("with a space", "http://127.0.0.1:8177/a b", "%20"),
            ("with an open bracket", "http://[::1", "its host, or its port"),
            ("with a letter beyond ASCII", "http://127.0.0.1/\u00e9", "percent encoding"),
            ("with an empty label", "http://a..b/", "host"),
        )
    ),
    Case(
        "reward: a server's port beyond 65535",
        "train",
        changed(PPO, "rollout=vllm", "rollout.server=http://127.0.0.1:73713"),
        r"rollout\.server.*port",
    ),
    Case(
        "reward: weights of 0",
        "train",
        changed(PPO, "reward.function=null", "reward.functions=[mine.score,mine.short]", "reward.weights=[0,0]"),
        r"reward\.weights",
    ),
    _components("a weight of 0", "{a: {function: mine.score, weight: 0}}", r"reward\.components\.a\.weight"),
    Case(
        "reward: a process reward model among others",
        "train",
        changed(PPO, "reward.function=null", "reward.models=[steps,scorer]"),
        r"reward\.models: steps .*common unit",
        _process_model,
    ),
]
