"""Rewards: functions, and sums of several."""

from __future__ import annotations

from bad_input_catalogue.case import PPO, Case, changed, writes


def _function(name: str, function: str, names: str, fast: bool = False) -> Case:
    return Case(f"reward: {name}", "train", changed(PPO, f"reward.function={function}"), names, fast=fast)


def _components(name: str, components: str, names: str, fast: bool = False) -> Case:
    words = changed(PPO, "reward.function=null", f"reward.components={components}")
    return Case(f"components: {name}", "train", words, names, fast=fast)


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
    _function("takes one argument", "mine.one_argument", r"mine\.one_argument"),
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
]
