"""`--help algorithm=grpo` and the like: keys with types, values and a line of explanation."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from rlhf_lightning.commands.guidance import composed
from rlhf_lightning.config.schema import TOP_LEVELS
from rlhf_lightning.errors import UserError
from rlhf_lightning.guide.composed import groups, options
from rlhf_lightning.guide.keys import UNKNOWN, Key
from rlhf_lightning.guide.topics import entry, topic_page

ROOT = Path(__file__).resolve().parents[2]


def page(*words: str, command: str = "train", config_dir: str | None = None) -> str:
    return topic_page(words, composed(command, words, config_dir))


def test_the_keys_of_an_algorithm_have_type_range_default_and_a_line_of_explanation():
    lines = page("algorithm=grpo").splitlines()
    at = lines.index("algorithm.clip_range=0.2                  a number in (0, 1) or null")
    assert lines[at + 1].startswith("    clip ratios to 1 +- this")
    assert "algorithm.kl.coef=0.04                    a number >= 0" in lines
    assert "algorithm.kl.kp=2.0                       a number >= 0" in lines  # only in the constructor
    assert any("other options of algorithm: a2c" in line for line in lines)


def test_a_line_break_is_shown_as_bash_takes_it():
    typed = next(line.split()[0] for line in page("data=steps").splitlines() if "step_separator" in line)
    word = subprocess.run(["bash", "-c", f"printf %s {typed}"], capture_output=True, text=True, check=True).stdout
    assert composed("train", ["data=steps", word]).keys["data.step_separator"].value == "\n"


def _explained(words: list[str]) -> None:
    given = composed("train", words)
    for word in words:
        assert topic_page([word], given).startswith(word)
    for key in given.keys.values():
        if not key.name.startswith(("trainer.strategy.", "requires.")):
            assert key.text, f"{' '.join(words)}: say what {key.name} is in its file or its class's docstring"


@pytest.mark.parametrize(
    "number", range(max(len(options(group)) for group in groups("train") if group != "experiment"))
)
def test_every_option_has_a_page_that_explains_each_of_its_keys(number):
    """The first options of all groups in one config, then the second ones, and so on."""
    of_groups = {group: options(group) for group in groups("train") if group != "experiment"}
    _explained([f"{group}={names[number % len(names)]}" for group, names in of_groups.items()])


@pytest.mark.slow
@pytest.mark.parametrize("experiment", options("experiment"))
def test_every_experiment_has_a_page_that_explains_each_of_its_keys(experiment):
    _explained([f"experiment={experiment}"])


def test_every_key_of_every_other_command_is_explained():
    for command in set(TOP_LEVELS) - {"train"}:
        assert [key.name for key in composed(command, []).keys.values() if not key.text] == []


def test_a_class_from_outside_is_explained_by_its_own_constructor(monkeypatch):
    monkeypatch.chdir(ROOT / "examples/outside_algorithms")
    text = page("algorithm=dpo_positive", config_dir="conf")
    assert "algorithm.penalty=50.0                    a number >= 0" in text
    assert "DPO-Positive" in text


def test_a_constructor_of_the_users_own_in_the_working_folder_is_read_without_its_import(monkeypatch, tmp_path):
    (tmp_path / "explained.py").write_text(
        "raise SystemExit('imported')\n"
        "from rlhf_lightning.algorithms import DPOModule\n"
        "from rlhf_lightning.value_types import Positive\n"
        "class Mine(DPOModule):\n"
        '    """Mine.\n\n    Args:\n        margin: added to every pair.\n    """\n\n'
        "    def __init__(self, *args, margin: Positive = 0.5, **kwargs):\n"
        "        super().__init__(*args, **kwargs)\n"
    )
    (tmp_path / "conf/algorithm").mkdir(parents=True)
    (tmp_path / "conf/algorithm/mine.yaml").write_text("_target_: explained.Mine\n")
    monkeypatch.chdir(tmp_path)
    lines = page("algorithm=mine", config_dir="conf").splitlines()
    at = lines.index("algorithm.margin=0.5                      a number > 0")
    assert lines[at + 1] == "    added to every pair"
    assert any(line.startswith("algorithm.beta=0.1 ") for line in lines)  # of the class above


def test_a_section_and_a_key_have_pages_of_their_own():
    assert page("algorithm.kl", "algorithm=ppo").startswith("algorithm.kl.kind=adaptive")
    assert page("optimizer.lr=1e-3").startswith("optimizer.lr=0.001 ")
    assert page("experiment=ppo_demo").count("algorithm.kl.target=1.8") == 1
    assert "rollout=native | vllm" in page("rollout")
    assert page("gold", command="evaluate").startswith("gold.function=null")
    assert "round.label.call.judge.model=..." in page("labelers=judge", command="pipeline")
    assert "seed=0" in page("keys").splitlines()


@pytest.mark.parametrize(
    ("word", "command", "line"),
    [
        ("gradient_clip_val", "train", r"did you mean trainer\.gradient_clip_val\?"),
        ("algoritm", "train", r"did you mean algorithm\?"),
        ("xyzzy", "chat", "rlhf-chat --help keys names them all"),
        ("stages.ppo.algorithm.kl", "pipeline", r"rlhf-train --help algorithm\.kl explains them"),
    ],
)
def test_a_word_that_names_nothing_says_what_does(word, command, line):
    with pytest.raises(UserError, match=line):
        page(word, command=command)


def test_a_key_without_a_known_value_is_named_alone():
    assert entry(Key("a.b", int, UNKNOWN, "text")) == [f"{'a.b':<40}  a whole number", "    text"]
    assert entry(Key("a.b", int, "???", ""))[0].endswith(
        "a.b=...                                   a whole number; must be given"
    )
