"""Every command that loads a model has keys for its dtype and attention, and passes them on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf_lightning.commands import evaluate, export
from rlhf_lightning.commands.composition import compose_config
from rlhf_lightning.commands.conversation import Conversation
from rlhf_lightning.config.inputs import check_inputs
from rlhf_lightning.errors import UserError
from rlhf_lightning.evaluation import policies
from rlhf_lightning.rewards import ModelReward, make_reward
from rlhf_lightning.setting_rules import check_reward
from tests.commands.runs import write_model
from tests.tiny import tiny_model, tiny_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_model("llama").save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_chat_and_evaluation_load_in_the_type_that_is_asked_for(folder: Path) -> None:
    conversation = Conversation(str(folder), dtype="bfloat16", attn_implementation="eager")
    assert conversation.model.dtype == torch.bfloat16
    assert conversation.model.config._attn_implementation == "eager"
    model = policies._load(folder, "cpu", "float16", None, None)
    assert model.dtype == torch.float16
    assert model.config._attn_implementation == "sdpa"


def test_a_reward_model_is_loaded_in_the_type_that_is_asked_for(folder: Path) -> None:
    from rlhf_lightning.models import load_reward_model, save_model

    save_model(load_reward_model(folder), tiny_tokenizer(), folder.parent / "reward")
    reward = make_reward(model=str(folder.parent / "reward"), dtype="bfloat16", attn_implementation="eager")
    assert isinstance(reward, ModelReward)
    classifier: Any = reward.model.classifier  # type: ignore[union-attr]
    assert classifier.model.dtype == torch.bfloat16
    assert classifier.config._attn_implementation == "eager"


def test_they_are_refused_where_no_reward_model_is_loaded(folder: Path) -> None:
    with pytest.raises(UserError, match=r"reward\.dtype"):
        make_reward(function="math.sqrt", dtype="bfloat16")
    with pytest.raises(UserError, match=r"reward\.attn_implementation"):
        check_reward({"function": "math.sqrt", "attn_implementation": "eager"}, "reward.")
    overrides = [f"policies={{a:{folder}}}", "baseline=a", f"prompts={folder}", "proxy.dtype=bfloat16"]
    with pytest.raises(UserError, match=r"proxy\.dtype.*proxy\.model"):
        evaluate.check(compose_config("evaluate", overrides))


@pytest.mark.parametrize("top", ["evaluate", "export", "pipeline"])
def test_a_wrong_type_is_refused_by_its_key(top: str) -> None:
    required = {
        "evaluate": ["policies={a: b}", "baseline=a", "prompts=c", "dtype=int8"],
        "export": ["run=a", "to=b", "dtype=int8"],
        "pipeline": ["pipeline=demo", "evaluation.dtype=int8"],
    }[top]
    from rlhf_lightning.config import schema
    from rlhf_lightning.config.validation import validate

    config = compose_config(top, required)
    with pytest.raises(UserError, match="dtype"):
        validate(config, getattr(schema, top.capitalize()))


def test_attention_has_no_effect_on_the_export_of_an_adapter() -> None:
    class Run:
        adapter_base = "somewhere"

    with pytest.raises(UserError, match="attn_implementation"):
        export._check_adapter(Run(), None, "eager")  # type: ignore[arg-type]


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_a_reward_model_is_not_a_policy_even_where_its_output_layer_is_tied(command: str, tmp_path: Path) -> None:
    write_model(tmp_path / "base")
    write_model(tmp_path / "scorer", classifier=True)
    if command == "train":
        words = ["experiment=sft", f"model.path={tmp_path}/scorer", "data.train=rows.jsonl", "logger=none"]
        config, check = compose_config("train", words), check_inputs
    else:
        policies = f"policies={{a: {tmp_path}/base, b: {tmp_path}/scorer}}"
        config, check = compose_config("evaluate", [policies, "baseline=a", f"prompts={__file__}"]), evaluate.check
    with pytest.raises(UserError, match=r"^(model.path|policies.b): .*scorer is a reward model"):
        check(config)
