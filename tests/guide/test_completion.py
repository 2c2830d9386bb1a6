"""Completion, as bash itself requests it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_lightning.commands.guidance import composed
from rlhf_lightning.guide.completion import candidates, install, script

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")

# What bash does on Tab: words are also split at `=`, and the line is passed literally.
_TAB = """
source "$1"
COMP_LINE="$2" COMP_POINT=${#COMP_LINE} COMP_WORDS=("${@:3}")
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_rlhf_lightning
printf '%s\\n' "${COMPREPLY[@]}"
"""


def offered(line: str, *words: str, home: Path) -> list[str]:
    install(home)
    done = subprocess.run(
        ["bash", "-c", _TAB, "bash", str(home / ".local/share/rlhf-lightning/completion.bash"), line, *words],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        check=True,
    )
    return done.stdout.split()


def test_bash_completes_the_option_of_a_group(tmp_path):
    words = ["rlhf-train", "algorithm", "=", "rein"]
    assert offered("rlhf-train algorithm=rein", *words, home=tmp_path) == ["reinforce_pp"]


def test_bash_completes_a_key_of_the_algorithm_that_is_chosen(tmp_path):
    line = "rlhf train algorithm=grpo algorithm.est"
    words = ["rlhf", "train", "algorithm", "=", "grpo", "algorithm.est"]
    assert offered(line, *words, home=tmp_path) == ["algorithm.estimator="]


def suggestions(*words: str, command: str = "train") -> list[str]:
    return candidates(command, words, lambda overrides: composed(command, overrides))


def test_keys_are_offered_one_level_at_a_time():
    assert suggestions("algorithm=ppo", "algorithm.k") == ["algorithm.kl."]
    assert "algorithm.kl.horizon=" in suggestions("algorithm=ppo", "algorithm.kl.")


def test_the_values_of_a_key_with_choices_are_offered():
    assert suggestions("algorithm=dpo", "algorithm.loss_type=sig") == ["algorithm.loss_type=sigmoid"]
    assert suggestions("explain=") == ["explain=true", "explain=false"]
    assert suggestions("data.train=my") == []  # bash completes files


def test_options_and_lists_are_offered():
    assert suggestions("--li") == ["--list"]
    assert suggestions("--list", "exp") == ["experiments"]
    assert suggestions("", command="track") == ["run=", "tracking_uri="]


def test_installing_twice_changes_the_start_up_file_once(tmp_path):
    (tmp_path / ".bashrc").write_text("alias ll='ls -l'")
    install(tmp_path)
    once = (tmp_path / ".bashrc").read_text()
    assert "completion.bash" in install(tmp_path)
    assert (tmp_path / ".bashrc").read_text() == once
    assert once.startswith("alias ll='ls -l'\n[ -f ")
    assert (tmp_path / ".local/share/rlhf-lightning/completion.bash").read_text() == script()
