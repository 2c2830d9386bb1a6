"""`make algorithms`: what its pipeline trains, which stages it continues with, and how its table is counted."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rlhf_lightning.commands.composition import compose_config
from rlhf_lightning.commands.pipeline import check_pipeline, compose_pipeline
from rlhf_lightning.config.arithmetic import explain
from rlhf_lightning.evaluation.win_rate import wilson_interval
from rlhf_lightning.runs.pipeline import Pipeline

ROOT = Path(__file__).parent.parent
CRITIC_FREE = ("grpo", "rloo", "reinforce_pp", "dapo", "gspo", "cispo")


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return compose_pipeline(["pipeline=algorithms", "run_dir=there", "seed=3"])


@pytest.fixture(scope="module")
def configs(pipeline: Pipeline) -> dict[str, dict[str, Any]]:
    return {stage.name: stage.config for stage in pipeline.to_run}


def test_every_stage_passes_the_checks_and_explains_itself(pipeline: Pipeline) -> None:
    check_pipeline(pipeline)
    for stage in pipeline.to_run:
        assert explain(stage.config).startswith(f"algorithms-{stage.name}: the batch arithmetic\n")


def test_the_demo_comes_first_and_unchanged(pipeline: Pipeline, configs: dict[str, dict[str, Any]]) -> None:
    demo = {stage.name: stage.config for stage in compose_pipeline(["pipeline=demo", "run_dir=there", "seed=3"]).to_run}
    assert list(configs)[: len(demo)] == list(demo) == ["sft", "reward", "ppo", "dpo"]
    for name, config in demo.items():
        assert configs[name] == {**config, "name": f"algorithms-{name}"}
    of_both = [["pipeline=demo", "run_dir=there"], ["pipeline=algorithms", "run_dir=there"]]
    evaluations = [compose_config("pipeline", overrides)["evaluation"] for overrides in of_both]
    assert evaluations[0] == evaluations[1]


def test_each_stage_trains_what_its_name_says(configs: dict[str, dict[str, Any]]) -> None:
    sections = {name: configs[name]["algorithm"] for name in list(configs)[2:]}
    classes = {name: section["_target_"].rpartition(".")[2] for name, section in sections.items()}
    assert classes == {
        **{"ppo": "PPOModule", "dpo": "DPOModule", "ipo": "DPOModule", "orpo": "ORPOModule", "simpo": "SimPOModule"},
        **{"kto": "KTOModule", **dict.fromkeys(CRITIC_FREE, "PolicyGradientModule")},
        **{"online_dpo": "OnlineDPOModule", "raft": "RAFTModule", "ilql": "ILQLModule"},
        **{"nlpo": "NLPOModule", "ppo_lagrangian": "PPOLagrangianModule", "gkd": "GKDModule"},
    }
    assert {name: sections[name]["loss_type"] for name in ("dpo", "ipo")} == {"dpo": "sigmoid", "ipo": "ipo"}
    estimators = ["group_mean", "leave_one_out", "returns", "group_mean", "group_mean", "group_mean"]
    assert [sections[name]["estimator"] for name in CRITIC_FREE] == estimators
    assert [sections[name]["ratio"] for name in CRITIC_FREE] == ["token"] * 4 + ["sequence", "token"]
    assert sections["gkd"]["teacher"] == "there/rloo"
    assert sections["dapo"]["accuracy"] == "score" and sections["cispo"]["loss_type"] == "cispo"


def test_all_begin_from_one_sft_model_and_all_that_sample_have_ppos_budget(configs: dict[str, dict[str, Any]]) -> None:
    assert {configs[name]["model"]["path"] for name in list(configs)[1:]} == {"there/sft"}
    ppo = configs["ppo"]
    for name in (*CRITIC_FREE, "online_dpo", "raft"):
        config = configs[name]
        assert config["reward"] == ppo["reward"]
        assert config["trainer"]["max_epochs"] == ppo["trainer"]["max_epochs"]
        assert config["rollout"]["batch_size"] * config["rollout"]["samples_per_prompt"] == ppo["rollout"]["batch_size"]
        kinds = [each["algorithm"]["kl"] for each in (config, ppo)]
        if name in CRITIC_FREE:
            assert [(kl["kind"], kl["target"]) for kl in kinds] == [("pid", 1.8)] * 2


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    return importlib.import_module("algorithms_table")


def write_seed(folder: Path, ended: list[str], wins: float | None = None) -> None:
    """Write a pipeline's folder with finished stages, and its summary if `wins` are given."""
    for name in ended:
        (folder / name).mkdir(parents=True)
        (folder / name / "summary.json").write_text("{}")
    folder.mkdir(exist_ok=True)
    prompts = folder / "prompts.jsonl"
    prompts.write_text("{}\n" * 100)
    (folder / "config.yaml").write_text(json.dumps({"evaluation": {"prompts": str(prompts)}}))
    if wins is not None:
        write_summary(folder, ended, wins)


