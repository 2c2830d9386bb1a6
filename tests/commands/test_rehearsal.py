"""Problems of a later pipeline stage are reported before the first stage, and before a run loads its model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from rlhf_lightning.commands import pipeline as command
from rlhf_lightning.commands.composition import compose_config
from rlhf_lightning.commands.rehearsal import rehearse_objects
from rlhf_lightning.config.inputs import check_inputs
from rlhf_lightning.errors import UserError
from tests.commands.runs import write_model

WORDS = [
    *("pipeline=instructgpt", "run_dir=there", "logger=none", "evaluation.prompts=held_out.jsonl"),
    *("stages.sft.model.path=model", "stages.sft.data.train=demos.jsonl", "stages.reward.data.train=prefs.jsonl"),
    *("stages.ppo.data.train=prompts.jsonl", "evaluation.baseline=sft"),
]
ROWS = {
    "demos.jsonl": {"prompt": "a b", "completion": " c"},
    "prefs.jsonl": {"prompt": "a b", "chosen": " c", "rejected": " d"},
    "prompts.jsonl": {"prompt": "a b"},
    "held_out.jsonl": {"prompt": "b a"},
}
COUNT = 200
STOPPING = "lightning.pytorch.callbacks.EarlyStopping"


def write_rows(file: str, row: dict[str, object], line: int | None = None) -> None:
    """Write COUNT rows to a file; the given row is one of them, or all."""
    usual = ROWS[file]
    rows = [row if line in (None, number) else {**usual, "prompt": f"a {number}"} for number in range(1, COUNT + 1)]
    Path(file).write_text("".join(json.dumps(each) + "\n" for each in rows))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_model(folder / "model")
    write_model(folder / "scorer", classifier=True)
    return folder


@pytest.fixture
def inputs(models: Path, empty_folder: Path) -> Path:
    shutil.copytree(models, empty_folder, dirs_exist_ok=True)
    for file, row in ROWS.items():
        write_rows(file, row, line=1)
    return empty_folder


class FirstStageError(Exception):
    """Raised where the first stage would begin."""


def start(monkeypatch: pytest.MonkeyPatch, *more: str) -> None:
    def carry_out(run: object) -> None:
        raise FirstStageError

    monkeypatch.setattr(command, "carry_out", carry_out)
    pipeline = command.compose_pipeline([*WORDS, *more])
    command.check_pipeline(pipeline)
    command.run_pipeline(pipeline)


def test_a_pipeline_without_mistakes_begins(inputs, monkeypatch):
    with pytest.raises(FirstStageError):
        start(monkeypatch)


@pytest.mark.parametrize(
    ("file", "row", "said"),
    [
        ("prefs.jsonl", '{"prompt": "a", "chosen": " b"}\n', r"stages\.reward\.data\.train: .*prefs\.jsonl, row 1: "),
        ("prefs.jsonl", "broken\n", r"stages\.reward\.data\.train: .*prefs\.jsonl"),
        ("prompts.jsonl", '{"text": "a b"}\n', r"stages\.ppo\.data\.train: .*prompts\.jsonl, row 1: "),
        ("prompts.jsonl", "", r"stages\.ppo\.data\.train: .*prompts\.jsonl"),
        ("held_out.jsonl", '{"question": "a b"}\n', r"^evaluation\.prompts: held_out\.jsonl, row 1: columns question"),
        ("held_out.jsonl", "{\n", r"^evaluation\.prompts: .*held_out\.jsonl"),
    ],
)
def test_the_rows_of_later_stages_are_read_before_the_first(file, row, said, inputs, monkeypatch):
    Path(file).write_text(row)
    with pytest.raises(UserError, match=said):
        start(monkeypatch)
    assert not Path("there").exists()


@pytest.mark.parametrize("file", ["prefs.jsonl", "prompts.jsonl", "held_out.jsonl", "demos.jsonl"])
def test_a_bad_row_far_down_is_found_too(file, inputs, monkeypatch):
    write_rows(file, {"prompt": None, "other": 1}, line=COUNT)
    with pytest.raises(UserError, match=rf"{file}, row {COUNT}: "):
        start(monkeypatch)


def test_first_rows_that_all_fall_away_are_not_held_against_the_rest(inputs, monkeypatch):
    rows = [{"prompt": f"a {number}", "chosen": " c", "rejected": " c"} for number in range(COUNT)]
    rows += [ROWS["prefs.jsonl"]]
    Path("prefs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(FirstStageError):
        start(monkeypatch, "stages.reward.data.val_fraction=0")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["+stages.ppo.callbacks.mine._target_=nowhere.Mine"],
            r"stages\.ppo\.callbacks\.mine\._target_: cannot import",
        ),
        (
            [f"+stages.ppo.callbacks.mine={{_target_: {STOPPING}, monitor: objective/kl, patent: 1}}"],
            r"stages\.ppo\.callbacks\.mine\.patent: no such key; did you mean stages\.ppo\.callbacks\.mine\.patience",
        ),
        (["stages.reward.optimizer._target_=torch.optim.Adamm"], r"stages\.reward\.optimizer\._target_: cannot import"),
        (["stages.ppo.trainer.precision=16-mixed"], r"stages\.ppo\.trainer\.precision: "),
        (["stages.ppo.trainer.strategy=deepspeed_stage_2"], r"stages\.ppo\.trainer"),
        (
            ["stages.ppo.model.attn_implementation=telepathy"],
            r"stages\.ppo\.model\.attn_implementation: found \"?telepa",
        ),
        (["stages.reward.model.attn_implementation=flash_attention_2"], r"stages\.reward\.model\.attn_implementation"),
        (
            ["stages.ppo.model/adapter=lora", "stages.ppo.model.adapter.target_modules=[nope]"],
            r"stages\.ppo\.model\.adapter",
        ),
        (
            ["stages.reward.model/adapter=lora", "stages.reward.model.adapter.target_modules='(unclosed'"],
            r"stages\.reward\.model\.adapter",
        ),
    ],
)
def test_the_objects_of_later_stages_are_tried_before_the_first(words, said, inputs, monkeypatch):
    with pytest.raises(UserError, match=said):
        start(monkeypatch, *words)


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "model.safetensors"])
def test_the_models_of_later_stages_are_looked_at_before_the_first(file, inputs, monkeypatch):
    words = ["stages.ppo.reward_from=null", "stages.ppo.reward.model=scorer"]
    with pytest.raises(FirstStageError):
        start(monkeypatch, *words)
    whole = Path("scorer", file).read_bytes()
    Path("scorer", file).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"^stages\.ppo\.reward\.model: "):
        start(monkeypatch, *words)


def test_a_run_says_that_a_class_is_not_there_before_it_loads_its_model():
    config = compose_config("train", ["experiment=sft", "optimizer._target_=torch.optim.Nope"])
    with pytest.raises(UserError, match=r"^optimizer\._target_: cannot import torch\.optim\.Nope"):
        rehearse_objects(config)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("config.yaml", "a: ["),
        ("config.yaml", "{model: 3, algorithm: {}}"),
        ("config.yaml", "{model: {}, algorithm: {}, reward: text}"),
        ("summary.json", '{"a":'),
        ("summary.json", "[1]"),
    ],
)
@pytest.mark.parametrize("key", ["model.path", "reward.model"])
def test_a_history_that_the_card_would_trip_over_is_found_before_training(key, file, text, inputs):
    base = Path("model" if key == "model.path" else "scorer")
    (base / "config.yaml").write_text("{model: {}, algorithm: {}}")
    words = ["experiment=ppo", "model.path=model", "reward.model=scorer", "data.train=prompts.jsonl"]
    check_inputs(compose_config("train", words))
    (base / file).write_text(text)
    with pytest.raises(UserError, match=rf"^{key}: {base / file}.*; restore it, or remove it: "):
        check_inputs(compose_config("train", words))
