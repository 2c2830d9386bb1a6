"""Tokens per second and model FLOP utilisation: what is counted, what is recorded, and that a run is unaffected."""

from __future__ import annotations

import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from rlhf_lightning.algorithms import PretrainingMix
from rlhf_lightning.callbacks import Instruments, MetricsFile
from rlhf_lightning.callbacks.instruments import needed, peak_operations, product_type
from rlhf_lightning.data import TokenizedPreference, TokenizedSequence, collate_preferences, collate_sequences
from rlhf_lightning.models import NF4, LoRA, fingerprint, load_causal_lm
from rlhf_lightning.models.operations import operations_of
from tests.algorithms.conftest import dpo, ppo, reward, sft, trainer
from tests.tiny import tiny_model

MAKERS = {"sft": sft, "dpo": dpo, "ppo": ppo}


def make(kind: str, folder: Path) -> tuple[Any, Any]:
    return reward(folder) if kind == "reward" else MAKERS[kind]()


class Pace(Callback):
    """A clock over the same stretches, and what every batch needs."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.started = self.ended = 0.0

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.started = self.started or time.perf_counter()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.batches.append(needed(batch).tolist())
        self.ended = time.perf_counter()


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_sequences_need_their_tokens_and_what_each_reads() -> None:
    rows = [TokenizedSequence([3, 4, 5], [-100, 4, 5]), TokenizedSequence([3], [-100])]
    assert needed(collate_sequences(rows, pad_id=0)).tolist() == [4, 6 + 1, 2]


def test_the_answers_of_a_prompt_need_it_once() -> None:
    rows = [
        TokenizedPreference([3, 4], [[5], [6, 7]], [(0, 1)], [0, 1]),
        TokenizedPreference([3, 9], [[5], [5]], [(0, 1)], [2, 3]),
        TokenizedPreference([3], [[9, 5], [8]], [(0, 1)], [4, 5]),
    ]
    batch = collate_preferences(rows, pad_id=0)
    lengths = [(0, 3), (2, 4), (0, 3), (2, 3), (0, 3), (1, 2)]  # start and end of what each answer adds
    pairs = sum(sum(range(shared + 1, length + 1)) for shared, length in lengths)
    tokens = sum(length - shared for shared, length in lengths)
    assert needed(batch).tolist() == [tokens, pairs, 8]


def test_ppo_records_its_updates_once_an_iteration(tmp_path: Path) -> None:
    module, data = ppo(tiny_model)
    pace = Pace()
    trainer(tmp_path, callbacks=[pace, Instruments(), MetricsFile()]).fit(module, data)
    (line,) = lines(tmp_path)
    rollout = module.last_rollout
    tokens = 4 * float(rollout.prompt_mask.sum() + rollout.mask.sum())  # 4 passes
    total = torch.tensor(pace.batches).sum(dim=0).tolist()
    assert total[0] == tokens
    assert total[2] == 4 * float(rollout.mask.sum())
    seconds = tokens / line["perf/update_tokens_per_second"]
    assert seconds == pytest.approx(pace.ended - pace.started, rel=0.2, abs=0.02)
    assert seconds <= line["time/update"]
    operations = operations_of(module.policy).step(*total)
    peak = line["perf/peak_teraflops"] * 1e12
    assert line["perf/mfu"] == pytest.approx(operations / seconds / peak, rel=1e-4)


def test_a_critic_of_its_own_and_pretraining_rows_are_counted(tmp_path: Path) -> None:
    text = tmp_path / "text.jsonl"
    text.write_text('{"text": "a b c d e f g h"}\n' * 8)
    mix = PretrainingMix(coef=1.0, data=str(text), batch_size=2)
    module, data = ppo(layout="separate", ptx=mix, ppo_epochs=1)
    trainer(tmp_path, callbacks=[Instruments(), MetricsFile()]).fit(module, data)
    (line,) = lines(tmp_path)
    rollout = module.last_rollout
    mine, extra = needed(rollout).tolist(), [4 * 2 * 9, 4 * 2 * 45, 4 * 2 * 8]  # 4 steps of 2 rows of 9 tokens
    policy, critic = operations_of(module.policy), operations_of(module.actor_critic.critic)
    operations = policy.step(*mine) + critic.step(*mine[:2], 0) + policy.step(*extra)
    rate = line["perf/mfu"] * line["perf/peak_teraflops"] * 1e12 / line["perf/update_tokens_per_second"]
    assert rate == pytest.approx(operations / (mine[0] + extra[0]), rel=1e-4)


@pytest.mark.parametrize("kind", ["sft", "reward", "dpo"])
def test_the_others_record_every_log_interval(kind: str, tmp_path: Path) -> None:
    module, data = make(kind, tmp_path)
    pace = Pace()
    trainer(tmp_path, callbacks=[pace, Instruments(), MetricsFile()], log_every_n_steps=2, max_epochs=2).fit(
        module, data
    )
    rows = [line for line in lines(tmp_path) if "train/loss" in line]
    assert [row["step"] for row in rows] == [2, 4, 6, 8, 10]
    network = operations_of(module.model)
    for i, row in enumerate(rows):
        tokens, pairs, predicted = torch.tensor(pace.batches[2 * i : 2 * i + 2]).sum(dim=0).tolist()
        operations = network.step(tokens, pairs, predicted)
        if kind == "dpo":
            operations += network.forward(tokens, pairs, predicted)
        a_token = row["perf/mfu"] * row["perf/peak_teraflops"] * 1e12 / row["perf/tokens_per_second"]
        assert a_token == pytest.approx(operations / tokens, rel=1e-4)


def test_validation_is_left_out_of_the_seconds(tmp_path: Path) -> None:
    class Slow(Callback):
        def on_validation_batch_end(self, *args: Any) -> None:
            time.sleep(0.3)

    module, data = sft()
    pace = Pace()
    fit = trainer(tmp_path, callbacks=[pace, Instruments(), MetricsFile(), Slow()], log_every_n_steps=4)
    fit.fit_loop.max_epochs = 2
    fit.val_check_interval = 1.0
    fit.fit(module, data)
    assert pace.ended - pace.started > 0.6  # two batches of validation between the epochs
    second = [line for line in lines(tmp_path) if "perf/mfu" in line][1]  # steps 5 to 8: on both sides of it
    tokens = sum(batch[0] for batch in pace.batches[4:8])
    assert tokens / second["perf/tokens_per_second"] < 0.3


@pytest.mark.parametrize("kind", ["sft", "ppo"])
def test_measuring_changes_nothing(kind: str, tmp_path: Path) -> None:
    """Dropout draws from the global generator, so one more draw would show."""
    weights = []
    for callbacks in ([], [Instruments()]):
        module, data = sft(partial(tiny_model, "gpt2", dropout=0.2)) if kind == "sft" else ppo()
        torch.manual_seed(7)
        trainer(tmp_path, callbacks=callbacks, max_epochs=2).fit(module, data)
        weights.append((fingerprint(getattr(module, "policy", module.model)), torch.random.get_rng_state()))
    assert weights[0][0] == weights[1][0]
    assert torch.equal(weights[0][1], weights[1][1])


def test_without_the_callback_nothing_is_recorded(tmp_path: Path) -> None:
    module, data = sft()
    trainer(tmp_path, callbacks=[MetricsFile()]).fit(module, data)
    assert not any(name.startswith("perf/") for line in lines(tmp_path) for name in line)


def test_a_module_that_is_not_ours_is_left_alone(tiny_module: Any, make_trainer: Any) -> None:
    make_trainer(callbacks=[Instruments()], max_epochs=1).fit(tiny_module())


@pytest.mark.parametrize(
    ("precision", "expected"), [("32-true", torch.float32), ("bf16-mixed", torch.bfloat16), ("64-true", torch.float64)]
)
def test_the_peak_is_of_the_type_that_products_run_in(precision: str, expected: torch.dtype, tmp_path: Path) -> None:
    fit = trainer(tmp_path, precision=precision)
    network = fit.precision_plugin.convert_module(tiny_model())
    assert product_type(fit, network) == expected


def test_weights_in_four_bits_are_computed_with_in_another_type(tmp_path: Path) -> None:
    tiny_model(hidden=64).save_pretrained(tmp_path)
    network = load_causal_lm(tmp_path, adapter=LoRA(rank=4), quantization=NF4(compute_dtype="bfloat16"))
    assert product_type(trainer(tmp_path), network) == torch.bfloat16


def test_the_peak_takes_a_moment_and_no_random_numbers() -> None:
    before = torch.random.get_rng_state()
    started = time.perf_counter()
    peak = peak_operations("cpu", torch.float32)
    assert peak > 1e8
    assert time.perf_counter() - started < 2.0  # 0.3 s on an idle machine
    assert torch.equal(before, torch.random.get_rng_state())
