"""Kernels in a network: which parts are replaced, what `none` leaves, and that a loaded model can be pickled."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rlhf_lightning.errors import UserError
from rlhf_lightning.kernels import KERNELS, machine
from rlhf_lightning.kernels.use import InUse, kernels_of, use_kernels
from rlhf_lightning.models import LoRA, RewardModel, load_causal_lm, load_reward_model, load_scorer, predict_tokens
from rlhf_lightning.models.forward import bare_model
from rlhf_lightning.planning.networks import Network
from tests.kernels.test_packing import batch
from tests.tiny import FAMILIES, tiny_model, tiny_tokenizer, write_reward_model

ALL = frozenset(KERNELS)


@pytest.fixture(autouse=True)
def amd(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend a processor on which all of them are worthwhile."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("torch without oneDNN")
    monkeypatch.setattr(machine, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(machine, "device_kind", lambda: "cpu")


def saved(folder: Path, family: str = "llama") -> Path:
    tiny_model(family).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def on(network: Any) -> frozenset[str]:
    return kernels_of(bare_model(getattr(network, "classifier", network))).on


def ours(network: nn.Module) -> set[str]:
    """Return the classes of this package among a network's parts."""
    return {type(module).__name__ for module in network.modules() if "rlhf_lightning" in str(type(module).__mro__[:3])}


@pytest.mark.parametrize("load", [load_causal_lm, load_reward_model, load_scorer])
def test_auto_is_all_that_fit_and_none_leaves_every_part_as_it_was(load: Any, tmp_path: Path) -> None:
    write_reward_model(tmp_path) if load is load_scorer else saved(tmp_path)
    assert on(load(tmp_path)) == ALL
    plain = load(tmp_path, kernels="none")
    network = getattr(plain, "classifier", plain)
    assert on(plain) == frozenset()
    assert ours(network) <= {"Float32Linear"}  # the head of a reward model, whatever the kernels
    ids, flags = batch()
    if load is load_causal_lm:
        predict_tokens(plain, ids, flags)
    else:
        plain(ids, (ids != 0).long())
    assert network.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_has_what_the_registry_says(family: str, tmp_path: Path) -> None:
    found = on(load_causal_lm(saved(tmp_path, family)))
    assert found == {name for name, kernel in KERNELS.items() if kernel.families is None or family in kernel.families}


@pytest.mark.parametrize("name", KERNELS)
def test_one_alone_gives_the_numbers_of_transformers(name: str, tmp_path: Path) -> None:
    ids, flags = batch()
    results = []
    for asked in ([*KERNELS[name].needs, name], "none"):
        model = load_causal_lm(saved(tmp_path), kernels=asked)
        assert on(model) == (set() if asked == "none" else set(asked))
        logprobs = predict_tokens(model, ids, flags).logprobs
        logprobs.sum().backward()
        results.append((logprobs, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5 * max(1, float(expected.detach().abs().max())))


def test_on_a_gpu_auto_is_packing_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "device_kind", lambda: "cuda")
    model = load_causal_lm(saved(tmp_path))
    assert on(model) == {"packing"}
    assert not ours(model)
    with pytest.raises(UserError, match=r"model.kernels: fast_products runs on cpu, and this machine trains on cuda"):
        load_causal_lm(tmp_path, kernels=["fast_products"])
    assert on(load_causal_lm(tmp_path, kernels=["norms"])) == {"norms"}


def test_a_name_that_does_not_fit_is_refused_and_left_out_of_what_scores(tmp_path: Path) -> None:
    saved(tmp_path / "gpt2", "gpt2")
    with pytest.raises(UserError, match=r"model.kernels: norms fits model_type .*; found gpt2"):
        load_causal_lm(tmp_path / "gpt2", kernels=["norms"])
    with pytest.raises(UserError, match="did you mean norms"):
        load_reward_model(tmp_path / "gpt2", kernels=["norm"])
    scorer = write_reward_model(tmp_path / "reward", tiny_model("gpt2"))
    assert on(load_scorer(scorer, kernels=["packing", "norms"])) == {"packing"}


