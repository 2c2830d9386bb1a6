"""What a run is called in its store tells it apart from others of the same name."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from rlhf_lightning.commands import command_line, pipeline
from rlhf_lightning.runs.command_words import GivenCommand, carrying_out, given_command
from rlhf_lightning.runs.run import Run
from rlhf_lightning.secret_text import remember
from rlhf_lightning.tracking.titles import run_title, titled


def run(name: str = "ppo_demo", pipeline: Run | None = None) -> Run:
    return Run({"name": name, "model": {"path": "x"}}, Path("outputs/demo/ppo"), pipeline)


@pytest.mark.parametrize(
    ("words", "title"),
    [
        ((), "ppo_demo"),
        (("experiment=ppo_demo", "run_dir=outputs/x", "logger.experiment_name=mine", "logger=none"), "ppo_demo"),
        (("optimizer.lr=1e-4", "+trainer.max_time=null"), "ppo_demo lr=1e-4 max_time=null"),
        (("model/adapter=lora", "data.train=a/b/hard.jsonl"), "ppo_demo model/adapter=lora train=hard.jsonl"),
        (("~callbacks.samples",), "ppo_demo"),
    ],
)
def test_settings_of_the_command_follow_the_name(words: tuple[str, ...], title: str) -> None:
    assert run_title(run(), GivenCommand("rlhf-train", words)) == title


def test_runs_of_a_sweep_are_told_apart_by_what_varies() -> None:
    typed = ["experiment=ppo_demo", "optimizer.lr=1e-4,1e-3", "trainer.max_epochs=2"]
    titles = []
    for lr in ("1e-4", "1e-3"):
        with carrying_out("rlhf-train", [typed[0], f"optimizer.lr={lr}", typed[2]], typed):
            titles.append(run_title(run(), given_command()))
    assert titles == ["lr=1e-4 ppo_demo", "lr=1e-3 ppo_demo"]
    assert given_command() == GivenCommand()


def test_a_command_and_the_jobs_of_a_sweep_say_what_they_were_started_with(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    seen: list[GivenCommand] = []
    for words in (["experiment=sft_demo", "seed=2"], ["-m", "experiment=sft_demo", "seed=0,1"]):
        monkeypatch.setattr(sys, "argv", ["rlhf-train", *words])
        command_line.run_hydra_command("rlhf-train", "train", lambda config: seen.append(given_command()))
    monkeypatch.setattr(sys, "argv", ["rlhf-pipeline", "pipeline=demo", "seed=3"])
    monkeypatch.setattr(pipeline, "check_pipeline", lambda made: None)
    monkeypatch.setattr(pipeline, "run_pipeline", lambda made: seen.append(given_command()))
    pipeline.main()
    assert seen == [
        GivenCommand("rlhf-train", ("experiment=sft_demo", "seed=2")),
        *(GivenCommand("rlhf-train", ("experiment=sft_demo", f"seed={i}"), (f"seed={i}",)) for i in (0, 1)),
        GivenCommand("rlhf-pipeline", ("pipeline=demo", "seed=3")),
    ]


def test_a_stage_has_its_own_settings_and_those_of_the_pipeline() -> None:
    words = ("pipeline=demo", "seed=2", "stages.ppo.optimizer.lr=1", "stages.dpo.algorithm.beta=3")
    assert run_title(run("demo-ppo", Run({}, Path("outputs/demo"))), GivenCommand("rlhf-pipeline", words)) == (
        "demo-ppo seed=2 lr=1"
    )
    assert titled("demo", words) == "demo seed=2 ppo.lr=1 dpo.beta=3"


def test_a_name_stays_short_and_holds_no_secret() -> None:
    remember("hush-hush")
    long = titled("run", tuple(f"data.key{i}={'x' * 60}" for i in range(9)))
    assert len(long) <= 110 and long.endswith("…")
    assert "hush" not in titled("run", ("model.token=hush-hush",))
