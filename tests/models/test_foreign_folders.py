"""A model folder from elsewhere may name its own files, but no code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlhf_lightning.errors import UserError
from rlhf_lightning.models import load_causal_lm
from tests.tiny import tiny_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_model("llama").save_pretrained(tmp_path / "model", max_shard_size="1KB")
    return tmp_path / "model"


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize(
    "name", ["../outside.safetensors", "/tmp/x.safetensors", "a/b", "..", "C:\\x", "a\\b", 3, "a\0"]
)
def test_weights_outside_the_folder_are_refused(folder, name):
    index = folder / "model.safetensors.index.json"
    names = json.loads(index.read_text())["weight_map"]
    edit(index, weight_map={**names, next(iter(names)): name})
    with pytest.raises(UserError, match=r"weight_map names .* must be the name of a file in the same folder"):
        load_causal_lm(folder)


def test_files_that_are_links_into_a_cache_are_read(folder, tmp_path):
    """As in the hub's cache: snapshots/<commit>/config.json -> ../../blobs/<hash>."""
    snapshot = tmp_path / "cache" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (tmp_path / "cache" / "blobs").mkdir()
    for number, file in enumerate(sorted(folder.iterdir())):
        file.rename(tmp_path / "cache" / "blobs" / str(number))
        (snapshot / file.name).symlink_to(Path("../../blobs") / str(number))
    assert load_causal_lm(snapshot).config.model_type == "llama"


@pytest.mark.parametrize(
    "changes",
    [
        {"_attn_implementation": "evil/kernel"},
        {"attn_implementation": "evil/kernel"},
        {"_attn_implementation": {"": "evil/kernel"}},
        {"text_config": {"_attn_implementation": "kernels-community/flash-attn"}},
    ],
)
def test_attention_that_is_code_of_the_hub_is_refused(folder, changes):
    edit(folder / "config.json", **changes)
    with pytest.raises(UserError, match="code from the hub"):
        load_causal_lm(folder)


def test_so_is_one_that_the_user_names_without_trusting_it(folder):
    with pytest.raises(UserError, match=r"model.attn_implementation: found evil/kernel.*code from the hub"):
        load_causal_lm(folder, attn_implementation="evil/kernel")
