"""Verifiers: what they score, and what evil completions cannot do to a run."""

from __future__ import annotations

import importlib.util
import logging
import math
import os
import time
from pathlib import Path
from typing import Any

import pytest

from rlhf_lightning.config.source_lookup import check_reward_calls
from rlhf_lightning.errors import UserError
from rlhf_lightning.rewards import FunctionReward, code_runs, exact_match, format_match, make_reward, math_verify
from rlhf_lightning.rewards.scores import BadScoreError
from rlhf_lightning.rewards.verifiers import _worker, code_of
from rlhf_lightning.setting_rules import check_reward

PATH = "rlhf_lightning.rewards."
TALK = [{"role": "assistant", "content": "12"}]


def test_exact_match_compares_text_up_to_space_around_it() -> None:
    assert exact_match([" 12\n", "12.", TALK, "x"], answer=["12", "12", 12, None]) == [1.0, 0.0, 1.0, None]
    assert exact_match(["Paris", "LONDON"], column="city", ignore_case=True, city=["paris", ["Rome", "London"]]) == [
        1,
        1,
    ]
    assert exact_match(["Paris"], answer=["paris"]) == [0.0]
    assert exact_match(["caf\u00e9"], answer=["cafe\u0301"]) == [1.0]  # the same in two forms of Unicode


def test_a_whole_number_may_be_stored_as_a_float() -> None:
    assert exact_match(["12", "12.0", "12.5"], answer=[12.0, 12.0, [12.5, None]]) == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("reference", [{"a": 1}, True, "", " ", [["12"]], TALK, math.nan, [12, ""]])
def test_a_reference_that_nothing_can_match_is_refused_with_its_row(reference: Any) -> None:
    with pytest.raises(BadScoreError, match=r"^arguments\.column: 'answer' of response 1: found ") as raised:
        exact_match(["12", "12"], answer=["12", reference])
    assert raised.value.index == 1
    reward = make_reward(function=f"{PATH}exact_match")
    with pytest.raises(BadScoreError, match=r"^reward\.arguments\.column: 'answer' of response 0"):
        reward(["p"], ["12"], answer=[reference])


@pytest.mark.parametrize("reference", [{"a": 1}, True, ["12"], math.inf])
def test_math_refuses_references_that_are_no_text(reference: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: object())
    with pytest.raises(BadScoreError, match=r"^arguments\.column: 'answer' of response 0: found .*must be a text"):
        math_verify(["12"], answer=[reference])


def test_exact_match_takes_the_last_place_that_its_pattern_finds() -> None:
    texts = ["#### 1\n#### 2", "none", "#### 3"]
    assert exact_match(texts, pattern=r"#### (\d+)", answer=["2", "5", "4"]) == [1.0, 0.0, 0.0]
    assert exact_match(["is 7"], pattern=r"\d+", answer=[7]) == [1.0]


def test_format_match_is_about_the_whole_completion_unless_a_part_is_enough() -> None:
    pattern = r"<think>.*</think>\s*<answer>.*</answer>"
    texts = ["<think>a\nb</think>\n<answer>c</answer>", "x <think></think><answer></answer>", ""]
    assert format_match(texts, pattern=pattern) == [1.0, 0.0, 0.0]
    assert format_match(texts, pattern=pattern, anywhere=True) == [1.0, 1.0, 0.0]


def test_a_pattern_that_explodes_does_not_hang(caplog: pytest.LogCaptureFixture) -> None:
    evil, text = r"(?:a|aa)+(?:a|aa)+[cd]e", "a" * 60 + "cbe"
    assert format_match([text, "aace"], pattern=evil, seconds=0.2) == [0.0, 1.0]
    assert exact_match([text], pattern=evil, seconds=0.2, answer=[text]) == [0.0]
    (said,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert said.startswith("the pattern ") and "takes more than 0.2 s" in said


def check_without_imports(reward: dict[str, Any]) -> None:
    check_reward(reward)
    check_reward_calls(reward, "reward.")


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("format_match", {}, "arguments.pattern: missing; give the regular expression"),
        ("format_match", {"pattern": "(", "anywhere": True}, "arguments.pattern: '(' is not a regular expression"),
        (
            "format_match",
            {"patern": "a", "pattern": "b"},
            "arguments.patern: .*no such argument; .*did you mean pattern",
        ),
        ("exact_match", {"seconds": 0}, "arguments.seconds: found 0; must be a number > 0"),
        ("exact_match", {"column": 3}, "arguments.column: found 3; must be a text"),
        ("code_runs", {}, "arguments.run_code: must be true: code_runs runs code that a model has written"),
        ("code_runs", {"run_code": True, "megabytes": 0.5}, "arguments.megabytes: found 0.5; must be a whole number"),
    ],
)
def test_settings_are_refused_by_key_before_and_in_the_run(name: str, arguments: dict[str, Any], message: str) -> None:
    part = {"function": f"{PATH}{name}", "arguments": arguments}
    expected = rf"^reward\.components\.a\.{message.replace('(', chr(92) + '(')}"
    with pytest.raises(UserError, match=expected):
        make_reward(components={"a": part})  # type: ignore[typeddict-item]
    if "is not a regular" in message:
        return  # it is compiled when the run begins
    with pytest.raises(UserError, match=expected):
        check_without_imports({"components": {"a": part}})


