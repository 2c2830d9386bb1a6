"""Impossible kernels are refused before torch is imported, and `explain=true` names the active ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlhf_lightning.commands import train
from rlhf_lightning.commands.build import build_module
from rlhf_lightning.commands.composition import compose_config
from rlhf_lightning.config import kernel_choice
from rlhf_lightning.config.arithmetic import explain
from rlhf_lightning.errors import UserError
from rlhf_lightning.kernels import KERNELS, machine
from rlhf_lightning.kernels.use import kernels_of
from rlhf_lightning.models import load_tokenizer
from tests.tiny import tiny_model, write_reward_model


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for family in ("llama", "gpt2"):
        tiny_model(family).save_pretrained(folder / family)
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_config.json").write_text(f'{{"base_model_name_or_path": "{folder}/gpt2"}}')
    return folder


def config(path: object, *lines: str) -> dict:
    return compose_config("train", ["experiment=dpo", f"model.path={path}", "data.train=org/name", *lines])


@pytest.mark.parametrize(
    ("family", "lines", "says"),
    [
        ("llama", ["model.kernels=[paking]"], "model.kernels: no such kernel: paking; .*did you mean packing"),
        ("llama", ["model.kernels=nonee"], "model.kernels: found nonee; .*did you mean none"),
        ("gpt2", ["model.kernels=[norms]"], "norms fits model_type .*; found gpt2"),
        ("adapter", ["model.kernels=[norms]"], "norms fits model_type .*; found gpt2"),
        ("llama", ["model.kernels=[packing]", "model.attn_implementation=eager"], "needs attn_implementation=sdpa"),
        ("llama", ["model.kernels=[norms]", "model.dtype=bfloat16"], "in float32 only; found bfloat16"),
        ("llama", ["model.kernels=[norms]", "trainer.precision=bf16-true"], "in float32 only; found bfloat16"),
        ("llama", ["model.kernels=[fast_products]", "trainer.precision=bf16-mixed"], "under a mixed trainer.precision"),
        (
            "llama",
            ["model.kernels=[gated_blocks]", "model.activation_checkpointing=true"],
            "no effect under activation_checkpointing=true",
        ),
    ],
)
def test_what_has_no_effect_is_refused_early(models: Path, family: str, lines: list[str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        train.check(config(models / family, *lines))


@pytest.mark.parametrize("family", ["llama", "gpt2", "adapter", "nowhere/yet"])
def test_auto_none_and_what_fits_pass(models: Path, family: str) -> None:
    for lines in ([], ["model.kernels=none"], ["model.kernels=[packing]"]):
        train.check(config(models / family, *lines))
    train.check(config(models / "llama", "model.kernels=[fast_products]", "model.dtype=bfloat16", "model/adapter=lora"))


@pytest.mark.parametrize(
    ("family", "lines", "line"),
    [
        ("llama", [], f"  kernels: {', '.join(KERNELS)} (model.kernels=auto, on cpu)"),
        ("gpt2", [], "  kernels: packing, row_attention, fast_products (model.kernels=auto, on cpu)"),
        ("llama", ["model.kernels=none"], "  kernels: none (model.kernels=none, on cpu)"),
        (
            "llama",
            ["model.kernels=[norms,packing]"],
            "  kernels: packing, norms (model.kernels=[norms, packing], on cpu)",
        ),
    ],
)
def test_explain_names_the_kernels(
    models: Path, family: str, lines: list[str], line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_choice, "_is_amd_with_avx512", lambda: True)
    monkeypatch.setattr(kernel_choice, "GPUS", ())
    assert line in explain(config(models / family, *lines)).splitlines()


def test_explain_says_that_a_model_is_not_there_yet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(kernel_choice, "GPUS", (tmp_path,))
    path = tmp_path / "later"
    line = f"  kernels: packing (model.kernels=auto, on cuda, as far as {path} fits them)"
    assert line in explain(config(path)).splitlines()


def test_the_processor_is_judged_as_torch_judges_it() -> None:
    if machine.device_kind() == "cpu":
        assert kernel_choice._is_amd_with_avx512() == machine.onednn_is_faster()


def test_a_runs_reward_models_compute_with_its_kernels(tmp_path: Path) -> None:
    """Those that fit; a sum passes them on."""
    path = write_reward_model(tmp_path / "reward", tiny_model("gpt2"))
    parts = (
        f"{{a: {{model: {path}, weight: 1.0}}, b: {{function: rlhf_lightning.simulation.gold_reward, weight: 1.0}}}}"
    )
    for source in (f"reward.model={path}", f"reward.components={parts}"):
        lines = [f"model.path={path}", "data.train=org/name", source, "model.kernels=[norms,packing]"]
        module: Any = build_module(compose_config("train", ["experiment=ppo", *lines]), load_tokenizer(path))
        reward = getattr(module.scored_by()[0], "rewards", {"a": module.scored_by()[0]})["a"]
        assert kernels_of(reward.model.classifier).on == {"packing"}


def test_a_path_that_is_too_long_is_named() -> None:
    with pytest.raises(UserError, match=r"^model\.path: .*name too long"):
        explain(config("a/" * 3000))


def test_adapters_that_name_each_other_end_the_search(tmp_path: Path) -> None:
    for name, other in (("a", "b"), ("b", "a")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text(f'{{"base_model_name_or_path": "{tmp_path}/{other}"}}')
    assert "auto" in explain(config(tmp_path / "a"))
