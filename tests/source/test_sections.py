"""The keys of a class are read from its constructor, also for classes from outside, before torch is imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rlhf_lightning.config.schema import Train
from rlhf_lightning.config.source_lookup import check_names
from rlhf_lightning.config.validation import validate
from rlhf_lightning.errors import UserError
from rlhf_lightning.source.constructors import setting, signature

VALUES = """
from __future__ import annotations
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Optional
from pydantic import Field
from rlhf_lightning.algorithms import DPOModule, PPOModule as Base
from rlhf_lightning import value_types as vt
from rlhf_lightning.value_types import Count, Fraction, Positive
from other import Half, Settings as Mix

Small = Annotated[float, Field(gt=0, lt=0.25)]

class Mine(DPOModule):
    title = "mine"

    def __init__(
        self, *args: Any, strength: Positive = 1.0, share: vt.Fraction | None = None, rounds: Count = 3,
        mode: Literal["up", "down"] = "up", sizes: list[Count] = [], mix: Mix = Mix(), small: Small = 0.1,
        half: Half = 0.5, flag: bool = False, file: str | Path = "x", free=None, pair: tuple[int, int] = (1, 2),
        place: vt.Text | Path | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)

class Fixed(Mine):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, strength=2.0, **kwargs)

class Closed(Base):
    def __init__(self, model, tokenizer, optimizer, scheduler, reward, rollout, seed, width: int) -> None: ...

class Open:
    def __init__(self, width: int = 1, **anything) -> None: ...

class NoInit(Mine):
    pass

def make(width: int = 1, *, height: "Optional[Positive]" = None) -> Mine: ...

class Factory:
    @classmethod
    def build(cls, width: Count) -> Mine: ...

@dataclass
class Record:
    width: Count
    names: list[str] = field(default_factory=list)
    limit: ClassVar[int] = 3
    state: int = field(default=0, init=False)

@dataclass
class Longer(Record):
    height: Count = 1

NUMBER = 3
"""
OTHER = """
from dataclasses import dataclass
from rlhf_lightning.value_types import Fraction as Half

@dataclass
class Settings:
    share: Half = 0.5
