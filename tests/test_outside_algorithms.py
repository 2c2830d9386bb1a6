"""The design's test: an algorithm from outside, in one file and one YAML, has everything that ours have.

`examples/outside_algorithms` has one that learns from preferences and one that samples. Nothing in the package knows
their names.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rlhf_lightning.commands import train
from rlhf_lightning.commands.composition import compose_config
from rlhf_lightning.commands.planned_run import planned_run
from rlhf_lightning.config.arithmetic import explain
from rlhf_lightning.errors import UserError
from rlhf_lightning.planning import make_plan

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples/outside_algorithms"
CONF = str(EXAMPLE / "conf")
GOLD = ["reward.model=null", "reward.function=rlhf_lightning.simulation.gold_reward"]
TINY_WORLD = [
    *("n_train_prompts=20", "n_test_prompts=5", "demonstrations_per_prompt=1", "pairs_per_prompt=2"),
    "rankings_per_prompt=1",
]
COMMON = ["logger=none", "callbacks.progress=null", "trainer.accelerator=cpu", "trainer.log_every_n_steps=1"]
RUNS = {
    "dpo_positive": ["experiment=dpo_positive_demo", "data.batch_size=4"],
    "moving_baseline": [
        *("experiment=moving_baseline_demo", "rollout.batch_size=16", "rollout.max_new_tokens=6", *GOLD),
    ],
}


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the package where Python finds it, as if it were installed."""
    monkeypatch.syspath_prepend(str(EXAMPLE))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a tiny world, and a tiny model that both algorithms start from."""
    from rlhf_lightning.simulation import build_model, build_tokenizer, write_world

    folder = tmp_path_factory.mktemp("outside")
    write_world(str(folder / "world"), seed=0, **{k: int(v) for k, v in (each.split("=") for each in TINY_WORLD)})
    tokenizer = build_tokenizer()
    build_model(tokenizer, hidden_size=32, layers=1).save_pretrained(folder / "start")
    tokenizer.save_pretrained(folder / "start")
    return folder


def composed(name: str, world: Path, *overrides: str) -> dict[str, Any]:
    rows = {"dpo_positive": "rankings_train.jsonl", "moving_baseline": "prompts_train.jsonl"}[name]
    here = [f"model.path={world / 'start'}", f"data.train={world / 'world' / rows}", "prepare=null", "requires={}"]
    if name == "dpo_positive":
        here.append(f"data.val={world / 'world/preferences_test.jsonl'}")
    return compose_config("train", [*RUNS[name], *COMMON, *here, *overrides], CONF)


# ---- before torch is imported


@pytest.mark.parametrize(
    ("name", "override", "line"),
    [
        ("dpo_positive", "+algorithm.penalti=3", "algorithm.penalti: no such key; did you mean algorithm.penalty?"),
        ("dpo_positive", "algorithm.penalty=-1", "algorithm.penalty: found -1; must be a number >= 0"),
        ("dpo_positive", "algorithm.beta=0", "algorithm.beta: found 0; must be a number > 0"),
        ("dpo_positive", "algorithm.beta=much", 'algorithm.beta: found "much"; must be a number > 0'),
        ("dpo_positive", "+algorithm.decay=0.5", "algorithm.decay: no such key"),
        ("moving_baseline", "+algorithm.decai=0.5", "algorithm.decai: no such key; did you mean algorithm.decay?"),
        ("moving_baseline", "algorithm.decay=1", "algorithm.decay: found 1; must be a number in [0, 1)"),
        ("moving_baseline", "algorithm.decay=null", "algorithm.decay: found null; must be a number in [0, 1)"),
        ("moving_baseline", "algorithm.ppo_epochs=0", "algorithm.ppo_epochs: found 0; must be a whole number >= 1"),
        ("moving_baseline", "algorithm.kl.kind=pit", 'algorithm.kl.kind: found "pit"; must be adaptive'),
        ("moving_baseline", "+algorithm.clip_range=0.2", "algorithm.clip_range: no such key; allowed: algorithm.decay"),
        ("moving_baseline", "rollout.batch_size=15", "rollout.batch_size: found 15; must be a multiple of"),
    ],
)
def test_a_wrong_key_or_value_is_one_line(name: str, override: str, line: str, world: Path) -> None:
    with pytest.raises(UserError) as error:
        train.check(composed(name, world, override))
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)


def test_both_are_checked_and_explained_without_torch() -> None:
    code = (
        "import sys\n"
        "from rlhf_lightning.commands.train import check\n"
        "from rlhf_lightning.config.arithmetic import explain\n"
        "from rlhf_lightning.commands.composition import compose_config\n"
        f"for overrides in {[[*run, *COMMON] for run in RUNS.values()]!r}:\n"
        f"    config = compose_config('train', overrides, {CONF!r})\n"
        "    check(config)\n    print(explain(config))\n"
        "assert 'torch' not in sys.modules and 'outside_algorithms' not in sys.modules\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{EXAMPLE}{os.pathsep}{ROOT}"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_explain_counts_as_for_ours(world: Path) -> None:
    samples, rows = (explain(composed(name, world)) for name in ("moving_baseline", "dpo_positive"))
    assert re.search(r"optimiser steps per iteration +4 ", samples)
    assert re.search(r"optimiser steps in total +120\b", samples)
    assert re.search(r"rows per optimiser step +4\b", rows)


@pytest.mark.parametrize("name", RUNS)
def test_the_plan_counts_the_networks_of_its_roles(name: str, world: Path) -> None:
    run = planned_run(composed(name, world))
    assert [role.name for role in make_plan(run).roles] == ["policy", "reference"]
    assert (run.rollout is not None) == (name == "moving_baseline")


# ---- a pipeline: training, validation, instruments, model card, evaluation


def command(name: str, folder: Path, *arguments: str) -> str:
    """Return a command's output, in a folder whose Python path has the package."""
    environment = {**os.environ, "PYTHONPATH": f"{EXAMPLE}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [Path(sys.executable).with_name(f"rlhf-{name}"), "--config-dir", CONF, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout + run.stderr


@pytest.fixture(scope="module")
def done(world: Path) -> tuple[Path, str]:
    """Return the folder of the example's pipeline without its reward model, and what was printed."""
    sizes = [f"+prepare.{each}" for each in TINY_WORLD]
    few = [*COMMON[2:], "trainer.max_epochs=2", "requires={}"]
    tiny = [f"stages.{stage}.{each}" for stage in ("sft", *RUNS) for each in few]
    tiny += [f"+stages.{stage}.prepare.{each}" for stage in ("sft", *RUNS) for each in TINY_WORLD]
    printed = command(
        "pipeline",
        world,
        *("pipeline=outside_demo", "logger=none", "run_dir=done", "~stages.reward", "evaluation.proxy=null", *sizes),
        *(*tiny, f"stages.sft.model.path={world / 'start'}", "evaluation.samples_per_prompt=1"),
        *(f"stages.moving_baseline.{each}" for each in RUNS["moving_baseline"][1:]),
        *("stages.moving_baseline.reward_from=null", "stages.dpo_positive.data.batch_size=4"),
        "evaluation.max_new_tokens=6",
    )
    return world / "done", printed


def rows(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "title", "shown"),
    [
        ("dpo_positive", "DPO-Positive", ("loss", "val_loss", "accuracy", "val_accuracy")),
        ("moving_baseline", "REINFORCE with a moving baseline", ("score", "kl", "coef")),
    ],
)
def test_a_stage_has_a_card_its_title_and_its_progress(
    name: str, title: str, shown: tuple[str, ...], done: tuple[Path, str]
) -> None:
    folder, printed = done
    card = (folder / name / "model" / "README.md").read_text()
    assert f"trained by {title} (`" in card
    assert "| final metric | value |" in card
    lines = printed.split(f"{name}: ", 1)[1].splitlines()
    progress = next(line for line in lines if line.startswith("epoch 1/2"))
    assert all(re.search(rf"\b{figure} ", progress) for figure in shown), progress


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_stage_measures_its_speed(name: str, done: tuple[Path, str]) -> None:
    measured = [row["perf/mfu"] for row in rows(done[0] / name) if "perf/mfu" in row]
    assert measured and all(0 < value < 1 for value in measured)


