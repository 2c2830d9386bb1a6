"""A value printed as part of a command arrives unchanged when the command is pasted."""

from __future__ import annotations

import shlex
import subprocess

import pytest

from rlhf_lightning.commands.composition import compose_config
from rlhf_lightning.runs.quoting import shell_words

NAMES = [
    *(
        "outputs/mine",
        "a  b",
        "a=b",
        "a,b",
        "it's",
        'say "x"',
        "a$b",
        "a${b}",
        "$(b)",
        "`b`",
        "ü 漢字",
        "[a]",
        "{a: b}",
    ),
    *(
        "(a)",
        "a:b",
        "~a",
        "*",
        "a\\b",
        'a\\"b',
        "a\\",
        "\\${x}",
        "null",
        "True",
        "12",
        "1e5",
        ".5",
        "a#b",
        "a;b",
        "a&b",
    ),
    *("@x", "?", "a'b\"c", "-x", "!x", "%s", "<a>|b", " a", "/tmp/x"),
]


@pytest.mark.parametrize("name", NAMES)
def test_a_folders_name_arrives_through_the_shell_and_hydra(name: str) -> None:
    typed = shell_words({"ckpt": "last", "run_dir": name})
    shown = subprocess.run(["sh", "-c", f"printf '%s\\n' {typed}"], capture_output=True, text=True, check=True)
    words = shown.stdout.splitlines()
    assert words == shlex.split(typed)
    assert len(words) == 2
    config = compose_config("train", ["experiment=sft_demo", "run_dir=another", *words])  # the later one counts
    assert config["run_dir"] == name
