"""A function that does not return is interrupted at its limit, wherever it hangs, and the process ends."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from rlhf_lightning.errors import UserError
from rlhf_lightning.rewards import FunctionReward, deadline
from rlhf_lightning.rewards.deadline import within

HANGS = {
    "sleep": "time.sleep(60)",
    "loop": "while True: pass",
    "regex": "re.match(r'(a+)+$', 'a' * 40 + 'b')",
    "socket": "ends = socket.socketpair(); ends[0].recv(1)",
    "lock": "lock = threading.Lock(); lock.acquire(); lock.acquire()",
    "child": "subprocess.run(['sleep', '60'])",
    "swallows once": "try:\n        time.sleep(60)\n    except BaseException: time.sleep(8)",
    "makes another error of it": "try:\n        time.sleep(60)\n    except BaseException: raise ValueError('retry')",
    "returns after all": "try:\n        time.sleep(60)\n    except BaseException: return [1.0]",
}
HEAD = "import re, socket, subprocess, threading, time\ndef fn(prompts, responses, **columns):\n    "


@pytest.mark.parametrize("how", HANGS)
def test_a_function_that_hangs_is_broken_off(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"hangs_{how.replace(' ', '_')}"
    (tmp_path / f"{name}.py").write_text(HEAD + HANGS[how] + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(deadline, "GRACE", 60.0)  # the alarm alone must do it
    reward, start = FunctionReward(f"{name}.fn", timeout=0.3), time.monotonic()
    with pytest.raises(UserError, match=rf"^reward\.function: {name}\.fn has not .* 0\.3 s \(reward\.timeout\)"):
        reward(["a"], ["b"])
    assert time.monotonic() - start < 5


def test_a_function_that_catches_everything_ends_with_the_process(tmp_path: Path) -> None:
    script = f"""
        import sys, time
        sys.path[:0] = [{str(Path(__file__).parents[2])!r}]
        from rlhf_lightning.rewards import deadline
        deadline.GRACE = 0.5
        def hangs():
            while True:
                try: time.sleep(60)
                except BaseException: pass
        deadline.within(0.2, hangs, "reward.function: it hangs")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert (done.returncode, done.stderr) == (2, "error: reward.function: it hangs\n")


def test_a_function_that_returns_in_time_runs_where_it_would_without_a_limit() -> None:
    import threading

    assert within(30, threading.current_thread, "late") is threading.main_thread()
    with pytest.raises(ZeroDivisionError):
        within(30, lambda: 1 / 0, "late")
