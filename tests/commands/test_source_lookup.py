"""Missing classes and functions are refused from the source alone, and those that may exist never are."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.utils import get_object

from rlhf_lightning.commands.composition import compose_config
from rlhf_lightning.config.source_lookup import check_function, check_names, why_missing
from rlhf_lightning.errors import UserError
from rlhf_lightning.working_folder import import_from_working_folder

CONF = Path(__file__).resolve().parents[2] / "conf" / "experiment"


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("nowhere.Nope", "No module named 'nowhere'"),
        ("torch.optim.Nope", "torch.optim has no 'Nope'"),
        ("lightning.pytorch.callbacks.Nope", "lightning.pytorch.callbacks has no 'Nope'"),
        ("json.decoder.nope", "json.decoder has no 'nope'"),
        ("json.nowhere.deep.nope", "json has no 'nowhere'"),
        ("a b.c", "it is not a dotted path such as my_package.my_name"),
        ("", "it is not a dotted path such as my_package.my_name"),
    ],
)
def test_what_is_certainly_not_there_is_said(target, said):
    assert why_missing("key", target) == said


@pytest.mark.parametrize(
    "target",
    [
        "torch.optim.AdamW",
        "torch.optim.adamw.AdamW",
        "torch.nn.functional.relu",
        "lightning.Trainer",
        "lightning.pytorch.callbacks.EarlyStopping",
        "lightning.pytorch.strategies.DDPStrategy",
        "transformers.get_linear_schedule_with_warmup",
        "mlflow.log_metric",
        "datetime.timedelta",
        "math.sin",
        "builtins.dict",
        "os.path.join",
        "collections.abc.Mapping",
        "rlhf_lightning.rewards.make_reward",
    ],
)
def test_what_can_be_imported_is_never_refused(target):
    assert get_object(target) is not None
    assert why_missing("key", target) is None


@pytest.mark.parametrize(
    "source",
    [
        "from json import *",
        "def __getattr__(name): return 1",
        "globals()['mine'] = 1",
        "import sys\nsetattr(sys.modules[__name__], 'mine', 1)",
        "try:\n    mine = 1\nexcept Exception:\n    pass",
        "if True:\n    def mine(): ...",
        "for mine in [1]: pass",
        "import json as mine",
        "(mine := 1)",
        "with open('x') as mine: pass",
        "mine, other = 1, 2",
        "exec('mine = 1')",
        "import nowhere_at_all",
        "from nowhere_at_all import other",
        "raise SystemExit(0)",
        "import sys\nsys.exit(0)",
        "def make():\n    globals()['mine'] = 1\nmake()",
        "def make():\n    global mine\n    mine = 1\nmake()",
    ],
)
def test_names_that_a_module_makes_as_it_runs_are_left_to_the_import(source, empty_folder):
    (empty_folder / "some_rewards.py").write_text(source + "\n")
    import_from_working_folder()
    importlib.invalidate_caches()
    assert why_missing("key", "some_rewards.mine") is None


def test_packages_without_an_init_file_are_looked_through(empty_folder):
    deep = empty_folder / "mine_too" / "below" / "deeper"
    deep.mkdir(parents=True)
    (deep / "rewards.py").write_text("def length(): ...\n")
    import_from_working_folder()
    importlib.invalidate_caches()
    assert why_missing("key", "mine_too.below.deeper.rewards.length") is None
    assert why_missing("key", "mine_too.below.deeper.rewards.nope") == "mine_too.below.deeper.rewards has no 'nope'"


def test_a_module_that_is_not_python_is_named_with_its_line(empty_folder):
    (empty_folder / "broken_rewards.py").write_text("x = 1\ndef mine(:\n")
    import_from_working_folder()
    with pytest.raises(UserError, match=r"^reward\.function: cannot import broken_rewards\.mine: .*line 2"):
        check_function("reward.function", "broken_rewards.mine")


@pytest.mark.parametrize("experiment", sorted(file.stem for file in CONF.glob("*.yaml")))
def test_every_experiment_names_what_is_there(experiment):
    check_names(compose_config("train", [f"experiment={experiment}"]))


def test_nothing_is_imported_to_find_out():
    code = (
        "import sys\n"
        "from rlhf_lightning.config.source_lookup import why_missing\n"
        "assert why_missing('key', 'torch.optim.Nope') and why_missing('key', 'torch.optim.AdamW') is None\n"
        "assert not {'torch', 'lightning'} & set(sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
