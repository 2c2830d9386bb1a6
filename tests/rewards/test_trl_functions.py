"""Reward functions written for TRL run unchanged: its parameters, its conversations, its None, its weights."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rlhf_lightning.commands import train
from rlhf_lightning.commands.composition import compose_config
from rlhf_lightning.config.source_lookup import check_reward_calls
from rlhf_lightning.data import PromptRow
from rlhf_lightning.errors import UserError
from rlhf_lightning.rewards import FunctionReward, SampledTokens, WeightedSum, make_reward, score_samples
from tests.tiny import tiny_tokenizer

HERE = __name__


# ---- the examples of TRL's page on GRPO, written from their descriptions


def longer_in_tokens(completion_ids, **kwargs):
    """Return the number of tokens of each completion."""
    return [float(len(ids)) for ids in completion_ids]


def think_then_answer(completions, **kwargs):
    """Return 1 for conversations whose completion has the form <think>...</think><answer>...</answer>."""
    texts = [completion[0]["content"] for completion in completions]
    return [float(bool(re.match(r"^<think>.*?</think><answer>.*?</answer>$", text))) for text in texts]


def boxed_answer(completions, ground_truth, **kwargs):
    r"""Return 1 where the content of \boxed{} is the column `ground_truth`."""
    found = [re.search(r"\\boxed\{(.*?)\}", completion) for completion in completions]
    said = [match.group(1) if match else "" for match in found]
    return [1.0 if one == other else 0.0 for one, other in zip(said, ground_truth, strict=True)]


def math_task(prompts, completions, task, **kwargs):
    """Return 1 or -1 for prompts of the task `math`, and None for others."""
    return [
        (1.0 if "4" in completion else -1.0) if each == "math" else None
        for completion, each in zip(completions, task, strict=True)
    ]


def coding_task(prompts, completions, task, **kwargs):
    return [
        (1.0 if "def" in completion else -1.0) if each == "coding" else None
        for completion, each in zip(completions, task, strict=True)
    ]


# ---- others


def everything(prompts, completions, completion_ids, **kwargs):
    SEEN.update(kwargs, prompts=prompts, completions=completions, completion_ids=completion_ids)
    kwargs["log_metric"]("tidy", 0.25)
    kwargs["log_metric"]("tidy", 0.75)
    kwargs["log_extra"]("length", [len(ids) for ids in completion_ids])
    return [0.0] * len(prompts)


def only_keywords(**kwargs):
    return [float(len(each)) for each in kwargs["completions"]]


def needs_progress(completions, trainer_state, **kwargs):
    return [trainer_state.global_step / trainer_state.max_steps] * len(completions)


def nothing_applies(completions, **kwargs):
    return [None] * len(completions)


def ours(prompts, responses, **columns):
    return [1.0 if columns["ended"][i] else None for i in range(len(responses))]


def logs(completions, metric, extra, **kwargs):
    if metric[0] is not None:
        kwargs["log_metric"](*metric[0])
    if extra[0] is not None:
        kwargs["log_extra"](*extra[0])
    return [1.0] * len(completions)


def needs_memory(completions, **kwargs):
    raise MemoryError("no")


SEEN: dict[str, Any] = {}


def sampled(*lengths: int) -> SampledTokens:
    return SampledTokens(None, [[1]] * len(lengths), [[5] * n for n in lengths])


def test_longer_completions() -> None:
    reward = FunctionReward(f"{HERE}.longer_in_tokens")
    assert reward(["The sky is", "The sun is"], [" blue.", " in the sky."], sampled=sampled(2, 4)) == [2.0, 4.0]


def test_a_format_of_conversations() -> None:
    good = "<think>The sum of 1 and 2 is 3, times 4 is 12.</think><answer>12</answer>"
    asked = [[{"role": "user", "content": "What is (1 + 2) * 4?"}]] * 2
    reward = FunctionReward(f"{HERE}.think_then_answer")
    assert reward(["rendered"] * 2, [good, "It is 12."], messages=asked) == [1.0, 0.0]


def test_a_reference_in_a_column() -> None:
    texts = [r" The solution is \boxed{2}.", r" The solution is \boxed{6}."]
    reward = FunctionReward(f"{HERE}.boxed_answer")
    assert reward(["2x + 3 = 7", "3x - 5 = 10"], texts, ground_truth=["2", "5"]) == [1.0, 0.0]


def test_functions_for_several_tasks_with_weights() -> None:
    """TRL sums over the functions that apply: sum of w_i r_i without the None."""
    asked = {"prompts": ["a", "b", "c", "d"], "responses": ["4", "def f", "5", "fun"]}
    task = ["math", "coding", "math", "coding"]
    paths = [f"{HERE}.math_task", f"{HERE}.coding_task"]
    assert make_reward(functions=paths)(**asked, task=task) == [1.0, 1.0, -1.0, -1.0]
    weighted = make_reward(functions=paths, weights=[2.0, 0.5])
    assert weighted(**asked, task=task) == [2.0, 0.5, -2.0, -0.5]
    assert isinstance(weighted, WeightedSum)
    assert weighted.parts == {"math_task": [1.0, None, -1.0, None], "coding_task": [None, 1.0, None, -1.0]}


def test_a_checkpoint_names_every_function_with_its_weight_and_arguments() -> None:
    paths = [f"{HERE}.math_task", f"{HERE}.coding_task"]
    marks = make_reward(functions=paths, weights=[2.0, 0.5]).origin()  # type: ignore[attr-defined]
    assert marks["reward.functions.coding_task.weight"] == "0.5"
    assert marks["reward.functions[0]"].startswith(paths[0]) and marks["reward.functions[1]"].startswith(paths[1])
    exact: Any = make_reward(function="rlhf_lightning.rewards.exact_match", arguments={"ignore_case": True})
    assert exact.origin()["reward.function.arguments.ignore_case"] == "True"
    assert make_reward(url="http://a/b").origin() == {"reward.url": "http://a/b"}  # type: ignore[attr-defined]


def test_a_part_of_a_sum_may_have_trls_parameters() -> None:
    parts: Any = {"task": {"function": f"{HERE}.math_task", "weight": 3.0}}
    assert make_reward(components=parts)(["a", "b"], ["4", "4"], task=["math", "other"]) == [3.0, 0.0]


def test_a_response_without_any_reward_scores_0_and_is_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    for reward in (FunctionReward(f"{HERE}.nothing_applies"), make_reward(functions=[f"{HERE}.nothing_applies"])):
        caplog.clear()
        assert reward(["a"], ["b"]) == reward(["a"], ["b"]) == [0.0]
        (said,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        assert "None for 1 of 1 responses" in said


def test_none_of_our_own_signature_stays_a_mistake() -> None:
    with pytest.raises(UserError, match="score 1 is None"):
        FunctionReward(f"{HERE}.ours")(["a", "b"], ["c", "d"], ended=[True, False])


def test_what_trl_passes_is_passed() -> None:
    tokenizer = tiny_tokenizer()
    ids = [tokenizer(text)["input_ids"] for text in ("a b", "c d e")]
    rows = [
        PromptRow([3], "a", {"answer": "x", "messages": None, "completion": "not passed on"}),
        PromptRow([4], "<b>", {"answer": "y", "messages": [{"role": "user", "content": "b"}]}),
    ]
    reward = FunctionReward(f"{HERE}.everything")
    state = SimpleNamespace(global_step=3, max_steps=12)
    assert score_samples(reward, tokenizer, rows, ids, [True, False], state=state) == [0.0, 0.0]
    assert SEEN["completion_ids"] == ids
    assert SEEN["answer"] == ["x", "y"] and SEEN["trainer_state"] is state
    assert SEEN["prompts"] == ["a", [{"role": "user", "content": "b"}]]
    assert isinstance(SEEN["completions"][0], str) and SEEN["completions"][1][0]["role"] == "assistant"
    assert not SEEN.keys() & {"prompt", "completion", "messages", "ended", "sampled", "responses"}
    assert reward.figures == {"tidy": [0.25, 0.75]} and reward.extras == {"length": [len(each) for each in ids]}
    assert score_samples(FunctionReward(f"{HERE}.needs_progress"), tokenizer, rows, ids, [True] * 2, state=state) == [
        0.25,
        0.25,
    ]
    assert FunctionReward(f"{HERE}.only_keywords")(["a"], ["bcd"]) == [3.0]


@pytest.mark.parametrize(
    ("function", "columns", "message"),
    [
        ("boxed_answer", {"answer": ["2"]}, r"needs the column 'ground_truth', .* it is given answer;"),
        ("needs_progress", {}, "needs trainer_state, which only a training run has"),
        ("longer_in_tokens", {}, "needs completion_ids, which only sampled responses have"),
    ],
)
def test_what_is_needed_and_missing_is_named(function: str, columns: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=rf"^reward\.function: {HERE}\.{function} {message}"):
        FunctionReward(f"{HERE}.{function}")(["a"], ["b"], **columns)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"functions": ["a.b", "c.d"], "weights": [1.0]}, r"^reward\.weights: found 1 for 2 functions"),
        ({"function": "a.b", "weights": [1.0]}, r"^reward\.weights: there is one for each of reward\.functions"),
        ({"functions": ["a.b", "a.b"]}, r"^reward\.functions: a\.b is there twice"),
        ({"functions": ["a.b", "c"]}, r'^reward\.functions\[1\]: found "c"; must be a dotted path'),
        ({"functions": ["a.b"], "model": "m"}, r"^reward\.functions and reward\.model: only one source"),
        ({"model": "m", "arguments": {"x": 1}}, r"^reward\.arguments: only a function has them"),
        ({"function": f"{HERE}.ours", "concurrency": 4}, r"^reward\.concurrency: found 4; only calls of an async"),
        ({"function": f"{HERE}.ours", "arguments": {"x": 1}}, r"^reward\.arguments\.x: .* no such argument; it has no"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_reward(**settings)


WRONG = {
    "no_columns": ("def {}(prompts, responses): ...", "does not take **columns"),
    "no_kwargs": ("def {}(completions): ...", "does not take **columns"),
    "generator": ("def {}(prompts, responses, **c):\n    yield 1", "is a generator"),
    "one_more": ("def {}(prompts, responses, more, **c): ...", "cannot be called as (prompts, responses, **columns)"),
    "one_list": ("def {}(texts, **c): ...", "cannot be called as (prompts, responses, **columns)"),
    "slash": ("def {}(x, /, completions, **c): ...", "remove the /"),
    "async_columns": ("async def {}(response): ...", "does not take **columns"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_the_source_and_the_function_are_refused_alike(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`explain=true` reads the source; the run has the function."""
    source, message = WRONG[kind]
    (tmp_path / f"wrong_{kind}.py").write_text(source.format("fn") + "\n")
    monkeypatch.chdir(tmp_path)
    function = f"wrong_{kind}.fn"
    for check in (lambda: check_reward_calls({"function": function}, "reward."), lambda: FunctionReward(function)):
        with pytest.raises(UserError, match=re.escape(message)) as error:
            check()
        assert str(error.value).startswith(f"reward.function: {function}")


