"""rlhf-export: write a run's model, or an average, as a folder for transformers or peft, with a model card."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_lightning.commands.command_line import run_hydra_command
from rlhf_lightning.config.average_checks import check_average, check_same_kind
from rlhf_lightning.config.schema import Export
from rlhf_lightning.config.validation import MISSING, validate
from rlhf_lightning.durable import replacing_folder, write_text_durably
from rlhf_lightning.environment import typed
from rlhf_lightning.errors import UserError, blaming, named_as
from rlhf_lightning.hashes import FILE, check_model_files, write_hashes
from rlhf_lightning.runs.lineage import lineage
from rlhf_lightning.runs.model_card import QUANTIZED, write_model_card
from rlhf_lightning.runs.quoting import shell_words
from rlhf_lightning.runs.run import Run, read_run

MARKER = ".rlhf-export.json"  # marks a folder that rlhf-export has written, and may overwrite
_MODEL_FILES = ("config.json", "adapter_config.json")


def main() -> None:
    """Run rlhf-export."""
    run_hydra_command("rlhf-export", "export", export)


def export(config: dict[str, Any]) -> None:
    """Check the config, write the folder, and say where it is."""
    runs = check(config)
    weights = config.get("weights") or [1.0] * len(runs)
    settings = config["form"], config["dtype"], config.get("attn_implementation")
    write_export(runs, Path(config["to"]), *settings, weights)
    print(f"exported: {config['to']}")
    if not runs[0].is_reward_model:
        print(f"next: {typed('rlhf-chat')} {shell_words({'model': config['to']})}")
    if any(run.quantized for run in runs) and config["form"] == "merged":
        print(f"note: {QUANTIZED}")


def check(config: Mapping[str, Any]) -> list[Run]:
    """Check everything that can be checked without importing torch; return the run, or the runs to average.

    Raises:
        UserError: one line about the first problem.
    """
    average = config.get("average")
    config = {**config, "run": None} if average is not None and config["run"] == MISSING else config
    validate(config, Export)
    check_average(config)
    runs = [find_run(path, "run" if average is None else "average") for path in average or [config["run"]]]
    with blaming(f"to: {config['to']} cannot be used"):
        _check_target(Path(config["to"]), runs, config["overwrite"])
    if config["form"] == "adapter":
        _check_adapter(runs[0], config["dtype"], config.get("attn_implementation"))
    if average is not None:
        check_same_kind(runs)
    return runs


def find_run(path: str, key: str = "run") -> Run:
    """Return the finished training run at `path`, which the user named as `key`.

    Raises:
        UserError: there is none.
    """
    run = read_run(path)
    if run is not None and any((run.model_folder / file).is_file() for file in _MODEL_FILES):
        check_model_files(run.model_folder, key=key)
        return run
    if run is not None:
        raise UserError(f"{key}: {path} holds no model yet; finish it with rlhf-train ... ckpt=last run_dir={path}")
    if not Path(path).is_dir():
        raise UserError(f"{key}: {path} does not exist; give the folder of a training run")
    stages = [str(folder) for folder in sorted(Path(path).iterdir()) if read_run(folder)]
    hint = f"; it holds runs: {', '.join(stages)}" if stages else ""
    raise UserError(f"{key}: {path} is not the folder of a training run (no config.yaml of rlhf-train){hint}")


def _check_target(target: Path, runs: Sequence[Run], overwrite: bool) -> None:
    if target.is_symlink():
        raise UserError(f"to: {target} is a link; give the folder that it leads to, or another one")
    if target.exists() and not target.is_dir():
        raise UserError(f"to: {target} is a file; must be a folder")
    for run in runs:
        _check_sources(target, run)
    if not target.is_dir() or not any(target.iterdir()):
        return
    if not overwrite:
        raise UserError(f"to: {target} exists and is not empty; choose another folder, or overwrite=true")
    if not (target / MARKER).is_file():
        raise UserError(
            f"to: {target} was not written by rlhf-export (it has no {MARKER}), so it is not overwritten; choose "
            "another folder, or delete it yourself"
        )
    if strangers := sorted(path.name for path in target.iterdir() if path.name not in _exported_files(target)):
        raise UserError(
            f"to: {target} contains files that rlhf-export did not write ({', '.join(strangers[:3])}), so it is not "
            "overwritten; move it, or choose another folder"
        )


def _check_sources(target: Path, run: Run) -> None:
    """Raise UserError if the target is or contains something that the run was made from."""
    runs, first = lineage(run)
    sources = [run.folder, *(each.folder for each in runs), *([Path(first)] if Path(first).is_dir() else [])]
    if run.adapter_base and Path(run.adapter_base).is_dir():
        sources.append(Path(run.adapter_base))
    for source in sources:
        inside = target.resolve() == source.resolve() / "model" or source.resolve().is_relative_to(target.resolve())
        if inside:
            what = "the run itself" if source == run.folder else f"{source}, which the run started from"
            raise UserError(f"to: {target} holds {what}; choose another folder")


def _exported_files(target: Path) -> set[str]:
    """Return the files that an export's marker lists."""
    try:
        return {MARKER, *json.loads((target / MARKER).read_text(encoding="utf-8"))["files"]}
    except (ValueError, KeyError, TypeError):
        return {MARKER}


