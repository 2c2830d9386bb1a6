"""A model's folder written by this package is loaded unchanged, or refused with the key and the file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_lightning.algorithms import SFTModule
from rlhf_lightning.errors import UserError, named_as
from rlhf_lightning.hashes import FILE, write_hashes
from rlhf_lightning.models import (
    export_model,
    load_causal_lm,
    load_config,
    load_reward_model,
    load_scorer,
    load_tokenizer,
    save_model,
    score_moments,
)
from rlhf_lightning.models.adapters import read_adapter
from tests.commands.runs import write_adapter, write_model
from tests.tiny import tiny_model, tiny_tokenizer, write_reward_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    export_model(tiny_model(), tiny_tokenizer(), tmp_path / "run/model")
    return tmp_path / "run"


def flip(file: Path, at: float = 0.9) -> None:
    """Change a bit towards the end of a file: in weights, the last bit of a number's mantissa."""
    content = bytearray(file.read_bytes())
    content[int(at * len(content)) // 4 * 4] ^= 1
    file.write_bytes(bytes(content))


LOADERS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "the network": (load_causal_lm, "model.safetensors"),
    "a reward model's backbone": (load_reward_model, "model.safetensors"),
    "its config": (load_causal_lm, "config.json"),
    "the config alone": (load_config, "config.json"),
    "the generation config": (load_causal_lm, "generation_config.json"),
    "the tokenizer": (load_tokenizer, "tokenizer.json"),
    "the tokenizer's config": (load_tokenizer, "tokenizer_config.json"),
    "the unit of the scores": (score_moments, "config.json"),
    "the list": (load_tokenizer, FILE),
}


@pytest.mark.parametrize("case", LOADERS)
def test_a_flipped_bit_is_refused_by_whoever_reads_the_file(case: str, folder: Path) -> None:
    load, name = LOADERS[case]
    flip(folder / "model" / name)
    with (
        named_as("reward.model"),
        pytest.raises(UserError, match=rf"^reward\.model: .*/model/{name} (has|is) ") as caught,
    ):
        load(folder)
    assert "\n" not in str(caught.value)


def test_a_reward_model_is_scored_with_as_it_was_written(tmp_path: Path) -> None:
    write_reward_model(tmp_path)
    write_hashes(tmp_path)
    load_scorer(tmp_path)
    flip(tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"model\.safetensors has changed"):
        load_scorer(tmp_path)


@pytest.mark.parametrize(
    "damaged", ["adapter/adapter_model.safetensors", "adapter/adapter_config.json", "base/model.safetensors"]
)
def test_an_adapter_and_its_base_are_as_they_were_written(damaged: str, tmp_path: Path) -> None:
    write_model(tmp_path / "base")
    write_adapter(tmp_path / "adapter", tmp_path / "base")
    for name in ("base", "adapter"):
        write_hashes(tmp_path / name)
    load_causal_lm(tmp_path / "adapter")
    flip(tmp_path / damaged, at=0.5)
    with pytest.raises(UserError, match=f"{Path(damaged).name} has changed"):
        load_causal_lm(tmp_path / "adapter")
    if damaged.endswith("adapter_model.safetensors"):
        with pytest.raises(UserError, match="has changed"):
            read_adapter(tmp_path / "adapter")


def test_a_module_exports_a_folder_with_hashes(tmp_path: Path) -> None:
    module = SFTModule(tiny_model, tiny_tokenizer(), lambda parameters: None)  # type: ignore[arg-type, return-value]
    module.configure_model()
    module.export(tmp_path)
    listed = json.loads((tmp_path / FILE).read_text())["files"]
    assert set(listed) == {path.name for path in tmp_path.iterdir()} - {FILE}
    flip(tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="has changed"):
        load_causal_lm(tmp_path)


def test_what_is_saved_over_a_folder_makes_its_hashes_void(folder: Path) -> None:
    save_model(tiny_model(hidden=16), tiny_tokenizer(), folder / "model")
    assert not (folder / "model" / FILE).exists()
    load_causal_lm(folder)


def test_other_tools_read_the_folder(folder: Path) -> None:
    AutoModelForCausalLM.from_pretrained(folder / "model")
    assert AutoTokenizer.from_pretrained(folder / "model").eos_token == "<eos>"
