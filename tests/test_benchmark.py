"""The scripts that compare with TRL: what they count, what both sides receive, and how the table is made."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaForCausalLM

from rlhf_lightning.data import PromptDataModule
from rlhf_lightning.data.loader import BatchLoader
from rlhf_lightning.models import NF4, LoRA, load_causal_lm, load_tokenizer
from rlhf_lightning.planning.networks import four_bit_bytes
from tests.tiny import tiny_model, tiny_tokenizer

ROOT = Path(__file__).parent.parent


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that imports a module of scripts/."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    return importlib.import_module


def llama(layers: int = 4, lora: bool = False) -> Any:
    model = tiny_model(hidden=64, layers=layers)
    model.set_attn_implementation("eager")  # its products are counted, all L x L of them
    return get_peft_model(model, LoRA(rank=8).config("CAUSAL_LM", None)) if lora else model


def counted(model: LlamaForCausalLM, length: int, backward: bool) -> int:
    ids = torch.arange(length)[None] % 29
    with FlopCounterMode(display=False) as counter:
        loss = model(input_ids=ids).logits.sum()
        if backward:
            loss.backward()
    return counter.get_total_flops()


def test_a_pass_needs_the_operations_that_torch_counts(scripts: Any) -> None:
    network = scripts("comparison.floors").Network.of(llama())
    assert network.forward(12, 12 * 12, 12) == counted(llama(), 12, backward=False)
    # Rotating positions is a small product without a trained input.
    assert network.step(12, 12 * 12, 12) == pytest.approx(counted(llama(), 12, backward=True), rel=1e-3)


def test_a_step_of_an_adapter_leaves_out_the_gradients_of_frozen_weights(scripts: Any) -> None:
    network = scripts("comparison.floors").Network.of(llama(lora=True))
    share = counted(llama(lora=True), 12, backward=True) / network.step(12, 12 * 12, 12)
    assert 0.95 < share <= 1.0  # nothing goes back to the embeddings, which are frozen
    assert network.step(12, 144, 12) < scripts("comparison.floors").Network.of(llama()).step(12, 144, 12)


def test_a_prompt_counts_once_for_all_its_answers(scripts: Any) -> None:
    floors = scripts("comparison.floors")
    network = floors.Network(layers=100, output=10, width=1, adapter=None)
    apart = floors.sft(network, [(30, 10), (40, 20)])["operations"]
    together = floors.preferences(network, [(20, [10, 20])], reference=False)["operations"]
    saved = 20 * 2 * 100 + 4 * 20 * 21 / 2 + 30 * 2 * 10  # the second prompt; a reward model has no logits
    assert apart - together == 3 * saved


def test_decoding_reads_the_weights_once_a_step_and_no_slot_is_idle(scripts: Any) -> None:
    floors = scripts("comparison.floors")
    network = floors.Network(layers=100, output=10, width=1, adapter=None)
    steps = lambda rows, slots: floors.decoding(network, rows, slots)["decoding_bytes"] / (110 * 4)  # noqa: E731
    assert steps([(5, 8), (5, 2)], 2) == 8
    assert steps([(5, 8), (5, 8), (5, 8), (5, 8)], 2) == 16


def test_a_floor_adds_the_products_to_the_longer_half_of_decoding(scripts: Any) -> None:
    floor = scripts("comparison.floors").floor_seconds
    needed = {"operations": 10.0, "decoding_operations": 4.0, "decoding_bytes": 30.0}
    assert floor(needed, {"operations": 2.0, "bytes": 10.0}) == 5 + 3
    assert floor(needed, {"operations": 2.0, "bytes": 30.0}) == 5 + 2


def test_both_sides_take_the_same_rows_at_a_time(scripts: Any) -> None:
    rows = [{"prompt": str(i)} for i in range(50)]
    loader = BatchLoader(rows, collate=lambda batch: batch, batch_size=8, weights=[1.0] * 50, seed=0)
    assert scripts("comparison.inputs").in_our_order(rows) == [rows[i] for i in loader.order()]


def test_resident_bytes_count_a_storage_once(scripts: Any) -> None:
    memory = scripts("comparison.memory")
    weight = torch.nn.Parameter(torch.zeros(4, 8))
    assert memory.storage_bytes([weight, weight, weight.detach()[:2]]) == 4 * 8 * 4
    assert memory.base_bytes(llama(lora=True)) == sum(p.numel() * 4 for p in llama().parameters())


def test_resident_bytes_of_4_bit_weights_have_their_scales(scripts: Any, tmp_path: Path) -> None:
    tiny_model(hidden=64).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    model = load_causal_lm(tmp_path, adapter=LoRA(rank=2), quantization=NF4(double_quant=False))
    four_bit = [p for p in model.parameters() if p.dtype == torch.uint8]
    code = 16 * 4  # the 16 values of NF4
    expected = sum(four_bit_bytes(p.numel() * 2, double_quant=False) + code for p in four_bit)
    assert scripts("comparison.memory").storage_bytes(four_bit) == expected


NOISY = """
import sys
from comparison.answering import answer
def fail():
    raise RuntimeError("no such weights")
