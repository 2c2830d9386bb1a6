from __future__ import annotations

import pytest

from rlhf_lightning.commands.composition import compose_config
from rlhf_lightning.config.arithmetic import count_rows, explain, ppo_arithmetic, supervised_arithmetic
from rlhf_lightning.errors import UserError


def ppo(**trainer) -> dict:
    return {
        "name": "ppo",
        "rollout": {"batch_size": 64},
        "algorithm": {"_target_": "rlhf_lightning.algorithms.PPOModule", "ppo_epochs": 4, "num_minibatches": 8},
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


def test_samples_multiply_responses_and_not_prompts_or_steps():
    config = ppo(devices=2)
    config["rollout"]["samples_per_prompt"] = 4
    counts = ppo_arithmetic(config)
    assert counts["prompts per iteration"] == 128 and counts["responses per prompt"] == 4
    assert counts["responses per iteration"] == 512 and counts["responses per micro-batch"] == 32
    assert counts["responses in total"] == 5120 and counts["optimiser steps per iteration"] == 32
    assert "rollout.samples_per_prompt" in explain(config)
    config["rollout"] |= {"batch_size": 3, "samples_per_prompt": 6}
    with pytest.raises(
        UserError,
        match=r"batch_size: found 3; must be a multiple of 4, as the responses \(6 per prompt\) .* such as 4$",
    ):
        ppo_arithmetic(config)
    config["rollout"] |= {"batch_size": 4}
    assert ppo_arithmetic(config)["responses per micro-batch"] == 3


def test_max_steps_ends_ppo_early():
    counts = ppo_arithmetic(ppo(max_steps=100))
    assert counts["iterations"] == 4
    assert counts["optimiser steps in total"] == 100


def test_without_an_end_there_are_no_totals(rows):
    for counts in (ppo_arithmetic(ppo(max_epochs=-1)), supervised_arithmetic(supervised(rows, max_epochs=-1))):
        assert counts["processes"] > 0
        assert not {"iterations", "epochs", "optimiser steps in total"} & set(counts)
        assert all(count > 0 for count in counts.values())
    assert "the run has no end: trainer.max_epochs=-1" in explain(ppo(max_epochs=-1))
    assert ppo_arithmetic(ppo(max_epochs=-1, max_steps=100))["optimiser steps in total"] == 100


@pytest.mark.parametrize(
    ("limit", "steps", "total"),
    [
        ({"limit_train_batches": 5}, 3, 120),
        ({"limit_train_batches": 500}, 7, 300),
        ({"limit_train_batches": 0.5}, 3, 144),
        ({"limit_train_batches": 1.0}, 7, 300),
        ({"overfit_batches": 2, "limit_train_batches": 5}, 1, 48),
        ({"fast_dev_run": True}, 1, 8),
        ({"fast_dev_run": 3}, 2, 24),
    ],
)
def test_batches_that_the_trainer_leaves_out_are_not_counted(rows, limit, steps, total):
    """13 batches, two per step, in 3 epochs (a fast_dev_run has one)."""
    counts = supervised_arithmetic(supervised(rows, **limit))
    assert counts["optimiser steps per epoch"] == steps
    assert counts["rows in total"] == total


def test_responses_that_do_not_divide_are_refused_with_sizes_that_do():
    with pytest.raises(ValueError, match=r"rollout.batch_size: found 64; .* = 24, such as 48 or 72"):
        ppo_arithmetic(ppo(accumulate_grad_batches=3))


TRAINER = {"max_epochs", "limit_train_batches", "overfit_batches", "fast_dev_run"}


def supervised(train: str, **settings) -> dict:
    limits = {name: value for name, value in settings.items() if name in TRAINER}
    data = {name: value for name, value in settings.items() if name not in TRAINER}
    return {
        "name": "sft",
        "algorithm": {},
        "trainer": {"devices": 2, "max_epochs": 3, "accumulate_grad_batches": 2, **limits},
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


def test_both_answers_of_a_pair_are_rows_of_unpaired_data(tmp_path):
    pair, answer = (
        '{"prompt": "a", "chosen": "b", "rejected": "c"}\n',
        '{"prompt": "a", "completion": "b", "label": true}\n',
    )
    for text, rows in ((pair * 30, 48), (answer * 30, 24), (pair + answer, None)):
        (tmp_path / "rows.jsonl").write_text(text)
        config = supervised(str(tmp_path / "rows.jsonl"), val_fraction=0.2)
        config["algorithm"] = {"_target_": "rlhf_lightning.algorithms.KTOModule"}
        assert supervised_arithmetic(config).get("rows") == rows


def test_rows_of_other_sources_are_unknown_until_read():
    assert count_rows("org/name") is None
    assert "counted when it is read" in explain(supervised("org/name"))


def test_explain_names_the_key_that_sets_each_count():
    text = explain(compose_config("train", ["experiment=ppo_demo", "rollout.batch_size=64"]))
    line = next(line for line in text.splitlines() if "optimiser steps per iteration" in line)
    assert "algorithm.ppo_epochs x algorithm.num_minibatches" in line