def test_explaining_refuses_what_the_run_would_refuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "for_explain.py").write_text("def short(prompts, responses): ...\ndef fine(completions, **k): ...\n")
    monkeypatch.chdir(tmp_path)
    given = ["experiment=grpo", "model.path=gpt2", "data.train=org/name", "explain=true"]
    config = compose_config("train", [*given, "reward.function=for_explain.fine"])
    train.check_all(config)
    several = {"function": None, "functions": ["for_explain.fine", "for_explain.short"]}
    wrong: list[tuple[dict[str, Any], str]] = [
        (
            {"function": "for_explain.short"},
            r"function: for_explain\.short\(prompts, responses\) does not take \*\*col",
        ),
        (several, r"functions\[1\]: for_explain\.short"),
        ({**several, "weights": [1.0]}, r"weights: found 1 for 2 functions"),
        ({"attempts": 2}, r"attempts: found 2; only calls of an async"),
        ({"arguments": {"x": 2}}, r"arguments\.x: .* no such argument"),
        ({"function": "rlhf_lightning.rewards.code_runs"}, r"arguments\.run_code: must be true"),
    ]
    for settings, said in wrong:
        with pytest.raises(UserError, match=rf"^reward\.{said}"):
            train.check_all({**config, "reward": {**config["reward"], **settings}})


