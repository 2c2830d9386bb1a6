from __future__ import annotations

import pytest

from rlhf_lightning.commands.arithmetic import count_rows, explain, ppo_arithmetic, supervised_arithmetic
from rlhf_lightning.commands.composition import compose_config


def ppo(**trainer) -> dict:
    return {
        "name": "ppo",
        "rollout": {"batch_size": 64},
        "algorithm": {"ppo_epochs": 4, "num_minibatches": 8},
        "trainer": {"devices": 1, "max_epochs": 10, **trainer},
        "data": {"train": "prompts.jsonl"},
    }


def test_optimiser_steps_of_ppo_are_passes_times_minibatches():
    counts = ppo_arithmetic(ppo())
    assert counts["optimiser steps per iteration"] == 32
    assert counts["optimiser steps in total"] == 320
    assert counts["responses in total"] == 640


def test_processes_multiply_responses_and_not_steps():
    counts = ppo_arithmetic(ppo(devices=2, num_nodes=3))
    assert counts["responses per iteration"] == 384
    assert counts["optimiser steps per iteration"] == 32
    assert counts["responses per micro-batch"] == 8


def test_accumulation_splits_a_minibatch_and_leaves_the_steps():
    counts = ppo_arithmetic(ppo(accumulate_grad_batches=4))
    assert counts["responses per micro-batch"] == 2
    assert counts["optimiser steps per iteration"] == 32


def test_max_steps_ends_ppo_early():
    counts = ppo_arithmetic(ppo(max_steps=100))
    assert counts["iterations"] == 4
    assert counts["optimiser steps in total"] == 100


def test_responses_that_do_not_divide_are_refused_with_sizes_that_do():
    with pytest.raises(ValueError, match=r"rollout.batch_size: found 64; .* = 24, such as 48 or 72"):
        ppo_arithmetic(ppo(accumulate_grad_batches=3))


def supervised(train: str, **data) -> dict:
    return {
        "name": "sft",
        "algorithm": {},
        "trainer": {"devices": 2, "max_epochs": 3, "accumulate_grad_batches": 2},
        "data": {"train": train, "batch_size": 4, **data},
    }


@pytest.fixture
def rows(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "a"}\n' * 100 + "\n")
    return str(file)


def test_a_partial_last_batch_and_window_count_as_steps(rows):
    counts = supervised_arithmetic(supervised(rows))
    assert counts["rows per optimiser step"] == 16
    assert counts["optimiser steps per epoch"] == 7
    assert counts["optimiser steps in total"] == 21


def test_held_out_rows_are_not_trained_on(rows):
    assert supervised_arithmetic(supervised(rows, val_fraction=0.2))["rows"] == 80


def test_limit_caps_the_rows(rows):
    assert supervised_arithmetic(supervised(rows, limit=10))["rows"] == 10


def test_rows_of_other_sources_are_unknown_until_read():
    assert count_rows("org/name") is None
    assert "known when it is read" in explain(supervised("org/name"))


def test_explain_names_the_key_that_sets_each_count():
    text = explain(compose_config("train", ["experiment=ppo_demo", "rollout.batch_size=64"]))
    line = next(line for line in text.splitlines() if "optimiser steps per iteration" in line)
    assert "algorithm.ppo_epochs x algorithm.num_minibatches" in line
