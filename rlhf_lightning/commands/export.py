"""rlhf-export: a run's model as a folder for transformers or peft, with its tokenizer and a model card."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlhf_lightning.commands.command_line import run_hydra_command
from rlhf_lightning.commands.help import export_help
from rlhf_lightning.commands.lineage import TrainingRun, read_run
from rlhf_lightning.commands.model_card import QUANTIZED, write_model_card
from rlhf_lightning.commands.schema import Export
from rlhf_lightning.commands.validation import validate
from rlhf_lightning.errors import UserError

_MODEL_FILES = ("config.json", "adapter_config.json")


def main() -> None:
    """The entry point of rlhf-export."""
    run_hydra_command("rlhf-export", "export", export, export_help)


def export(config: dict[str, Any]) -> None:
    """Check the config, write the folder, and say where it is."""
    run = check(config)
    write_export(run, Path(config["to"]), config["form"], config["dtype"])
    print(f"exported: {config['to']}")
    if run.quantized and config["form"] == "merged":
        print(f"note: {QUANTIZED}")


def check(config: Mapping[str, Any]) -> TrainingRun:
    """Everything that can be known to be wrong without importing torch; returns the run.

    Raises:
        UserError: one line about the first thing.
    """
    validate(config, Export)
    run = find_run(config["run"])
    _check_target(Path(config["to"]), run, config["overwrite"])
    if config["form"] == "adapter":
        _check_adapter(run, config["dtype"])
    return run


def find_run(path: str) -> TrainingRun:
    """The finished training run at `path`.

    Raises:
        UserError: there is none.
    """
    run = read_run(path)
    if run is not None and any((run.model_folder / file).is_file() for file in _MODEL_FILES):
        return run
    if run is not None:
        raise UserError(f"run: {path} holds no model yet; finish it with rlhf-train ... ckpt=last run_dir={path}")
    if not Path(path).is_dir():
        raise UserError(f"run: {path} does not exist; allowed: the folder of a training run")
    stages = [str(folder) for folder in sorted(Path(path).iterdir()) if read_run(folder)]
    hint = f"; it holds runs: {', '.join(stages)}" if stages else ""
    raise UserError(f"run: {path} is not the folder of a training run (no config.yaml of rlhf-train){hint}")


def _check_target(target: Path, run: TrainingRun, overwrite: bool) -> None:
    if target.exists() and not target.is_dir():
        raise UserError(f"to: {target} is a file; allowed: a folder")
    if run.folder.resolve().is_relative_to(target.resolve()) or target.resolve() == run.model_folder.resolve():
        raise UserError(f"to: {target} holds the run itself; choose another folder")
    if not target.is_dir() or not any(target.iterdir()):
        return
    if not overwrite:
        raise UserError(f"to: {target} exists and is not empty; choose another folder, or overwrite=true")
    if not any((target / file).is_file() for file in _MODEL_FILES):
        raise UserError(f"to: {target} holds no model, so it is not overwritten; choose another folder")


def _check_adapter(run: TrainingRun, dtype: str | None) -> None:
    if run.adapter_base is None:
        raise UserError(f"form: {run.folder} trained all weights, there is no adapter; use form=merged")
    if dtype is not None:
        raise UserError("dtype: an adapter is exported as it was trained; use form=merged, or leave dtype out")
    if (Path(run.adapter_base) / "adapter_config.json").is_file():
        raise UserError(f"form: the base of this adapter is itself an adapter ({run.adapter_base}); use form=merged")


def write_export(run: TrainingRun, target: Path, form: str, dtype: str | None) -> None:
    """Write a checked export: beside the target first, so that the target is whole or as it was."""
    from rlhf_lightning.models import load_tokenizer

    with _replacing(target) as folder:
        if form == "adapter":
            _copy_adapter(run, folder)
        else:
            _save_merged(run, folder, dtype)
        chat = bool(load_tokenizer(folder).chat_template)
        write_model_card(run, folder, name=target.resolve().name, load_from=str(target), chat=chat)


@contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """A new folder that takes the target's place at the end; an error leaves the target as it was."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as beside:
        new, former = Path(beside) / "new", Path(beside) / "former"
        new.mkdir()
        yield new
        if target.exists():
            os.replace(target, former)
        os.replace(new, target)


def _save_merged(run: TrainingRun, folder: Path, dtype: str | None) -> None:
    from rlhf_lightning.models import load_causal_lm, load_reward_model, load_tokenizer, save_model, score_moments

    # The folder of a whole model knows its own type; an adapter was trained on a base of the config's.
    trained_in = run.config["model"].get("dtype", "auto") if run.adapter_base else "auto"
    precision: Any = dtype or trained_in
    model: Any
    if run.is_reward_model:
        model = load_reward_model(run.model_folder, dtype=precision)
        model.keep_moments(score_moments(run.model_folder))
    else:
        model = load_causal_lm(run.model_folder, dtype=precision)
    save_model(model, load_tokenizer(run.model_folder), folder)


def _copy_adapter(run: TrainingRun, folder: Path) -> None:
    """The run's adapter folder, tokenizer included, with a base that is found from any working folder."""
    shutil.copytree(run.model_folder, folder, dirs_exist_ok=True)
    base, file = Path(str(run.adapter_base)), folder / "adapter_config.json"
    if base.is_dir():
        config = json.loads(file.read_text(encoding="utf-8")) | {"base_model_name_or_path": str(base.resolve())}
        file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
