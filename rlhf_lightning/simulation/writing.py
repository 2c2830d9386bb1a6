"""Writing the world to a folder: rows, tokenizer and tiny models, as files like those of any other data set."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from rlhf_lightning.errors import UserError
from rlhf_lightning.hashes import check_files, write_hashes
from rlhf_lightning.simulation.labelers import Labeler, mean_certainty, oracle_accuracy
from rlhf_lightning.simulation.world import World, build_world
from rlhf_lightning.value_checks import checked
from rlhf_lightning.value_types import Count, NonNegative, Number, Text, UpToHalf, Whole

FORMAT = 4  # raised whenever the same arguments would give other files
MANIFEST = "world.json"


@checked("prepare")
def write_world(
    folder: Text | Path,
    seed: Whole = 0,
    n_train_prompts: Count = 1100,
    n_test_prompts: Count = 200,
    demonstrations_per_prompt: Count = 8,
    pairs_per_prompt: Count = 8,
    answers_per_ranking: Annotated[int, Field(ge=0, le=9)] = 6,
    rankings_per_prompt: Count = 16,
    temperature: NonNegative = 0.5,
    flip_rate: UpToHalf = 0.03,
    length_bias: Number = 0.0,
) -> Path:
    """Write the world of a seed to `folder` and return the folder.

        sft.jsonl                         prompt, completion (mixed quality), kind, quality, gold
        preferences_{train,test}.jsonl    prompt, chosen, rejected, kind, gold_chosen, gold_rejected, label_probability
        rankings_train.jsonl              prompt, responses (best first), kind, gold_responses; if answers_per_ranking
        prompts_{train,test}.jsonl        prompt, kind, topic
        tokenizer/, models/{llama,gpt2}/  ordinary Hugging Face folders, random weights
        world.json                        the arguments, and statistics: sizes, Bayes ceilings
        hashes.json                       of all files

    A folder with the world of the same arguments is left alone; a world of other arguments is replaced. The world is
    written next to the folder and then renamed: it is complete or absent.

    Args:
        folder: the target; new, empty, or an earlier world.
        seed: seed of everything that is drawn.
        n_train_prompts: train prompts (distinct).
        n_test_prompts: unseen prompts.
        demonstrations_per_prompt: SFT rows per train prompt.
        pairs_per_prompt: preference rows per prompt, train and test.
        answers_per_ranking: K of the ranked lists; 0 for no ranked lists.
        rankings_per_prompt: ranked lists per train prompt.
        temperature, flip_rate, length_bias: settings of the `Labeler`.

    Raises:
        UserError: an argument is out of range, the folder contains something else, or the world there has changed since
            it was written.
    """
    arguments = {
        "seed": seed,
        "n_train_prompts": n_train_prompts,
        "n_test_prompts": n_test_prompts,
        "demonstrations_per_prompt": demonstrations_per_prompt,
        "pairs_per_prompt": pairs_per_prompt,
        "answers_per_ranking": answers_per_ranking,
        "rankings_per_prompt": rankings_per_prompt,
        "temperature": temperature,
        "flip_rate": flip_rate,
        "length_bias": length_bias,
    }
    target = Path(folder)
    wanted = {"format": FORMAT, "arguments": arguments}
    if _is_written(target, wanted):
        return target
    if target.exists() and not (target / MANIFEST).is_file() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} is not empty and holds no {MANIFEST}: choose a new folder for the world")
    if answers_per_ranking not in (0, *range(2, 10)):
        raise UserError(f"answers_per_ranking is {answers_per_ranking}; choose 0 (no ranked lists) or 2 to 9")
    world = build_world(seed, n_train_prompts, n_test_prompts)
    labeler = Labeler(temperature, flip_rate, length_bias, seed)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
        fresh = Path(scratch) / "world"
        figures = _write_rows(fresh, world, labeler, arguments)
        figures |= _write_models(fresh, seed)
        (fresh / MANIFEST).write_text(json.dumps({**wanted, "figures": figures}, indent=2) + "\n", encoding="utf-8")
        write_hashes(fresh)
        _move(fresh, target, Path(scratch) / "previous", wanted)
    return target


def _is_written(target: Path, wanted: dict[str, Any]) -> bool:
    try:
        manifest = json.loads((target / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    if not isinstance(manifest, dict) or {key: manifest.get(key) for key in wanted} != wanted:
        return False
    check_files(target)
    return True


def _check_nothing_else(target: Path, fresh: Path) -> None:
    """Raise UserError if the earlier world's folder contains something else, which would be deleted with it."""
    ours = {path.name for path in fresh.iterdir()} | {"rankings_train.jsonl"}
    strangers = sorted(path.name for path in target.iterdir() if path.name not in ours) if target.is_dir() else []
    if strangers:
        raise UserError(
            f"{target} contains files that are not part of the world ({', '.join(strangers[:3])}), so it is not "
            "overwritten; move them, or choose another folder"
        )


def _move(fresh: Path, target: Path, previous: Path, wanted: dict[str, Any]) -> None:
    if target.exists():
        _check_nothing_else(target, fresh)
        os.replace(target, previous)
    try:
        os.replace(fresh, target)
    except OSError:
        # Another process of the same run may have written the same world meanwhile.
        if not _is_written(target, wanted):
            raise
    shutil.rmtree(previous, ignore_errors=True)


def _write_rows(fresh: Path, world: World, labeler: Labeler, arguments: dict[str, Any]) -> dict[str, Any]:
    demonstrations = world.demonstrations(arguments["demonstrations_per_prompt"])
    tables = {"sft": demonstrations}
    figures: dict[str, Any] = {"sft_gold_mean": _mean([row["gold"] for row in demonstrations])}
    for split in ("train", "test"):
        pairs = world.preferences(split, arguments["pairs_per_prompt"], labeler)
        tables[f"prompts_{split}"] = world.prompt_rows(split)
        tables[f"preferences_{split}"] = pairs
        figures[f"preferences_{split}_bayes_accuracy"] = mean_certainty([row["label_probability"] for row in pairs])
        golds = [[row[column] for row in pairs] for column in ("gold_chosen", "gold_rejected")]
        figures[f"preferences_{split}_oracle_accuracy"] = oracle_accuracy(*golds)
    if k := arguments["answers_per_ranking"]:
        tables["rankings_train"] = world.rankings("train", k, arguments["rankings_per_prompt"], labeler)
    fresh.mkdir(parents=True)
    for name, rows in tables.items():
        lines = (json.dumps(row) + "\n" for row in rows)
        (fresh / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        figures[f"{name}_rows"] = len(rows)
    return figures


def _write_models(fresh: Path, seed: int) -> dict[str, Any]:
    # Imported here: the rows, and the commands' --help, need no torch.
    from transformers.utils import logging as transformers_logging

    from rlhf_lightning.simulation.tiny_models import FAMILIES, build_model, build_tokenizer

    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(fresh / "tokenizer")
    figures: dict[str, Any] = {"vocabulary_size": len(tokenizer)}
    bars_shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        for family in FAMILIES:
            model = build_model(tokenizer, family, seed=seed)
            model.save_pretrained(fresh / "models" / family)
            tokenizer.save_pretrained(fresh / "models" / family)
            figures[f"{family}_parameters"] = model.num_parameters()
    finally:
        if bars_shown:
            transformers_logging.enable_progress_bar()
    return figures


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