@pytest.mark.parametrize(
    ("metric", "extra", "message"),
    [
        (("a", float("nan")), None, "log_metric: a is nan, expected a finite number"),
        (("a", 1e39), None, r"log_metric: a is 1e\+39, expected a finite number"),
        (("a", "0.5"), None, "log_metric: a is '0.5', expected a number"),
        (("../x", 1.0), None, r"log_metric has the name '\.\./x'"),
        (("x\n", 1.0), None, r"log_metric has the name 'x\\n'"),
        (("", 1.0), None, "log_metric has the name ''"),
        (None, ("a", [1]), "log_extra: the column 'a' has 1 values for 2 responses"),
        (None, ("a", [1, 2, 3]), "log_extra: the column 'a' has 3 values for 2 responses"),
        (None, ("a", "ab"), "log_extra: the column 'a' is str, expected a list of 2 values"),
        (None, ("a", None), "log_extra: the column 'a' is NoneType"),
        (None, ("a", [{(1, 2): 3}, 0]), "log_extra: the column 'a' cannot be written as JSON"),
        (None, (5, [1, 2]), "log_extra: the column 5 has a int for a name"),
    ],
)
def test_what_cannot_be_logged_is_refused_with_the_function_and_the_name(metric: Any, extra: Any, message: str) -> None:
    with pytest.raises(UserError, match=rf"^reward\.function: {HERE}\.logs: {message}"):
        FunctionReward(f"{HERE}.logs")(["p", "q"], ["a", "b"], metric=[metric] * 2, extra=[extra] * 2)


def test_a_function_that_runs_out_of_memory_is_named() -> None:
    with pytest.raises(UserError, match=rf"^reward\.function: {HERE}\.needs_memory ran out of memory: MemoryError: no"):
        FunctionReward(f"{HERE}.needs_memory")(["p"], ["a"])
