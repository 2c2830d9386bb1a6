"""Async reward functions: limits on calls and time, attempts, and several at once. Nothing here reads a clock."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any

import pytest

from rlhf_lightning.errors import UserError
from rlhf_lightning.rewards import FunctionReward, concurrent, make_reward

HERE = __name__
RUNNING = Counter[str]()
MET = {"one": asyncio.Event(), "two": asyncio.Event()}


async def each(prompt, response, **columns):
    """Count the calls at the same time, and fail at the first attempt of one in ten."""
    RUNNING["now"] += 1
    RUNNING["most"] = max(RUNNING["most"], RUNNING["now"])
    try:
        await asyncio.sleep(0.002)
        RUNNING[response] += 1
        if int(response) % 10 == 0 and RUNNING[response] == 1:
            raise ConnectionError("it is busy")
        return float(response) + columns["extra"]
    finally:
        RUNNING["now"] -= 1


async def whole(prompts, completions, **kwargs):
    await asyncio.sleep(0)
    return [None if not each else float(len(each)) for each in completions]


async def meets(completions, **kwargs):
    """End only if the other function has begun."""
    mine, other = MET[kwargs["me"][0]], MET["two" if kwargs["me"][0] == "one" else "one"]
    mine.set()
    await other.wait()
    return [1.0] * len(completions)


async def first(completions, **kwargs):
    return await meets(completions, me=["one"])


async def second(completions, **kwargs):
    return await meets(completions, me=["two"])


async def hangs(completion, **kwargs):
    await asyncio.sleep(60 if completion == "b" else 0)
    return 0.0


async def will_not_be_cancelled(completion, **kwargs):
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await asyncio.sleep(60)


async def blocks(completions, **kwargs):
    time.sleep(60)


async def leaves(completion, **kwargs):
    raise SystemExit(0)


async def cancelled(completion, **kwargs):
    raise asyncio.CancelledError


async def cancels_everything(completion, **kwargs):
    for task in asyncio.all_tasks():
        task.cancel()
    await asyncio.sleep(0)


async def leaves_in_a_task(completion, **kwargs):
    await asyncio.create_task(leaves(completion))


class _OddError(BaseException):
    pass


async def odd(completion, **kwargs):
    raise _OddError("as it is")


async def stops_the_loop(completion, **kwargs):
    asyncio.get_running_loop().stop()
    await asyncio.sleep(0)
    return 1.0


async def wrong(completion, **kwargs):
    return "good"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(concurrent, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(concurrent, "_SLACK", 0.1)
    RUNNING.clear()


def test_64_calls_keep_to_the_limit_and_one_in_ten_that_fails_is_repeated() -> None:
    reward = FunctionReward(f"{HERE}.each", concurrency=16)
    texts = [str(i) for i in range(64)]
    assert reward(texts, texts, extra=[0.5] * 64) == [i + 0.5 for i in range(64)]
    assert RUNNING["most"] == 16 and RUNNING["now"] == 0
    assert [RUNNING[text] for text in texts] == [2 if i % 10 == 0 else 1 for i in range(64)]


def test_what_fails_at_every_attempt_is_one_line() -> None:
    reward = FunctionReward(f"{HERE}.each", attempts=1)
    with pytest.raises(UserError, match=r"^reward\.function: .*\.each failed in 1 attempt: it is busy \(response 1\)"):
        reward(["a"] * 3, ["1", "10", "3"], extra=[0] * 3)
    assert reward(["a"] * 3, ["1", "11", "3"], extra=[0] * 3) == [1, 11, 3]  # usable afterwards


def test_a_function_of_the_batch_is_called_once_as_by_trl() -> None:
    assert FunctionReward(f"{HERE}.whole")(["a", "b"], ["xyz", ""]) == [3.0, 0.0]


def test_several_functions_wait_at_the_same_time() -> None:
    reward = make_reward(functions=[f"{HERE}.first", f"{HERE}.second"], timeout=30.0)
    assert reward(["a"], ["b"]) == [2.0]


@pytest.mark.parametrize("function", ["hangs", "will_not_be_cancelled", "blocks"])
def test_a_call_that_hangs_is_one_line(function: str) -> None:
    reward = FunctionReward(f"{HERE}.{function}", timeout=0.1)
    with pytest.raises(
        UserError, match=rf"^reward\.function: .*\.{function} has not returned within 0\.1 s \(reward\.t"
    ):
        reward(["p"] * 2, ["a", "b"])
    assert FunctionReward(f"{HERE}.whole", timeout=30)(["p"], ["a"]) == [1.0]  # the next call has a loop


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("leaves", r"failed: it called sys\.exit\(0\)"),
        ("leaves_in_a_task", r"failed: it called sys\.exit\(0\)"),
        ("cancelled", "failed: CancelledError"),
        ("cancels_everything", "failed: CancelledError"),
        ("odd", "failed: _OddError: as it is"),
        ("wrong", "score 0 is 'good'"),
    ],
)
def test_what_else_goes_wrong_is_one_line(function: str, message: str) -> None:
    with pytest.raises(UserError, match=rf"^reward\.function: {HERE}\.{function}:? {message}"):
        FunctionReward(f"{HERE}.{function}")(["p"], ["a"])
    assert FunctionReward(f"{HERE}.whole")(["p"], ["a"]) == [1.0]  # the loop goes on


def test_a_loop_that_a_call_stops_goes_on() -> None:
    assert FunctionReward(f"{HERE}.stops_the_loop", timeout=30)(["p"] * 3, ["a"] * 3) == [1.0] * 3


def test_the_settings_of_calls_reach_the_async_parts_only() -> None:
    parts: dict[str, Any] = {
        "slow": {"function": f"{HERE}.whole"},
        "quick": {"function": "tests.rewards.test_rewards.count_words"},
    }
    reward: Any = make_reward(components=parts, concurrency=2, attempts=5)
    assert (reward.rewards["slow"].concurrency, reward.rewards["slow"].attempts) == (2, 5)
    with pytest.raises(UserError, match=r"^reward\.attempts: found 5; only calls of an async function or"):
        make_reward(components={"quick": parts["quick"]}, attempts=5)  # type: ignore[arg-type]
