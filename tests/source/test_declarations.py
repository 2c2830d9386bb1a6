"""Algorithms' declarations are read from their source, through base classes, for our classes and others'."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import rlhf_lightning.algorithms
from rlhf_lightning.algorithms import AlignmentModule
from rlhf_lightning.commands.composition import compose_config
from rlhf_lightning.commands.train import check
from rlhf_lightning.errors import UserError
from rlhf_lightning.source.declarations import data_kind, declared, our_algorithms

PPO = ["experiment=ppo_demo"]
SFT = ["experiment=sft", "model.path=gpt2", "data.train=org/name"]


def write(folder: Path, text: str, name: str = "mine") -> None:
    (folder / f"{name}.py").write_text(text)


def complaint(*overrides: str) -> str:
    with pytest.raises(UserError) as error:
        check(compose_config("train", list(overrides)))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_our_classes_declare_what_they_have_as_attributes() -> None:
    names = [name for name in rlhf_lightning.algorithms.__all__ if name.endswith("Module")]
    for name in names:
        cls = getattr(rlhf_lightning.algorithms, name)
        if not hasattr(cls, "data"):
            assert cls is AlignmentModule or name not in {each.name for each in our_algorithms()}
            continue
        found = declared(f"rlhf_lightning.algorithms.{name}")
        assert found.ours and found.name == name
        assert (found.data, found.title, found.roles) == (cls.data, cls.title, cls.roles)
        assert found.saves_mid_epoch == cls.saves_mid_epoch
        assert found.logs == {metric for each in cls.__mro__ for metric in vars(each).get("logs", ())}


@pytest.mark.parametrize("kind", ["sft", "preference", "prompts"])
def test_our_data_modules_say_what_they_give(kind: str) -> None:
    target = compose_config("train", [f"data={kind}", *SFT[1:]])["data"]["_target_"]
    assert data_kind(target) == kind


def test_nothing_is_imported_to_read_them() -> None:
    code = (
        "import sys\n"
        "from rlhf_lightning.source.declarations import declared\n"
        "assert declared('rlhf_lightning.algorithms.PPOModule').data == 'prompts'\n"
        "assert not {'torch', 'lightning', 'rlhf_lightning.algorithms'} & set(sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "text",
    [
        "from rlhf_lightning.algorithms import PPOModule\nclass Mine(PPOModule):\n    title = 'mine'\n",
        "from rlhf_lightning.algorithms import PPOModule as Base\nclass Mine(Base):\n    title = 'mine'\n",
        "import rlhf_lightning.algorithms as a\nclass Mine(a.PPOModule):\n    title = 'mine'\n",
        "import rlhf_lightning.algorithms\n"
        "class Middle(rlhf_lightning.algorithms.PPOModule): pass\nclass Mine(Middle):\n    title = 'mine'\n",
        "from rlhf_lightning.algorithms.ppo import PPOModule\nclass Mine(PPOModule):\n    title: str = 'mine'\n",
        "from rlhf_lightning.algorithms import PPOModule\nTITLE = 'mine'\nclass Mine(PPOModule):\n    title = TITLE\n",
        "from rlhf_lightning.algorithms import PPOModule\nclass Other(PPOModule):\n    title = 'mine'\nMine = Other\n",
        "from rlhf_lightning.algorithms import PPOModule\nclass Other(PPOModule):\n    title = 'mine'\n"
        "def Mine(*args, **kwargs) -> Other:\n    return Other(*args, **kwargs)\n",
    ],
)
def test_a_class_from_outside_inherits_what_ours_declares(text: str, empty_folder: Path) -> None:
    write(empty_folder, text)
    found = declared("mine.Mine")
    assert (found.data, found.title, found.saves_mid_epoch, found.ours) == ("prompts", "mine", False, False)
    assert found.roles == ("policy", "reference", "critic", "reward")


def test_an_algorithm_that_samples_needs_no_minibatches(empty_folder: Path) -> None:
    write(
        empty_folder,
        "from rlhf_lightning.algorithms import AlignmentModule\n"
        "class Mine(AlignmentModule):\n    data = 'prompts'\n    title = 'mine'\n    saves_mid_epoch = False\n"
        "    def __init__(self, *args, reward, rollout, seed=0, **more):\n        super().__init__(*args, **more)\n",
    )
    (empty_folder / "conf" / "algorithm").mkdir(parents=True)
    (empty_folder / "conf" / "algorithm" / "mine.yaml").write_text("_target_: mine.Mine\n")
    given = ["algorithm=mine", "data=prompts", "rollout=native", "reward=default", "reward.function=my.fn", *SFT[1:]]
    check(compose_config("train", given, str(empty_folder / "conf")))


BARE = "import lightning\nclass Mine(lightning.LightningModule):\n    pass\n"


def test_a_class_that_declares_nothing_reads_rows(empty_folder: Path) -> None:
    write(empty_folder, BARE)
    check(compose_config("train", [*SFT, "algorithm._target_=mine.Mine"]))


def test_a_class_that_declares_nothing_cannot_sample(empty_folder: Path) -> None:
    write(empty_folder, BARE)
    found = complaint(*PPO, "algorithm._target_=mine.Mine")
    assert found.startswith(
        "algorithm._target_: mine.Mine does not declare `data`, so nothing reads rollout and reward"
    )
    assert '`data = "prompts"`' in found


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("data = 'promts'", "Mine.data: found 'promts'; must be a literal: sft | preference |"),
        ("data = 'promts'", "did you mean prompts?"),
        ("data = str(1)", "Mine.data: found an expression; must be a literal"),
        (
            "roles = ('policy', 'refrence')",
            "Mine.roles: found 'refrence'; must be a literal tuple of policy | reference",
        ),
        ("roles = ()", "Mine.roles: found ()"),
        ("title = 3", "Mine.title: found 3; must be a literal text"),
        ("saves_mid_epoch = 'no'", "Mine.saves_mid_epoch: found 'no'; must be a literal: True | False"),
        ("whole_groups = 1", "Mine.whole_groups: found 1; must be a literal: True | False"),
        ("logs = 'mine'", "Mine.logs: found 'mine'; must be a literal tuple"),
        ("data = 'preference'", "data: Mine learns from preferences, and SFTDataModule gives texts and completions"),
        ("data = 'prompts'", "data: Mine learns from prompts"),
        ("roles = ('reward',)", "model._target_: a reward model has a score head; choose model=reward_model"),
    ],
)
def test_a_wrong_declaration_names_the_attribute(body: str, expected: str, empty_folder: Path) -> None:
    write(empty_folder, f"from rlhf_lightning.algorithms import SFTModule\nclass Mine(SFTModule):\n    {body}\n")
    assert expected in complaint(*SFT, "algorithm._target_=mine.Mine")


def test_a_policy_is_not_trained_on_a_score_head() -> None:
    found = complaint("experiment=sft", "model=reward_model", "model.path=gpt2", "data.train=org/name")
    assert found.startswith("model._target_: found load_reward_model, but SFTModule trains a policy")


def test_a_coefficient_that_a_class_from_outside_calls_kl_is_not_taken_for_our_section(empty_folder: Path) -> None:
    write(
        empty_folder,
        "from rlhf_lightning.algorithms import AlignmentModule\n"
        "class Mine(AlignmentModule):\n    data = 'prompts'\n    title = 'mine'\n"
        "    def __init__(self, *args, kl: float = 0.1, **kwargs):\n        super().__init__(*args, **kwargs)\n",
    )
    (empty_folder / "conf" / "algorithm").mkdir(parents=True)
    (empty_folder / "conf" / "algorithm" / "mine.yaml").write_text("_target_: mine.Mine\nkl: 0.2\n")
    given = ["algorithm=mine", "data=prompts", "rollout=native", "reward=default", "reward.function=my.fn", *SFT[1:]]
    check(compose_config("train", given, str(empty_folder / "conf")))
