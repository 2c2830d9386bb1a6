"""`--list`."""

from __future__ import annotations

import re

import pytest

from rlhf_lightning.errors import UserError
from rlhf_lightning.guide.composed import groups, options
from rlhf_lightning.guide.listing import kinds, listing, option_text


def test_without_a_name_it_says_what_can_be_listed():
    text = listing("")
    for kind in ("experiments", "algorithms", "pipelines", "rewards", "callbacks", "adapters", "data", "commands"):
        assert kind in text


@pytest.mark.parametrize("kind", kinds())
def test_every_list_fits_a_terminal(kind):
    assert max(map(len, listing(kind).splitlines())) <= 80


def test_every_option_says_what_it_is():
    silent = [
        f"{group}={option}"
        for group in {*groups("train"), *groups("pipeline")}
        for option in options(group)
        if not option_text(group, option)
    ]
    assert silent == []


@pytest.mark.parametrize("name", ["experiments", "experiment", "Experiments", "model/adapter", "adapter", "data"])
def test_one_and_many_mean_the_same(name):
    assert "=<option>" in listing(name)


def test_callbacks_that_can_be_added_are_named():
    assert "TrainableAverage" in listing("callbacks")
    assert "DurableCheckpointIO" not in listing("callbacks")  # not a callback


def test_a_wrong_name_says_what_can_be_listed():
    with pytest.raises(UserError, match=r"--list: nothing is called algos; did you mean algorithms\?; .*experiments"):
        listing("algos")


def test_the_users_own_options_are_listed(tmp_path):
    (tmp_path / "algorithm").mkdir()
    (tmp_path / "algorithm/mine.yaml").write_text("_target_: rlhf_lightning.algorithms.DPOModule\n")
    (tmp_path / "flavour").mkdir()
    (tmp_path / "flavour/vanilla.yaml").write_text("# The plain one.\n{}\n")
    assert re.search(r"mine +direct preference optimisation", listing("algorithms", str(tmp_path)))
    assert "vanilla  The plain one." in listing("flavours", str(tmp_path))
