"""An error about a folder begins with the key under which the user named it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlhf_lightning.commands import chat, evaluate, export
from rlhf_lightning.commands.composition import compose_config
from rlhf_lightning.errors import UserError, key_beside, named, named_as
from rlhf_lightning.rewards import ModelReward, make_reward
from tests.commands.runs import write_model, write_run


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model")


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """Make a model whose config asks for a layer that the folder lacks."""
    folder = write_model(tmp_path / "broken")
    config = json.loads((folder / "config.json").read_text())
    layers = next(name for name in ("num_hidden_layers", "n_layer") if name in config)
    (folder / "config.json").write_text(json.dumps({**config, layers: config[layers] + 1, "layer_types": None}))
    return folder


def complaint(action: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as error:
        action()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_outside_a_name_the_usual_key_is_meant() -> None:
    assert (named(), named("reward.model"), key_beside("dtype")) == ("model.path", "reward.model", "model.dtype")
    with named_as("reward.components.polite.model"):
        assert (named(), key_beside("dtype")) == ("reward.components.polite.model", "reward.components.polite.dtype")
        with named_as("policies.a", ""):
            assert (named(), key_beside("dtype")) == ("policies.a", "dtype")
        assert named("reward.model") == "reward.components.polite.model"
    assert named() == "model.path"


def test_a_reward_is_named_by_its_key(model: Path, broken: Path) -> None:
    assert complaint(lambda: make_reward(model=str(model)).model).startswith(f"reward.model: {model} has no score")  # type: ignore[attr-defined]
    assert complaint(lambda: make_reward(model=str(broken)).model).startswith(f"reward.model: {broken} ")  # type: ignore[attr-defined]
    assert complaint(lambda: make_reward(model=f"{model}/nowhere/at/all")).startswith("reward.model: ")
    parts: Any = make_reward(components={"polite": {"model": str(model)}, "short": {"model": str(model)}})
    reward: ModelReward = parts.rewards["polite"]
    assert complaint(lambda: reward.model).startswith("reward.components.polite.model: ")
    other: ModelReward = parts.rewards["short"]
    assert complaint(lambda: other.model).startswith("reward.components.short.model: ")


def test_its_settings_are_named_beside_it(model: Path) -> None:
    standardize = complaint(lambda: make_reward(model=str(model), standardize=True))
    assert standardize.startswith("reward.standardize=true: ")
    part = {"bad": {"model": str(model), "standardize": True}}
    assert complaint(lambda: make_reward(components=part)).startswith("reward.components.bad.standardize=true: ")


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        ("policies={a: MODEL, b: BROKEN}", "policies.b: BROKEN"),
        ("policies={a: BROKEN}", "policies.a: BROKEN"),
        ("policies={a: MODEL} gold.function=math.nowhere", "gold.function: math has no 'nowhere'"),
        ("policies={a: MODEL} proxy.function=math.sqrt", "proxy.function: math.sqrt"),
        ("policies={a: MODEL} gold.model=MODEL", "gold.model: MODEL"),
        ("policies={a: MODEL} proxy.model=MODEL", "proxy.model: MODEL"),
        ("policies={a: MODEL} reference=a attn_implementation=flash_attention_9", "attn_implementation: "),
    ],
)
def test_an_evaluation_names_its_own_keys(
    overrides: str, key: str, model: Path, broken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a b"}\n')
    monkeypatch.chdir(tmp_path)
    text, expected = (words.replace("MODEL", str(model)).replace("BROKEN", str(broken)) for words in (overrides, key))
    given = [f"prompts={tmp_path}/prompts.jsonl", "baseline=a", "max_new_tokens=2"]
    words = _split(text)
    assert complaint(lambda: evaluate.evaluate(compose_config("evaluate", [*words, *given]))).startswith(expected)


def _split(text: str) -> list[str]:
    head, brace, rest = text.partition("}")
    return [head + brace, *rest.split()]


def test_chat_and_export_name_their_own_keys(model: Path, broken: Path, tmp_path: Path) -> None:
    config = compose_config("chat", [f"model={model}", f"compare_with={broken}"])
    assert complaint(lambda: chat.chat(config)).startswith(f"compare_with: {broken} ")
    run = write_run(tmp_path / "run")
    broken.rename(run / "model")
    config = compose_config("export", [f"run={run}", f"to={tmp_path}/out"])
    assert complaint(lambda: export.export(config)).startswith(f"run: {run}/model ")