def write_summary(folder: Path, names: list[str], wins: float) -> None:
    figures = {"gold_mean": 2.0, "gold_win_rate_vs_sft": wins, "kl": 1.5, "cpu_seconds": 50.0}
    summary = {f"{name}.{key}": value for name in names for key, value in figures.items()}
    (folder / "summary.json").write_text(json.dumps(summary))


def run(
    script: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, *seeds: int, overrides: Sequence[str] = ()
) -> int | str | None:
    words = ["--folder", str(folder), "--seeds", *map(str, seeds), "--", *overrides]
    monkeypatch.setattr(sys, "argv", ["algorithms_table.py", *words])
    with pytest.raises(SystemExit) as end:
        script.main()
    return end.value.code


@pytest.mark.parametrize(("wins", "code"), [((0.7, 0.82), 0), ((0.7, 0.78), 1)])
def test_the_table_has_means_and_one_interval_of_all_seeds_prompts(
    wins: tuple[float, float], code: int, script: Any, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    for seed, share in enumerate(wins):
        write_seed(tmp_path / f"seed{seed}", script.stages(), share)
    assert run(script, tmp_path, monkeypatch, 0, 1) == code
    text = capsys.readouterr().out
    assert text == (tmp_path / "table.md").read_text()
    rate = sum(wins) / 2
    low, high = wilson_interval(rate, 200)
    share = f"{rate:.1%} ({low:.0%}-{high:.0%})"
    assert f"| kto | 2.00 | {share} | 70%, {wins[1]:.0%} | 1.50 | 50 |" in text
    trained = len(script.stages()) - 2
    assert f"{0 if code else trained} of {trained} win at least 75%" in text


@pytest.mark.parametrize("ended", [[], ["sft", "reward", "ppo", "dpo"], ["sft", "reward", "kto", "reinforce_pp"]])
def test_a_seed_runs_what_it_lacks_stage_by_stage_and_is_evaluated_with_the_last_one(
    ended: list[str], script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, called = tmp_path / "seed7", []
    write_seed(folder, ended)

    def call(command: list[str], **_: Any) -> None:
        called.append(command)
        (begin,) = [word.removeprefix("from=") for word in command if word.startswith("from=")]
        (folder / begin).mkdir(exist_ok=True)
        (folder / begin / "summary.json").write_text("{}")
        if "evaluation.prompts=null" in command:
            (folder / "summary.json").write_text("{}")  # rlhf-pipeline leaves one after every call
        else:
            write_summary(folder, script.stages(), 0.8)
        if begin == "simpo":
            raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "run", call)
    overrides = ["stages.kto.algorithm.beta=0.1", "evaluation.batch_size=8"]
    with pytest.raises(KeyboardInterrupt):
        run(script, tmp_path, monkeypatch, 7, overrides=overrides)
    assert run(script, tmp_path, monkeypatch, 7, overrides=overrides) == 0
    assert run(script, tmp_path, monkeypatch, 7) == 0  # finished stages are not run again
    begun = [word.removeprefix("from=") for command in called for word in command if word.startswith("from=")]
    missing = [name for name in script.stages()[:-1] if name not in ended]
    assert begun == [*missing, script.stages()[-1]]
    for name, command in zip(begun, called, strict=True):
        assert {"pipeline=algorithms", "seed=7", f"run_dir={folder}"} <= set(command)
        later = script.stages()[script.stages().index(name) + 1 :]
        assert [word for word in command if word.startswith("~")] == [f"~stages.{each}" for each in later]
        assert (overrides[0] in command) == ("kto" not in later)
        assert (overrides[1] in command) == (not later)