def test_a_verifier_is_a_reward_and_names_a_column_that_is_missing() -> None:
    reward = make_reward(function=f"{PATH}exact_match", arguments={"column": "truth"})
    assert reward(["p", "q"], ["1", "2"], truth=["1", "1"], ended=[True, True]) == [1.0, 0.0]
    with pytest.raises(UserError, match=r"^reward\.arguments\.column: the rows have no column 'truth'; .*: answer"):
        reward(["p"], ["1"], answer=["1"])
    assert reward.origin()["reward.function.arguments.column"] == "'truth'"  # type: ignore[attr-defined]


def test_math_verify_without_its_library_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None)
    with pytest.raises(UserError, match=r"^reward\.function: .*math-verify is not installed here; pip install 'rlhf-l"):
        FunctionReward(f"{PATH}math_verify")


@pytest.mark.skipif(importlib.util.find_spec("math_verify") is None, reason="needs the extra `math`")
def test_math_verify_compares_by_value_and_survives_evil_expressions() -> None:
    texts = [
        r"so $\boxed{\frac{2}{4}}$",
        r"$\boxed{0.6}$",
        "The answer is 12.",
        "12",
        r"$\boxed{9^{9^{9^{9}}}}$",
        "\ud800",
    ]
    answers = [r"$\frac{1}{2}$", r"$\frac12$", "12", "no mathematics", "3", "3"]
    scores = math_verify(texts, answer=[*answers[:-1], None], seconds=3.0)
    assert scores == [1.0, 0.0, 1.0, None, 0.0, None]
    assert math_verify(["$4$", "\ud800"], answer=["$2+2$", "3"], seconds=30.0) == [1.0, 0.0]  # a new process answers
    _worker.close()


# ---- code


def test_the_last_block_of_code_counts() -> None:
    assert code_of("```python\na\n```\nor\n```\nb\n```") == "b\n"
    assert code_of("no block") == "no block"
    assert code_of("```x = 1```") == "x = 1"


def run(code: str, tests: str = "assert add(1, 2) == 3", **limits: Any) -> float | None:
    (score,) = code_runs([code], run_code=True, tests=[tests], **{"seconds": 20.0, **limits})
    return score


RIGHT = "def add(a, b):\n    return a + b\n"


def test_code_that_passes_its_tests_scores_1() -> None:
    wrong = "def add(a, b):\n    return a - b\n"
    texts = [f"Here:\n```python\n{RIGHT}```", wrong, RIGHT, "def add(", RIGHT]
    tests = [
        "assert add(1, 2) == 3",
        "assert add(1, 2) == 3",
        ["assert add(1, 1) == 2", "assert add(0, 0) == 0"],
        "pass",
        None,
    ]
    assert code_runs(texts, run_code=True, seconds=20.0, tests=tests) == [1.0, 0.0, 1.0, 0.0, None]


NO_TESTS = [
    {"inputs": ["1"], "outputs": ["2"]},
    '{"inputs": ["1"], "outputs": [true]}',
    [{"input": "1", "output": "2"}],
    "[1, 2]\n'text'",
    "# a comment",
    "assert (",
    ["assert True", "x ="],
    "x = '\x00'",
    *(3, True, "", " ", [], [None]),
]


@pytest.mark.parametrize("tests", NO_TESTS)
def test_what_cannot_test_anything_is_refused_with_its_row(tests: Any) -> None:
    with pytest.raises(BadScoreError, match=r"^arguments\.column: 'tests' of response 1: found .*assert add") as raised:
        code_runs(["x = 1"] * 2, run_code=True, tests=["assert x == 1", tests])
    assert raised.value.index == 1


def test_memory_in_which_nothing_runs_is_refused_before_any_completion() -> None:
    arguments = {"run_code": True, "megabytes": 1}
    with pytest.raises(UserError, match=r"^reward\.arguments\.megabytes: found 1; no code runs within it"):
        make_reward(function=f"{PATH}code_runs", arguments=arguments)


EVIL = {
    "leaves early": "import os; os._exit(0)",
    "exits": "raise SystemExit(0)",
    "closes": "import os, sys; sys.exit(0)",
    "null bytes": "x = '\x00'",
    "surrogate": "x = '\ud800'",
    "memory": RIGHT + "x = bytearray(10**10)",
    "flood of a file": RIGHT + "open('big', 'wb').write(b'x' * 2**26)",
    "recursion": "def add(a, b): return add(a, b)",
}


@pytest.mark.parametrize("kind", EVIL)
def test_evil_code_scores_0(kind: str) -> None:
    assert run(EVIL[kind]) == 0.0


def test_output_is_dropped_and_nothing_of_the_environment_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    seen = "import os\nassert 'HF_TOKEN' not in os.environ and os.listdir('.') == []\nassert not os.getcwd() == '/'"
    assert run(RIGHT + "print('x' * 2**24)", seen) == 1.0


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are found in /proc")
def test_what_code_starts_ends_with_it(tmp_path: Path) -> None:
    """A loop, a fork bomb, and a process in a session of its own; the pid is the only trace they leave."""
    assert run("while True: pass", seconds=0.3) == 0.0
    assert run("import os\nwhile True: os.fork()", seconds=2.0) == 0.0
    tmp_path.chmod(0o777)
    note = tmp_path / "pid"
    escapes = (
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n"
        f"        open({str(note)!r}, 'w').write(str(os.getpid()))\n        time.sleep(600)\n    os._exit(0)\n"
        f"while not (os.path.exists({str(note)!r}) and open({str(note)!r}).read()): time.sleep(0.01)\n"
    )
    assert run(RIGHT + escapes) == 1.0
    deadline = time.monotonic() + 20
    while _lives(int(note.read_text())) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not _lives(int(note.read_text()))


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
