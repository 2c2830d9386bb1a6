"""User code that exits or fails where a config names it: no run ends with 0 and without a model."""

from __future__ import annotations

from bad_input_catalogue.case import DPO, EVALUATE, PPO, SFT, Case, changed, writes

LEAVES = {
    "sys.exit(0)": "sys.exit(0)",
    "sys.exit of a text": "sys.exit('bye')",
    "SystemExit": "raise SystemExit",
    "KeyboardInterrupt": "raise KeyboardInterrupt",
    "GeneratorExit": "raise GeneratorExit",
    "an exception": "raise ValueError('not so')",
    "os._exit(0)": "os._exit(0)",
}
SUDDEN = r"own\.py, line \d+.*os\._exit"  # the process is gone: only the file and the line are known
HOOKS = (
    "setup",
    "on_fit_start",
    "on_train_start",
    "on_train_epoch_start",
    "on_train_batch_start",
    "on_before_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
)
LATE_HOOKS = (
    "on_train_epoch_end",
    "on_save_checkpoint",
    "state_dict",
    "on_train_end",
    "on_fit_end",
    "teardown",
)  # the model is trained by then


def _callback(method: str, statement: str) -> str:
    return (
        "import os, sys\nfrom lightning.pytorch import Callback\nclass Mine(Callback):\n"
        f"    def {method}(self, *args, **kwargs):\n        {statement}\n"
    )


def _case(
    place: str, way: str, words: list[str], key: str, content: str, code: int = 2, fast: bool = False, further: int = 0
) -> Case:
    names = SUDDEN if way.startswith("os.") else key
    code = 2 if way.startswith("os.") else code
    return Case(f"own code: {way} in {place}", "train", words, names, writes("own.py", content), code, further, fast)


def _everywhere(way: str, statement: str) -> list[Case]:
    """Return cases of one way to exit, in every place that a config can name."""
    fast = way in ("sys.exit(0)",)
    head = "import os, sys\n"
    function = f"{head}def fn(prompts, responses, **columns):\n    {statement}\n"
    algorithm = "from rlhf_lightning.algorithms import DPOModule\nclass Mine(DPOModule):\n"
    data = "from rlhf_lightning.data import SFTDataModule\nclass Mine(SFTDataModule):\n"
    mine = [*SFT, "+callbacks.mine={_target_: own.Mine}"]
    components = changed(PPO, "reward.function=null", "reward.components={a: {function: own.fn}}")
    dpo, sft = [*DPO, "algorithm._target_=own.Mine"], [*SFT, "data._target_=own.Mine"]
    return [
        _case("a reward function", way, changed(PPO, "reward.function=own.fn"), r"reward\.function", function),
        _case("a component", way, components, r"reward\.components\.a", function),
        _case(
            "an import",
            way,
            changed(PPO, "reward.function=own.fn"),
            r"reward\.function",
            f"{head}{statement}\n{function}",
        ),
        _case("a callback's import", way, mine, r"callbacks\.mine", f"{head}{statement}\n{_callback('x', 'pass')}"),
        _case("a callback's making", way, mine, r"callbacks\.mine", _callback("__init__", statement)),
        _case(
            "on_train_batch_start", way, mine, r"callbacks\.mine", _callback("on_train_batch_start", statement), 2, fast
        ),
        _case("on_train_end", way, mine, r"callbacks\.mine", _callback("on_train_end", statement), 3),
        *(
            _case(
                f"an algorithm's {method}",
                way,
                dpo,
                r"algorithm\._target_",
                f"{head}{algorithm}    def {method}(self, *a, **k):\n        {statement}\n",
            )
            for method in ("__init__", "configure_model", "configure_optimizers", "training_step", "export")
        ),
        *(
            _case(
                f"a data module's {method}",
                way,
                sft,
                r"data\._target_|data:",
                f"{head}{data}    def {method}(self, *a, **k):\n        {statement}\n",
            )
            for method in ("__init__", "setup", "train_dataloader")
        ),
    ]


HANGS = {
    "sleep": "time.sleep(600)",
    "regex": "re.match(r'(a+)+$', 'a' * 40 + 'b')",
    "loop": "while True: pass",
    "socket": "ends = socket.socketpair(); ends[0].recv(1)",
}
LATE = [
    Case(
        f"own code: {place} that hangs in a {how}",
        command,
        words,
        rf"{key}.*1\.0 s \({limit}\)",
        writes("own.py", f"import re, socket, time\ndef fn(prompts, responses, **columns):\n    {statement}\n"),
    )
    for how, statement in HANGS.items()
    for place, command, words, key, limit in (
        (
            "a reward function",
            "train",
            changed(PPO, "reward.function=own.fn", "reward.timeout=1.0"),
            r"reward\.function",
            r"reward\.timeout",
        ),
        (
            "a component",
            "train",
            changed(PPO, "reward.function=null", "reward.components={a: {function: own.fn}}", "reward.timeout=1.0"),
            r"reward\.components\.a",
            r"reward\.timeout",
        ),
        (
            "a gold function",
            "evaluate",
            [*EVALUATE, "gold.function=own.fn", "gold.timeout=1.0"],
            r"gold\.function",
            r"gold\.timeout",
        ),
    )
]

OWN_CODE = [
    *LATE,
    *(case for way, statement in LEAVES.items() for case in _everywhere(way, statement)),
    *(
        _case(
            hook,
            "sys.exit(0)",
            [*SFT, "+callbacks.mine={_target_: own.Mine}"],
            r"callbacks\.mine",
            _callback(hook, "sys.exit(0)"),
        )
        for hook in HOOKS
    ),
    *(
        _case(
            hook,
            "sys.exit(0)",
            [*SFT, "+callbacks.mine={_target_: own.Mine}"],
            r"callbacks\.mine",
            _callback(hook, "sys.exit(0)"),
            3,
        )
        for hook in LATE_HOOKS
    ),
    Case(
        "own code: sys.exit(0) in on_exception",
        "train",
        changed(PPO, "reward.function=mine.raises", "+callbacks.mine={_target_: own.Mine}"),
        r"callbacks\.mine.*no such thing",
        writes("own.py", _callback("on_exception", "sys.exit(0)")),
    ),
    *(
        Case(
            f"own code: {way} in an evaluation's {key}",
            "evaluate",
            [*EVALUATE, f"{key}.function=own.fn"],
            SUDDEN if way.startswith("os.") else rf"{key}\.function",
            writes("own.py", f"import os, sys\ndef fn(prompts, responses, **columns): {statement}\n"),
        )
        for key in ("gold", "proxy")
        for way, statement in LEAVES.items()
    ),
]
