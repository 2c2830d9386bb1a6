"""The pages that `--help` prints."""

from __future__ import annotations

import re
import shlex

import pytest

from rlhf_lightning.commands.guidance import composed
from rlhf_lightning.errors import UserError
from rlhf_lightning.guide.composed import groups
from rlhf_lightning.guide.pages import PAGES, command_page, named_command, page


@pytest.mark.parametrize("command", PAGES)
def test_a_page_is_one_screen(command):
    lines = page(command).splitlines()
    assert len(lines) <= 44
    assert max(map(len, lines)) <= 80
    assert f"usage: {command} " in page(command)


@pytest.mark.parametrize("command", PAGES)
def test_the_keys_of_a_page_exist(command):
    name = command.removeprefix("rlhf-")
    given = composed(name, ["pipeline=rounds"] if name == "pipeline" else ["experiment=ppo"] if name == "train" else [])
    known = {*given.keys, *(key.rpartition(".")[0] for key in given.keys), *given.groups(), "device_gb", "pipeline"}
    for entry in PAGES[command].keys:
        for key in entry.split(", "):
            if "<" not in key:
                assert key.removesuffix(".*").removesuffix("=true") in known, key


@pytest.mark.parametrize("command", PAGES)
def test_the_examples_of_a_page_can_be_composed(command):
    text = "\n".join(PAGES[command].examples).replace("\\\n", "")  # lines that continue on the next one
    left_out = ("-m", "~stages.dpo", "seed=0,1,2")
    for words in text.splitlines():
        overrides = [word for word in shlex.split(words) if word not in left_out]
        assert composed(command.removeprefix("rlhf-"), overrides).choices


def test_the_page_of_train_names_every_group_with_its_options():
    text = page("rlhf-train")
    for name in [*groups("train"), "reinforce_pp", "adamw", "explain=true", "--config-dir", "--list", "--help"]:
        assert name in text


def test_the_page_shows_the_users_own_options_and_groups(tmp_path):
    for name in ("algorithm", "flavour"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "vanilla.yaml").write_text("{}")
    text = page("rlhf-train", str(tmp_path))
    assert re.search(r"algorithm [^=]*vanilla", text)
    assert re.search(r"flavour +vanilla", text)


def test_one_command_leads_to_all_others():
    assert all(name.removeprefix("rlhf-") in command_page() for name in PAGES)
    assert named_command(["train"]) == "train"
    assert named_command([]) is named_command(["--help"]) is None
    with pytest.raises(UserError, match=r"rlhf trian: no such command; did you mean train\?"):
        named_command(["trian"])