def _check_adapter(run: Run, dtype: str | None, attn_implementation: str | None) -> None:
    if run.adapter_base is None:
        raise UserError(f"form: {run.folder} trained all weights, so there is no adapter; use form=merged")
    if dtype is not None:
        raise UserError("dtype: an adapter is exported as it was trained; use form=merged, or leave dtype out")
    if attn_implementation is not None:
        raise UserError(
            "attn_implementation: no model is loaded to export an adapter; use form=merged, or leave it out"
        )
    if (Path(run.adapter_base) / "adapter_config.json").is_file():
        raise UserError(f"run: the base of its adapter is itself an adapter ({run.adapter_base}); merge that first")


def write_export(
    runs: Sequence[Run],
    target: Path,
    form: str,
    dtype: str | None,
    attn_implementation: str | None = None,
    weights: Sequence[float] = (1.0,),
) -> None:
    """Write a checked export: next to the target first, so that the target is either complete or unchanged."""
    from rlhf_lightning.models import load_tokenizer

    with replacing_folder(target) as folder, named_as("run" if len(runs) == 1 else "average"):
        if len(runs) > 1:
            _save_average(runs, weights, folder, dtype, attn_implementation)
        elif form == "adapter":
            _copy_adapter(runs[0], folder)
        else:
            _save_merged(runs[0], folder, dtype, attn_implementation)
        chat = bool(load_tokenizer(folder).chat_template)
        average = list(zip(runs, weights, strict=True)) if len(runs) > 1 else ()
        names = {"name": target.resolve().name, "load_from": str(target)}
        write_model_card(runs[0], folder, chat=chat, average=average, **names)
        write_hashes(folder)
        files = sorted(path.name for path in folder.iterdir())
        made_from = {"average": [str(run.folder) for run in runs]} if average else {"run": str(runs[0].folder)}
        write_text_durably(folder / MARKER, json.dumps({**made_from, "files": files}, indent=2) + "\n")


def _save_average(
    runs: Sequence[Run], weights: Sequence[float], folder: Path, dtype: str | None, attn_implementation: str | None
) -> None:
    from rlhf_lightning.models import save_model
    from rlhf_lightning.models.averaging import average_models

    precision: Any = dtype or _trained_in(runs[0])
    folders, scores = [run.model_folder for run in runs], runs[0].is_reward_model
    save_model(*average_models(folders, weights, scores, precision, attn_implementation), folder)


def _trained_in(run: Run) -> str:
    """Return the dtype to load a run's model in: a whole model's folder knows it, an adapter was on a base in it."""
    return str(run.config["model"].get("dtype", "auto")) if run.adapter_base else "auto"


def _save_merged(run: Run, folder: Path, dtype: str | None, attn_implementation: str | None) -> None:
    from rlhf_lightning.models import (
        load_causal_lm,
        load_process_scorer,
        load_scorer,
        load_tokenizer,
        save_model,
        score_moments,
        step_separator,
    )
    from rlhf_lightning.models.ilql_heads import copy_heads

    precision: Any = dtype or _trained_in(run)
    model: Any
    if run.is_reward_model and (separator := step_separator(run.model_folder)) is not None:
        model = load_process_scorer(run.model_folder, precision, attn_implementation, as_trained=False, kernels="none")
        model.keep_separator(separator)
    elif run.is_reward_model:
        model = load_scorer(run.model_folder, precision, attn_implementation, as_trained=False, kernels="none")
        model.keep_moments(score_moments(run.model_folder))
    else:
        model = load_causal_lm(run.model_folder, precision, attn_implementation, kernels="none")
    save_model(model, load_tokenizer(run.model_folder), folder)
    copy_heads(run.model_folder, folder)


def _left_out(folder: str, names: list[str]) -> list[str]:
    """Return files to leave out: the run's hashes, and links, whose targets do not belong to the run."""
    return [name for name in names if name == FILE or (Path(folder) / name).is_symlink()]


def _copy_adapter(run: Run, folder: Path) -> None:
    """Copy the run's adapter folder, including the tokenizer, with a base that is found from any working folder."""
    check_model_files(run.model_folder, weights=True)
    shutil.copytree(run.model_folder, folder, dirs_exist_ok=True, ignore=_left_out)
    base, file = Path(str(run.adapter_base)), folder / "adapter_config.json"
    if base.is_dir():
        config = json.loads(file.read_text(encoding="utf-8")) | {"base_model_name_or_path": str(base.resolve())}
        file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