@pytest.mark.slow
def test_held_out_pairs_are_compared(done: tuple[Path, str]) -> None:
    validated = [row for row in rows(done[0] / "dpo_positive") if "val/loss" in row]
    assert len(validated) == 2
    assert {"val/rewards/accuracies", "val/rewards/margins", "val/logps/chosen"} <= validated[-1].keys()


@pytest.mark.slow
def test_the_policies_are_evaluated_together(done: tuple[Path, str]) -> None:
    folder, _ = done
    summary = json.loads((folder / "summary.json").read_text())
    for name in RUNS:
        assert {f"{name}.gold_win_rate_vs_sft", f"{name}.gold_mean", f"{name}.kl"} <= summary.keys()
        assert name in (folder / "report.html").read_text()


# ---- a run that is cut, and two processes


def module(name: str) -> tuple[Any, Any]:
    """Return the algorithm and its rows, as a script would create them."""
    import outside_algorithms

    from rlhf_lightning.algorithms import KLPenalty
    from rlhf_lightning.data import PreferenceDataModule, PromptDataModule
    from rlhf_lightning.rollout import RolloutSettings
    from tests.algorithms.conftest import ADAM, count_early, pair_rows
    from tests.tiny import tiny_model, tiny_tokenizer

    tokenizer = tiny_tokenizer()
    if name == "dpo_positive":
        made = outside_algorithms.DPOPositiveModule(tiny_model, tokenizer, ADAM, penalty=5.0)
        return made, PreferenceDataModule(tokenizer, pair_rows(), pair_rows(4), batch_size=2)
    settings: dict[str, Any] = {"reward": count_early, "rollout": RolloutSettings(max_new_tokens=6, batch_size=16)}
    settings |= {"kl": KLPenalty(kind="pid", target=1.0), "ppo_epochs": 1, "decay": 0.5}
    made = outside_algorithms.MovingBaselineModule(tiny_model, tokenizer, ADAM, **settings)
    return made, PromptDataModule(tokenizer, [{"prompt": f"{a} {b}"} for a in "bcdef" for b in "ghij"])


