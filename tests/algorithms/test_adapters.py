"""The four modules on LoRA adapters and 4-bit weights, and one backbone for the four roles of PPO."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf_lightning.algorithms import KLPenalty
from rlhf_lightning.models import NF4, LoRA, fingerprint, load_causal_lm, load_reward_model, save_model
from rlhf_lightning.rewards import make_reward
from tests.algorithms.conftest import ADAM, dpo, ppo, reward, sft, trainer
from tests.tiny import tiny_model, tiny_tokenizer

LORA = LoRA(rank=4)
QLORA: dict[str, Any] = {"adapter": LORA, "quantization": NF4()}
ANY = pytest.mark.parametrize("settings", [{"adapter": LORA}, QLORA], ids=["lora", "nf4"])


@pytest.fixture
def base(tmp_path: Path) -> Path:
    tiny_model(hidden=64).save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def adapters(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}


def frozen(module: torch.nn.Module) -> str:
    return fingerprint(torch.nn.ParameterList(p for p in module.parameters() if not p.requires_grad))


def make(name: str, base: Path, settings: dict[str, Any], **kwargs: Any) -> Any:
    load = partial(load_causal_lm, base, **settings)
    if name == "reward":
        module, data = reward(base.parent)
        module.load_model = partial(load_reward_model, base, **settings)
        return module, data
    return {"sft": sft, "dpo": dpo, "ppo": ppo}[name](load, **kwargs)


@ANY
@pytest.mark.parametrize("name", ["sft", "reward", "dpo", "ppo"])
def test_every_module_trains_the_adapter_alone_and_exports_it(
    name: str, settings: dict[str, Any], base: Path, tmp_path: Path
) -> None:
    module, data = make(name, base, settings)
    module.configure_model()
    weights, rest = adapters(module), frozen(module)
    trainer(tmp_path).fit(module, data)
    after = adapters(module)
    assert after.keys() == weights.keys()
    assert any(not torch.equal(after[key], weights[key]) for key in after if "lora_B" in key)
    assert frozen(module) == rest
    module.export(tmp_path / "out")
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    again = (load_reward_model if name == "reward" else load_causal_lm)(tmp_path / "out", **settings)
    saved, kept = adapters(again), (module.policy if name == "ppo" else module.model)
    assert saved.keys() == adapters(kept).keys()
    assert all(torch.equal(saved[key], value) for key, value in adapters(kept).items())


def trained_start(base: Path, folder: Path) -> Path:
    """Make an SFT run's adapter."""
    module, data = make("sft", base, {"adapter": LORA})
    trainer(folder, max_epochs=3).fit(module, data)
    module.export(folder / "sft" / "model")
    return folder / "sft"


@pytest.mark.parametrize("start", ["base", "adapter", "merged"])
@pytest.mark.parametrize("layout", ["shared", "separate"])
def test_kl_is_exactly_zero_before_the_first_update(start: str, layout: str, base: Path, tmp_path: Path) -> None:
    path = base if start == "base" else trained_start(base, tmp_path)
    settings = {} if start == "merged" else {"adapter": LORA}
    still = partial(torch.optim.SGD, lr=0.0)
    module, data = make("ppo", path, settings, optimizer=still, layout=layout)
    fit = trainer(tmp_path)
    fit.fit(module, data)
    assert float(fit.callback_metrics["objective/kl"]) == 0.0
    assert float(fit.callback_metrics["policy/ratio_max"]) == pytest.approx(1.0, abs=1e-4)
    assert module.reference.shared == (layout == "shared" and start != "merged")


def test_ppo_on_one_backbone_holds_four_roles_in_little_more_than_one_model(base: Path, tmp_path: Path) -> None:
    start = trained_start(base, tmp_path)
    judge, pairs = make("reward", start, {"adapter": LORA})
    trainer(tmp_path).fit(judge, pairs)
    judge.export(tmp_path / "judge" / "model")

    def run(layout: str) -> tuple[Any, list[dict[str, Any]]]:
        scores = make_reward(model=str(tmp_path / "judge"))
        module, data = make(
            "ppo", start, {"adapter": LORA}, optimizer=ADAM, reward=scores, layout=layout, kl=KLPenalty(target=2.0)
        )
        torch.manual_seed(0)
        trainer(tmp_path).fit(module, data)
        return module, module.last_samples

    shared, shared_samples = run("shared")
    _, separate_samples = run("separate")
    # The first rollout is the starting policy's, whatever the layout, and so are its scores.
    assert [row["response"] for row in shared_samples] == [row["response"] for row in separate_samples]
    for one, other in zip(shared_samples, separate_samples, strict=True):
        assert one["score"] == pytest.approx(other["score"], abs=1.1e-4)  # rounded to four digits
    names = {name for name, _ in shared.named_parameters()}
    assert {kind for kind in ("default", "reference", "reward") if any(f".{kind}." in n for n in names)} == {
        "default",
        "reference",
        "reward",
    }
    one_model = sum(p.numel() for p in tiny_model(hidden=64).parameters())
    per_adapter = sum(p.numel() for p in adapters(shared.policy).values())
    held = sum(p.numel() for p in shared.parameters())
    assert held == one_model + 3 * per_adapter + 64 + 1


@pytest.mark.parametrize(("layout", "least", "most"), [("shared", 1.0, 1.3), ("separate", 3.9, 4.6)])
def test_shared_roles_hold_at_most_1_3_times_the_bytes_of_one_model(
    layout: str, least: float, most: float, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    tiny_model(hidden=128).save_pretrained(base)
    tiny_tokenizer().save_pretrained(base)
    lora = LoRA(rank=2)
    save_model(load_reward_model(base, adapter=lora), tiny_tokenizer(), tmp_path / "judge")
    scores = make_reward(model=str(tmp_path / "judge"))
    module, _ = make("ppo", base, {"adapter": lora}, reward=scores, layout=layout)
    module.configure_model()
    tensors = [*module.parameters(), *module.reference._model.parameters()]
    judge = scores.model
    tensors += [*judge.parameters()] if layout == "separate" else [*judge.policy.parameters(), judge.head]
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}
    one_model = sum(p.numel() * p.element_size() for p in load_causal_lm(base).parameters())
    assert least <= sum(storages.values()) / one_model <= most


def test_a_shared_run_is_resumed_bitwise_with_its_reference_and_reward_adapters(base: Path, tmp_path: Path) -> None:
    start = trained_start(base, tmp_path)
    judge, pairs = make("reward", start, {"adapter": LORA})
    trainer(tmp_path).fit(judge, pairs)
    judge.export(tmp_path / "judge" / "model")

    def module() -> Any:
        return make("ppo", start, {"adapter": LORA}, reward=make_reward(model=str(tmp_path / "judge")))

    whole, data = module()
    trainer(tmp_path, max_epochs=2).fit(whole, data)
    first, data = module()
    begun = trainer(tmp_path, max_epochs=1)
    begun.fit(first, data)
    begun.save_checkpoint(tmp_path / "one.ckpt")
    saved = torch.load(tmp_path / "one.ckpt", weights_only=True)["state_dict"]
    assert saved and not any(".reference." in key or ".reward." in key or "base_layer" in key for key in saved)
    resumed, data = module()
    trainer(tmp_path, max_epochs=2).fit(resumed, data, ckpt_path=tmp_path / "one.ckpt")
    expected = adapters(whole)
    assert all(torch.equal(value, expected[key]) for key, value in adapters(resumed).items())
