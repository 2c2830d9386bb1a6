"""The inputs of the cases: tiny models, rows, a finished run, and a module with rewards."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

FINISHED = "run"
REWARDS = """
import os, sys, time

def score(prompts, responses, **columns): return [float(len(r)) for r in responses]
def raises(prompts, responses, **columns): raise KeyError("no such thing")
def leaves(prompts, responses, **columns): sys.exit(0)
def maps(prompts, responses, **columns): return {i: 1.0 for i in range(len(responses))}
def digits(prompts, responses, **columns): return "1" * len(responses)
def short(prompts, responses, **columns): return [1.0]
def nothing(prompts, responses, **columns): return None
def nan(prompts, responses, **columns): return [float("nan")] * len(responses)
def texts(prompts, responses, **columns): return ["1.0"] * len(responses)
def nested(prompts, responses, **columns): return [[1.0, 2.0]] * len(responses)
def no_columns(prompts, responses): return [1.0] * len(responses)
def huge(prompts, responses, **columns): return [10**400] * len(responses)
NUMBER = 3
"""


def write_fixtures(folder: Path) -> None:
    """Write everything; takes a second or two."""
    from rlhf_lightning.models import load_reward_model, load_tokenizer, save_model
    from rlhf_lightning.simulation.tiny_models import build_model, build_tokenizer

    folder.mkdir(parents=True)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, hidden_size=16, layers=1)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    save_model(load_reward_model(folder / "model"), tokenizer, folder / "scorer")
    _write_adapter(folder)
    write_rows(
        folder / "rows.jsonl",
        [{"prompt": "how do i", "completion": " you can"}, {"prompt": "how", "completion": " no"}] * 4,
    )
    write_rows(folder / "pairs.jsonl", [{"prompt": "how", "chosen": " you can", "rejected": " no"}] * 8)
    write_rows(folder / "prompts.jsonl", [{"prompt": "how do i"}, {"prompt": "what is"}] * 4)
    (folder / "mine.py").write_text(REWARDS)
    _write_run(folder)
    assert load_tokenizer(folder / "model").eos_token_id is not None


def write_rows(path: Path, rows: list[Any]) -> None:
    """Write rows as JSON lines."""
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def _write_adapter(folder: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    config = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = get_peft_model(model, config)
    adapted.save_pretrained(folder / "adapter")
    AutoTokenizer.from_pretrained(folder / "model").save_pretrained(folder / "adapter")
    edit_json("adapter/adapter_config.json", base_model_name_or_path="model")(folder)


def _write_run(folder: Path) -> None:
    """Make a finished SFT run, by the command itself."""
    import os
    import subprocess
    import sys

    from bad_input_catalogue.case import SFT

    code = "from rlhf_lightning.commands.train import main; main()"
    words = [*SFT, f"run_dir={FINISHED}", "trainer.max_epochs=1"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"the finished run of the fixtures failed:\n{done.stderr}")


def edit_json(path: str, **changes: Any) -> Callable[[Path], object]:
    """Return an action that changes keys of a JSON file."""

    def edit(folder: Path) -> None:
        file = folder / path
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return edit


def edit_weights(path: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[Path], object]:
    """Return an action that changes the tensors of a safetensors file."""

    def edit(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        save_file(change(load_file(folder / path)), folder / path, metadata={"format": "pt"})

    return edit


def removes(*paths: str) -> Callable[[Path], object]:
    """Return an action that deletes files."""

    def remove(folder: Path) -> None:
        for path in paths:
            (folder / path).unlink()

    return remove


def truncates(path: str, keep: float = 0.5) -> Callable[[Path], object]:
    """Return an action that truncates a file."""

    def cut(folder: Path) -> None:
        content = (folder / path).read_bytes()
        (folder / path).write_bytes(content[: int(len(content) * keep)])

    return cut


def flips(path: str, at: float = 0.5) -> Callable[[Path], object]:
    """Return an action that changes one byte of a file."""

    def flip(folder: Path) -> None:
        content = bytearray((folder / path).read_bytes())
        content[int(len(content) * at)] ^= 0xFF
        (folder / path).write_bytes(bytes(content))

    return flip