@pytest.mark.parametrize("name", RUNS)
def test_a_resumed_run_is_bitwise_the_uninterrupted_one(name: str, tmp_path: Path) -> None:
    """The first is cut within an epoch, the second between iterations; it keeps its baseline."""
    import torch
    from lightning.pytorch.callbacks import ModelCheckpoint

    from rlhf_lightning.callbacks import ReproducibleResume
    from rlhf_lightning.models import fingerprint
    from tests.algorithms.conftest import trainer

    def fit(folder: Path, save: dict[str, int], stop: dict[str, int], resume: str | None = None) -> Any:
        made, data = module(name)
        torch.manual_seed(9 if resume is None else 1234)
        checkpoint = ModelCheckpoint(folder, filename="cut", save_top_k=-1, **save)
        length = {"max_epochs": 4, **stop}
        run = trainer(tmp_path, enable_checkpointing=True, callbacks=[checkpoint, ReproducibleResume()], **length)
        run.fit(made, datamodule=data, ckpt_path=resume)
        return made

    samples = name == "moving_baseline"
    whole = fit(tmp_path / "whole", {"every_n_epochs": 99}, {})
    cut = ({"every_n_epochs": 2}, {"max_epochs": 2}) if samples else ({"every_n_train_steps": 7}, {"max_steps": 7})
    fit(tmp_path / "cut", *cut)
    resumed = fit(tmp_path / "cut", {"every_n_epochs": 99}, {}, str(tmp_path / "cut/cut.ckpt"))
    network = "policy" if samples else "model"
    assert fingerprint(getattr(resumed, network)) == fingerprint(getattr(whole, network))
    if samples:
        assert resumed.baseline.value == whole.baseline.value
        assert resumed.kl_controller.state_dict() == whole.kl_controller.state_dict()


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_two_processes_end_where_one_does(name: str, world: Path, tmp_path: Path) -> None:
    """The preferences are the same batches; two processes' samples differ, but they agree on what they learned."""
    whole = composed(name, world)
    paths = [f"model.path={whole['model']['path']}", f"data.train={whole['data']['train']}", "prepare=null"]
    paths += [f"data.val={whole['data']['val']}"] if whole["data"]["val"] else []
    for count, size in ((1, 4), (2, 2)):
        more = [f"data.batch_size={size}"] if name == "dpo_positive" else [f"rollout.batch_size={4 * size}"]
        more += ["trainer=ddp", f"trainer.devices={count}"] if count > 1 else []
        run = [*RUNS[name], *COMMON, *paths, "requires={}", *more, "trainer.max_epochs=2"]
        command("train", tmp_path, *run, f"run_dir=of{count}", "optimizer=sgd")
    one, two = (json.loads((tmp_path / f"of{count}/summary.json").read_text()) for count in (1, 2))
    assert one["optimiser_steps"] == two["optimiser_steps"]
    if name == "dpo_positive":
        assert two["val/loss"] == pytest.approx(one["val/loss"], rel=1e-4)
        assert two["rewards/margins"] == pytest.approx(one["rewards/margins"], abs=1e-5)
    else:
        first = rows(tmp_path / "of2")[0]
        assert first["policy/baseline"] == pytest.approx(first["objective/scores"])


def test_python_refuses_the_same_values_in_the_same_words() -> None:
    from outside_algorithms import DPOPositiveModule

    from tests.algorithms.conftest import ADAM
    from tests.tiny import tiny_model, tiny_tokenizer

    with pytest.raises(UserError, match=r"^algorithm\.penalty: found -1"):
        DPOPositiveModule(tiny_model, tiny_tokenizer(), ADAM, penalty=-1)
