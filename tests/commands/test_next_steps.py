"""The last lines of a command: what to do next, in commands that work as they are printed."""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_lightning.commands.composition import compose_config
from rlhf_lightning.commands.train import print_end
from rlhf_lightning.environment import typed
from rlhf_lightning.runs.next_steps import next_steps, next_steps_of_pipeline
from rlhf_lightning.runs.run import Run
from tests.commands.runs import write_model, write_run
from tests.programs import ENVIRONMENT

CHECKS = {"rlhf-chat": "chat", "rlhf-export": "export", "rlhf-evaluate": "evaluate", "rlhf-train": "train"}


def finished(folder: Path, *words: str, experiment: str = "sft", row: dict | None = None) -> tuple[Run, list[str]]:
    """Return a run in its final state, and the words that started it."""
    write_model(Path("base"))
    Path("my rows.jsonl").write_text(json.dumps(row or {"prompt": "a b", "completion": "c"}) + "\n")
    given = [f"experiment={experiment}", "model.path=base", "data.train='my rows.jsonl'", f"run_dir={folder}", *words]
    config = compose_config("train", given)
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints/last.ckpt").touch()
    write_model(folder / "model", classifier=experiment == "reward")
    write_run(folder, **{**config, "algorithm": config["algorithm"]["_target_"].rpartition(".")[2]} | {"summary": {}})
    (folder / "config.yaml").write_text(json.dumps(config))
    return Run(config, folder), given


def printed(steps: list[str]) -> dict[str, list[str]]:
    """Return what each line is about, and the words of its command."""
    found = {}
    for line in steps:
        name, command = re.fullmatch(r"  ([\w ]+): +(.+)", line).groups()
        found[name] = shlex.split(command)
    return found


def accepted(words: list[str]) -> None:
    """Compose the command's config and check it, as the command does before it starts."""
    name = Path(words[0]).name
    module = importlib.import_module(f"rlhf_lightning.commands.{CHECKS[name]}")
    config = compose_config(CHECKS[name], words[1:])
    (module.check_all if name == "rlhf-train" else module.check)(config)


def test_a_policy_can_be_talked_to_evaluated_exported_and_trained_longer(empty_folder):
    run, words = finished(empty_folder / "out/my run", "scheduler=constant")
    steps = printed(next_steps(run, words))
    assert list(steps) == ["chat", "evaluate", "export", "train longer"]
    for command in steps.values():
        accepted(command)
    assert "policies={before:base,after:" in steps["evaluate"][1]
    longer = compose_config("train", steps["train longer"][1:])
    assert (longer["ckpt"], longer["trainer"]["max_epochs"]) == ("last", 2 * run.config["trainer"]["max_epochs"])
    assert longer["data"]["train"] == "my rows.jsonl"


def test_a_reward_model_is_evaluated_on_pairs_and_trains_a_policy(empty_folder):
    row = {"prompt": "a", "chosen": "b", "rejected": "c"}
    run, words = finished(empty_folder / "reward", "scheduler=constant", experiment="reward", row=row)
    steps = printed(next_steps(run, words))
    assert list(steps) == ["evaluate", "train with it", "export", "train longer"]
    for command in steps.values():
        accepted(command)


def test_a_run_whose_steps_depend_on_its_length_is_not_made_longer(empty_folder):
    run, words = finished(empty_folder / "run", "scheduler=linear")
    assert "train longer" not in printed(next_steps(run, words))


def test_a_base_without_weights_is_not_compared_with(empty_folder):
    run, words = finished(empty_folder / "run")
    (empty_folder / "base/model.safetensors").unlink()
    evaluate = printed(next_steps(run, words))["evaluate"]
    assert evaluate[1].startswith("policies={after:")
    accepted(evaluate)


def test_rows_without_prompts_are_not_evaluated_on(empty_folder):
    run, words = finished(empty_folder / "run", row={"text": "a b c"})
    assert "evaluate" not in printed(next_steps(run, words))


def test_a_pipeline_ends_with_its_last_policy(empty_folder):
    for name in ("sft", "ppo"):
        finished(empty_folder / name)
    steps = printed(next_steps_of_pipeline([empty_folder / "sft", empty_folder / "ppo"]))
    assert list(steps) == ["chat", "export"]
    assert steps["chat"][1].endswith("ppo") and steps["chat"][2].endswith("sft")


def test_a_command_that_is_not_on_the_path_is_printed_with_its_folder(monkeypatch, empty_folder):
    beside = Path(sys.executable).parent
    monkeypatch.setenv("PATH", f"{beside}{os.pathsep}{os.environ['PATH']}")
    assert typed("rlhf-chat") == "rlhf-chat"
    monkeypatch.setenv("PATH", "/nowhere")
    assert typed("rlhf-chat") == shlex.quote(str(beside / "rlhf-chat"))
    monkeypatch.chdir(beside.parent)
    assert typed("rlhf-chat") == f"{beside.name}/rlhf-chat"


def test_the_last_line_opens_the_curves(empty_folder, monkeypatch, capsys):
    run, _ = finished(empty_folder / "run")
    print_end(run, [])
    assert capsys.readouterr().out.splitlines()[1:] == [
        "next:",
        f"  curves:         {typed('mlflow')} ui --backend-store-uri sqlite:///outputs/mlflow.db",
    ]


@pytest.mark.slow
def test_what_a_run_prints_runs_as_it_stands(empty_folder):
    """Each line after `next:` except the one that starts a server, in the shell."""
    write_model(Path("base"))
    rows = [{"prompt": "a b", "completion": f"{word} d"} for word in "efgh"]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    environment = {**os.environ, **ENVIRONMENT, "PATH": "/usr/bin:/bin"}
    short = "scheduler=constant trainer.max_epochs=1 trainer.accelerator=cpu data.val_fraction=0 logger=none"
    command = f"{typed('rlhf-train')} experiment=sft model.path=base data.train=rows.jsonl {short}"

    def shell(line: str) -> str:
        done = subprocess.run(["bash", "-c", line], input="a b\n", capture_output=True, text=True, env=environment)
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        return done.stdout

    steps = shell(command).partition("next:\n")[2].splitlines()
    assert len(steps) == 4
    for line in steps:
        shell(line.partition(":")[2])