"""


@pytest.fixture
def mine(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("mine", "other"):
        monkeypatch.delitem(sys.modules, name, raising=False)  # imported by another test's process
    (empty_folder / "mine.py").write_text(VALUES)
    (empty_folder / "other.py").write_text(OTHER)


def complaint(target: str, name: str = "algorithm", **values: Any) -> str:
    with pytest.raises(UserError) as error:
        validate({name: {"_target_": target, **values}}, None)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"stength": 1}, "algorithm.stength: no such key; did you mean algorithm.strength?"),
        ({"bta": 1}, "algorithm.bta: no such key; did you mean algorithm.beta?"),
        ({"strength": 0}, "algorithm.strength: found 0; must be a number > 0"),
        ({"strength": "much"}, 'algorithm.strength: found "much"; must be a number > 0'),
        ({"strength": None}, "algorithm.strength: found null; must be a number > 0"),
        ({"share": 1.5}, "algorithm.share: found 1.5; must be a number in [0, 1] or null"),
        ({"rounds": 1.5}, "algorithm.rounds: found 1.5; must be a whole number >= 1"),
        ({"rounds": True}, "algorithm.rounds: found true; must be a whole number >= 1"),
        ({"mode": "dwn"}, 'algorithm.mode: found "dwn"; must be up | down; did you mean down?'),
        ({"sizes": [1, 0]}, "algorithm.sizes: found [1, 0]; must be a list of: a whole number >= 1"),
        ({"sizes": 4}, "algorithm.sizes: found 4; must be a list of"),
        ({"pair": [1]}, "algorithm.pair: found [1]; must be a list of: a whole number"),
        ({"small": 0.5}, "algorithm.small: found 0.5; must be a number in (0, 0.25)"),
        ({"half": 2}, "algorithm.half: found 2; must be a number in [0, 1]"),
        ({"flag": 1}, "algorithm.flag: found 1; must be true | false"),
        ({"file": 3}, "algorithm.file: found 3; must be a text"),
        ({"place": ""}, 'algorithm.place: found ""; must be a text'),
        ({"beta": -1}, "algorithm.beta: found -1; must be a number > 0"),
        ({"loss_type": "dpo"}, "algorithm.loss_type: standard DPO is algorithm.loss_type=sigmoid"),
        ({"mix": 3}, "algorithm.mix: found 3; must be a section of keys"),
        ({"mix": {"share": 0.5}}, "algorithm.mix._target_: missing; give algorithm.mix._target_=other.Settings"),
        (
            {"mix": {"_target_": "other.Settings", "share": 7}},
            "algorithm.mix.share: found 7; must be a number in [0, 1]",
        ),
        ({"mix": {"_target_": "other.Settings", "shre": 0.5}}, "algorithm.mix.shre: no such key; did you mean"),
    ],
)
@pytest.mark.parametrize("name", ["Mine", "NoInit"])
def test_a_wrong_key_or_value_of_a_class_from_outside_is_refused(
    name: str, values: dict[str, Any], expected: str, mine: None
) -> None:
    assert complaint(f"mine.{name}", **values).startswith(expected)


@pytest.mark.parametrize(
    ("target", "name", "values", "expected"),
    [
        ("mine.Fixed", "algorithm", {"strength": 1.0}, "algorithm.strength: no such key"),
        ("mine.Fixed", "algorithm", {"rounds": 0}, "algorithm.rounds: found 0"),
        ("mine.Closed", "algorithm", {}, "algorithm.width: missing; give algorithm.width=..."),
        (
            "mine.Closed",
            "algorithm",
            {"width": 1, "gamma": 1},
            "algorithm.gamma: no such key; allowed: algorithm.w",
        ),
        ("mine.Open", "callbacks", {"width": "x"}, 'callbacks.width: found "x"; must be a whole number'),
        ("mine.make", "section", {"hight": 1}, "section.hight: no such key; did you mean section.he"),
        ("mine.make", "section", {"height": 0}, "section.height: found 0; must be a number > 0 or null"),
        ("mine.Factory.build", "section", {"width": 0}, "section.width: found 0; must be a whole number >= 1"),
        ("mine.Record", "section", {}, "section.width: missing"),
        ("mine.Record", "section", {"width": 1, "state": 1}, "section.state: no such key"),
        ("mine.Record", "section", {"width": 1, "names": [3]}, "section.names: found [3]; must be a list of: a text"),
        ("mine.Longer", "section", {"width": 0}, "section.width: found 0"),
        (
            "mine.Longer",
            "section",
            {"width": 1, "hight": 1},
            "section.hight: no such key; did you mean section.he",
        ),
        ("torch.optim.RMSprop", "optimizer", {"lr": -1}, "optimizer.lr: found -1; must be a number >= 0"),
        (
            "torch.optim.RMSprop",
            "optimizer",
            {"alph": 0.9},
            "optimizer.alph: no such key; did you mean optimizer.",
        ),
        (
            *("torch.optim.lr_scheduler.CosineAnnealingLR", "scheduler", {"T_max": 0}),
            "scheduler.T_max: found 0; must be a whole number >= 1",
        ),
        (
            *("lightning.pytorch.callbacks.EarlyStopping", "early", {"monitor": "val/loss", "patiance": 1}),
            "early.patiance: no such key; did you mean early.patience?",
        ),
        ("lightning.pytorch.callbacks.EarlyStopping", "early", {}, "early.monitor: missing"),
        ("rlhf_lightning.algorithms.NoModule", "algorithm", {}, "algorithm._target_: no such class: rlhf_lightning."),
    ],
)
def test_functions_dataclasses_and_classes_of_libraries_are_read_too(
    target: str, name: str, values: dict[str, Any], expected: str, mine: None
) -> None:
    assert complaint(target, name, **values).startswith(expected)


@pytest.mark.parametrize(
    ("target", "values"),
    [
        (
            "mine.Mine",
            {
                **{"strength": 2, "share": None, "sizes": [1, 2], "free": {"any": 1}, "file": "y", "beta": 0.3},
                **{"mix": {"_target_": "other.Settings", "share": 1}, "pair": [3, 4]},
            },
        ),
        ("mine.Open", {"anything": 3}),
        ("mine.make", {"width": 1, "height": None}),
        ("mine.Longer", {"width": 1, "height": 2, "names": ["a"]}),
        ("nowhere.Mine", {"anything": 3}),
    ],
)
def test_what_a_class_takes_passes(target: str, values: dict[str, Any], mine: None) -> None:
    validate({"algorithm": {"_target_": target, **values}}, None)


def test_the_defaults_of_a_constructor_are_known(mine: None) -> None:
    assert setting({"_target_": "mine.Mine"}, "rounds") == 3
    assert setting({"_target_": "mine.Mine", "rounds": 5}, "rounds") == 5
    assert setting({"_target_": "mine.Mine"}, "precompute_reference") is False
    assert setting({"_target_": "mine.Mine"}, "num_minibatches", 1) == 1
    assert signature("nowhere.Mine").takes_more


def test_a_constant_is_not_a_class(mine: None) -> None:
    with pytest.raises(
        UserError, match=r"^algorithm\._target_: mine\.NUMBER is a constant \(int\), which cannot be called"
    ):
        check_names({"algorithm": {"_target_": "mine.NUMBER"}})


def test_a_config_is_refused_before_torch_is_imported(mine: None) -> None:
    code = (
        "import sys\n"
        "from rlhf_lightning.commands.composition import compose_config\n"
        "from rlhf_lightning.commands.train import check_all\n"
        "from rlhf_lightning.errors import UserError\n"
        "words = ['experiment=dpo', 'model.path=gpt2', 'data.train=org/name', 'algorithm._target_=mine.Mine']\n"
        "for word in ('+algorithm.strength=0', '+algorithm.stength=1', 'model.attn_implementation=telepathy',\n"
        "             'algorithm._target_=mine.NUMBER', 'algorithm._target_=mine.Nothing'):\n"
        "    try:\n"
        "        check_all(compose_config('train', [*words, word]))\n"
        "    except UserError as error:\n"
        "        print(word.split('=')[0].lstrip('+') in str(error))\n"
        "print(sorted({'torch', 'lightning', 'transformers', 'mine'} & set(sys.modules)))\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split("\n")[:-1] == ["True"] * 5 + ["[]"]


@pytest.mark.parametrize("value", ["eager", "sdpa", "kernels-community/flash-attn", None])
def test_attention_is_a_known_one_or_a_kernel_of_the_hub(value: str | None) -> None:
    validate(
        {"model": {"_target_": "rlhf_lightning.models.load_causal_lm", "path": "x", "attn_implementation": value}}, None
    )


def test_the_top_level_and_sections_are_told_together(mine: None) -> None:
    with pytest.raises(UserError, match=r"^algorithm\.strength: found 0.*\(and \d+ more\)$"):
        validate({"algorithm": {"_target_": "mine.Mine", "beta": -1, "strength": 0}, "seed": 1}, Train)