def add(a, b):
    print("a progress bar")
    return {"sum": a + b}
answer({"add": add, "fail": fail})
"""


def test_a_worker_answers_amid_noise_and_its_death_is_told_in_its_own_words(scripts: Any, tmp_path: Path) -> None:
    (tmp_path / "noisy.py").write_text(NOISY)
    worker = scripts("comparison.workers").Worker(Path(sys.executable), "noisy", 1, [ROOT / "scripts", tmp_path], {})
    assert worker.ask("add", a=1, b=2) == {"sum": 3}
    with pytest.raises(SystemExit, match="no such weights"):
        worker.ask("fail")
    worker.close()


def test_our_ppo_draws_responses_of_full_length_and_counts_what_it_did(scripts: Any, tmp_path: Path) -> None:
    inputs, ours = scripts("comparison.inputs"), scripts("comparison.ours")
    model = inputs.random_llama(tmp_path / "model", layers=1, width=64)
    judge = inputs.reward_model(tmp_path / "judge", model)
    data = inputs.random_prompts(tmp_path / "prompts.jsonl")
    job = scripts("comparison.job").Job
    wanted = job("ppo", str(model), str(data), 32, 64, response_length=5, reward_model=str(judge), ppo_epochs=1)
    run = ours.Training(wanted)
    repeat = run.repeat()
    assert (run.module.last_rollout.mask.sum(dim=1) == 5).all()
    assert repeat["done"] == 32
    assert repeat["seconds"] > repeat["update_seconds"] > 0
    assert repeat["update_operations"] < repeat["operations"]


def test_random_prompts_have_16_to_64_tokens(scripts: Any, tmp_path: Path) -> None:
    inputs = scripts("comparison.inputs")
    model = inputs.random_llama(tmp_path / "model", layers=1, width=64)
    data = PromptDataModule(load_tokenizer(model), inputs.random_prompts(tmp_path / "prompts.jsonl"))
    data.setup()
    lengths = {len(row.input_ids) for row in data.train_prompts}
    assert len(data.train_prompts) == 32
    assert 16 <= min(lengths) < max(lengths) <= 64


def repeats(*seconds: float, peak: int = 0, **more: float) -> list[dict[str, float]]:
    return [{"done": 10, "seconds": s, "peak": peak, **more} for s in seconds]


def measured(**changes: Any) -> dict[str, Any]:
    ours = {"model": 100, "repeats": repeats(1, 2, 5, peak=300, operations=8.0)}
    peer = {"model": 100, "repeats": repeats(6, 3, 8, peak=900)}
    speeds = [{"operations": n, "torch_operations": n, "bytes": 1.0} for n in (5.0, 8.0)]
    return {"alternations": 3, "threads": 1, "ours": ours, "peer": peer, "speeds": speeds, **changes}


def test_the_table_has_ratios_of_medians_with_their_spread(scripts: Any) -> None:
    table = scripts("comparison.table")
    assert table.ratio_of_speeds(measured()) == 3.0
    line = table.figures_table({"dpo-persona": measured()}).splitlines()[-1]
    assert "2 / 5 / 10" in line and "1.25 / 1.67 / 3.33" in line and "| 3.00 (≥ 3.5) |" in line
    assert "| 50% |" in line  # 8 operations at 8 per second, in 2 seconds


def test_the_peak_of_ppo_is_over_the_models_own_bytes_and_others_are_whole(scripts: Any) -> None:
    table = scripts("comparison.table")
    results = {row.key: row for row in scripts("comparison.rows").ROWS}
    assert table.peak(results["ppo-8x512"], measured()["ours"]) == 200
    assert table.peak(results["dpo-hh"], measured()["ours"]) == 300


def test_the_table_of_the_page_is_that_of_the_figures_beside_it(scripts: Any) -> None:
    benchmark = scripts("benchmark")
    _, written, _ = benchmark.PAGE.read_text(encoding="utf-8").split(benchmark.TABLES)
    figures = json.loads(benchmark.FIGURES.read_text(encoding="utf-8"))
    assert written.strip() == benchmark.tables(figures), "scripts/benchmark.py writes both"


def test_the_update_phase_is_a_share_of_the_products_peak(scripts: Any) -> None:
    ours = {"model": 0, "repeats": repeats(9, 9, 9, update_seconds=4.0, update_operations=16.0)}
    assert scripts("comparison.table").update_share(measured(ours=ours)) == 0.5


def test_the_profile_is_sorted_shares_of_all_that_was_seen(scripts: Any) -> None:
    table = scripts("comparison.table").profile_table([("aten::add", 1.0, 5), ("aten::mm", 3.0, 2)], rows=1)
    assert table.splitlines()[2:] == ["| `aten::mm` | 75.0% | 2 |"]
