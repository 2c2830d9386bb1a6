"""The model comes first: whatever fails after training, the model exists, and the run can continue."""

from __future__ import annotations

import json
import os
import signal
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from rlhf_lightning.callbacks.lines import keep_lines
from rlhf_lightning.commands import train
from rlhf_lightning.commands.composition import compose_config
from rlhf_lightning.errors import AfterTrainingError
from rlhf_lightning.models import load_causal_lm, save_model
from rlhf_lightning.runs import after_training, run_folder
from rlhf_lightning.runs.after_training import Aftermath
from rlhf_lightning.stopping import answered
from rlhf_lightning.tracking.run_tracking import RunTracking
from tests.tiny import tiny_model, tiny_tokenizer


def settings(folder: Path, *more: str) -> dict[str, Any]:
    """Return the config of a run of one step on a tiny model."""
    tiny_model().save_pretrained(folder / "base")
    tiny_tokenizer().save_pretrained(folder / "base")
    rows = [{"prompt": "a b", "completion": f"{word} d"} for word in "efgh"]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    short = ["trainer.max_epochs=1", "trainer.accelerator=cpu", "callbacks.progress=null", "run_dir=run"]
    own = ["experiment=sft", "model.path=base", "data.train=rows.jsonl", "data.val_fraction=0", *short]
    return compose_config("train", [*own, *more])


COMMANDS = "rlhf_lightning.commands.train."
STEPS = {
    "the metrics of summary.json": COMMANDS + "summarise",
    "summary.json": "rlhf_lightning.runs.run.write_summary",
    "the model card": COMMANDS + "write_model_card",
    "the files in MLflow": "rlhf_lightning.tracking.run_tracking.RunTracking.send_files",
    "registering mine": "rlhf_lightning.tracking.run_tracking.RunTracking.register",
    "the end of training": "rlhf_lightning.algorithms.SFTModule.on_train_end",
}


QUICK = ("summary.json", "the model card", "the end of training")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "step", [pytest.param(step, marks=() if step in QUICK else pytest.mark.slow) for step in STEPS]
)
def test_a_step_that_fails_after_training_neither_loses_the_model_nor_stops_the_others(
    step: str, empty_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {**settings(empty_folder, "logger=none"), "register": "mine" if step == "registering mine" else None}

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("it went wrong\nin two lines")

    with monkeypatch.context() as patch:
        patch.setattr(STEPS[step], fail)
        patch.setattr(train, "check_all", lambda config: None)  # it would refuse to register without MLflow
        with pytest.raises(AfterTrainingError) as error:
            train.train(config)
    message = str(error.value)
    assert f"but this failed: {step} (" in message and " of run; " in message and "\n" not in message
    assert "ckpt=last" in message
    AutoModelForCausalLM.from_pretrained("run/model")
    made = {"summary.json": "run/summary.json", "the model card": "run/model/README.md"}
    assert all(Path(file).is_file() == (step != name) for name, file in made.items())
    assert "run folder: run" in capsys.readouterr().out

    monkeypatch.setattr(RunTracking, "register", lambda *_: Future())
    monkeypatch.setattr(train, "check_all", lambda config: None)
    train.train({**config, "ckpt": "last"})
    assert all(Path(file).is_file() for file in made.values())
    assert json.loads(Path("run/summary.json").read_text())["optimiser_steps"] == 1


@pytest.mark.filterwarnings("ignore")
def test_what_fails_before_the_last_step_still_stops_the_run(
    empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(empty_folder, "logger=none")

    def fail(*_: Any) -> None:
        raise RuntimeError("in mid-training")

    monkeypatch.setattr("rlhf_lightning.algorithms.SFTModule.training_step", fail)
    with pytest.raises(RuntimeError, match="in mid-training"):
        train.run(config)
    assert not Path("run/model").exists()


@pytest.mark.filterwarnings("ignore")
def test_a_new_model_takes_the_place_of_an_earlier_one_with_all_its_files(empty_folder: Path) -> None:
    config = settings(empty_folder, "logger=none")
    Path("run/model").mkdir(parents=True)
    Path("run/model/adapter_config.json").write_text("{}")  # a LoRA run was here
    Path("run/config.yaml").write_text("model: {}\nalgorithm: {}\n")
    train.run(config)
    assert not Path("run/model/adapter_config.json").exists()
    assert sorted(path.name for path in Path("run").glob(".model*")) == []


def test_rows_end_at_line_feeds_and_at_no_other_separator(empty_folder: Path) -> None:
    rows = [{"epoch": 0, "text": "a\u2028b\u2029c\x85d"}, {"epoch": 1, "text": "e"}]
    file = empty_folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows) + "\n")
    assert run_folder.read_json_lines(file) == rows
    assert keep_lines(file, lambda row: row["epoch"] == 0) == 1  # what resuming does with samples.jsonl
    assert run_folder.read_json_lines(file) == rows[:1]


@pytest.mark.parametrize(
    ("shipped", "saved"),
    [
        ({"temperature": 0.9, "top_p": 0.6}, {"temperature": 0.9, "top_p": 0.6, "do_sample": True}),  # Vicuna, Llama 2
        ({"top_k": 40}, {"top_k": 40, "do_sample": True}),
        ({"temperature": 0.0}, {}),
        ({"num_beams": 1, "early_stopping": True}, {}),
        ({"output_scores": True, "return_dict_in_generate": False}, {}),
        ({"num_beams": 2, "length_penalty": 0.5}, {"num_beams": 2, "length_penalty": 0.5}),
    ],
)
def test_a_generation_config_that_transformers_reads_but_does_not_write_is_put_right(
    shipped: dict[str, Any], saved: dict[str, Any], tmp_path: Path
) -> None:
    tiny_model().save_pretrained(tmp_path / "base")
    (tmp_path / "base/generation_config.json").write_text(json.dumps(shipped))
    save_model(load_causal_lm(tmp_path / "base"), tiny_tokenizer(), tmp_path / "model")
    written = json.loads((tmp_path / "model/generation_config.json").read_text())
    del written["transformers_version"]
    assert written == {**saved, "eos_token_id": 1, "pad_token_id": 0}
    AutoModelForCausalLM.from_pretrained(tmp_path / "model").generate(torch.tensor([[5, 6]]), max_new_tokens=3)


def test_a_stop_is_not_a_problem_of_a_step(capsys: pytest.CaptureFixture[str]) -> None:
    """A library may turn it into another exception."""
    aftermath = Aftermath()

    def interrupted() -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except BaseException as error:
            raise ValueError("interrupted") from error

    with pytest.raises(SystemExit) as end, answered(), aftermath.step("the model card"):
        interrupted()
    assert (end.value.code, aftermath.problems) == (130, [])
    assert capsys.readouterr().err.startswith("stopped by SIGINT; ")


def test_a_stop_between_the_renames_leaves_a_whole_model(
    empty_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("run/model").mkdir(parents=True)
    replace = os.replace

    def interrupted(*names: Any) -> None:
        replace(*names)
        if Path(names[1]).name == ".model.former":
            os.kill(os.getpid(), signal.SIGTERM)

    def export(folder: Path) -> None:
        (folder / "weights").touch()
        monkeypatch.setattr(after_training.os, "replace", interrupted)

    with pytest.raises(SystemExit) as end, answered():
        after_training.export_model(export, Path("run"))
    assert end.value.code == 143
    assert Path("run/model/weights").exists()
    assert [path.name for path in Path("run").iterdir()] == ["model"]