def test_a_class_from_outside_by_a_familys_name_is_left_alone() -> None:
    network: Any = tiny_model("llama")
    for module in [*network.modules()]:
        if type(module).__name__.endswith("RMSNorm"):
            module.__class__ = type("LlamaRMSNorm", (type(module),), {"__module__": "elsewhere"})
    assert "norms" not in use_kernels(network).on
    with pytest.raises(UserError, match="norms fits no part of this LlamaForCausalLM"):
        use_kernels(network, ("norms",))


def test_a_plan_is_made_with_the_kernels_of_the_run() -> None:
    def parts(kernels: Any) -> set[str]:
        config = tiny_model("llama").config
        return ours(Network("llama", config, "CAUSAL_LM", torch.float32, kernels=kernels).build())

    assert parts("none") == set()
    assert parts(("packing", "gated_blocks")) == {"GatedMLP"}
    assert "GatedMLP" in parts("auto")


def results(model: Any) -> list[torch.Tensor]:
    """Return the results of the model's own forward pass, and of ours."""
    ids, flags = batch()
    with torch.no_grad():
        if isinstance(model, RewardModel):
            return [model(ids, (ids != 0).long())]
        return [model(ids).logits, predict_tokens(model, ids, flags).logprobs]


@pytest.mark.parametrize(
    "settings",
    [{}, {"adapter": LoRA(rank=2), "activation_checkpointing": True}],
    ids=["whole", "adapter"],
)
@pytest.mark.parametrize("load", [load_causal_lm, load_reward_model])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "qwen3"])
def test_a_loaded_model_is_pickled_and_copied(family: str, load: Any, settings: Any, tmp_path: Path) -> None:
    model = load(saved(tmp_path, family), dropout=False, **settings)
    expected = results(model)  # packed once, so that its attention has the packed rows' name
    for again in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert all(torch.equal(a, b) for a, b in zip(results(again), expected, strict=True))
        assert [type(part) for part in again.modules()] == [type(part) for part in model.modules()]
        assert on(again) == on(model)
        assert all(a is not b for a, b in zip(again.parameters(), model.parameters(), strict=True))


# Reads a pickled model first, without importing this package itself; then trains with it. Python's own audit events
# show how both change the process.
LIBRARY_CALL = """
import os, pickle, sys
import torch, lightning, transformers, peft, datasets, pydantic
before, seen = dict(os.environ), []
def watch(event, given):
    if event in ("os.exec", "os.putenv", "os.unsetenv") or (event == "ctypes.dlsym" and given[1] == "mallopt"):
        seen.append((event, *map(str, given)))
sys.addaudithook(watch)

folder = sys.argv[1]
model, ids, logits = pickle.load(open(folder + "/model.pkl", "rb"))
assert torch.equal(model(ids).logits, logits), "the pickled model gives other logits"

from rlhf_lightning.algorithms import SFTModule
from rlhf_lightning.data import SFTDataModule
from rlhf_lightning.models import LoRA, load_causal_lm, load_tokenizer
tokenizer = load_tokenizer(folder)
module = SFTModule(lambda: load_causal_lm(folder, adapter=LoRA(rank=2)), tokenizer, torch.optim.AdamW)
trainer = lightning.Trainer(max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False,
                            enable_progress_bar=False, default_root_dir=folder)
trainer.fit(module, SFTDataModule(tokenizer, folder + "/rows.jsonl", batch_size=2))
assert trainer.global_step == 1
changed = {name: os.environ.get(name) for name in {*before, *os.environ} if before.get(name) != os.environ.get(name)}
assert not changed and not seen, (changed, seen)
"""


def test_a_library_call_leaves_the_process_alone_and_reads_a_pickled_model(tmp_path: Path) -> None:
    """No variable is set, no `mallopt` is called and nothing is restarted: only commands do that."""
    model = load_causal_lm(saved(tmp_path, "gpt2"))
    logits, _ = results(model)
    (tmp_path / "model.pkl").write_bytes(pickle.dumps((model, batch()[0], logits)))
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a b", "completion": "c d"}\n' * 4)
    command = [sys.executable, "-W", "ignore", "-c", LIBRARY_CALL, str(tmp_path)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_what_is_in_use_says_what_was_asked(tmp_path: Path) -> None:
    assert kernels_of(load_causal_lm(saved(tmp_path), kernels=["norms"])) == InUse(("norms",), frozenset({"norms"}))
    assert kernels_of(tiny_model()).on == {"packing", "row_attention", "fast_products"}  # made by no loader of ours
