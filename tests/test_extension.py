"""The example extension works from the command line, without changes to the project."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[1] / "examples/extension"
TINY = [
    "logger=none",
    "callbacks.progress=null",
    "trainer.max_epochs=1",
    "trainer.log_every_n_steps=1",
    "+prepare.n_train_prompts=20",
    "+prepare.n_test_prompts=5",
    "+prepare.demonstrations_per_prompt=1",
    "+prepare.pairs_per_prompt=2",
    "+prepare.rankings_per_prompt=1",
]


def train(folder: Path, *overrides: str) -> dict[str, float]:
    """Run rlhf-train in a folder whose Python path has the example package; return its summary."""
    code = "from rlhf_lightning.commands.train import main; main()"
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLE), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, "--config-dir", str(EXAMPLE / "conf"), *overrides, *TINY]
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    (summary,) = folder.glob("outputs/demo/*/summary.json")
    return json.loads(summary.read_text())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Make a working folder in which the demo's SFT model is the untrained one."""
    from rlhf_lightning.simulation import build_model, build_tokenizer

    tokenizer = build_tokenizer()
    build_model(tokenizer, hidden_size=32, layers=1).save_pretrained(tmp_path / "start")
    tokenizer.save_pretrained(tmp_path / "start")
    return tmp_path


PPO = ["model.path=start", "rollout.batch_size=16", "rollout.max_new_tokens=8", "requires={}"]
REWARD = ["reward.model=null", "reward.function=my_rlhf.short_and_polite"]


def test_a_subclassed_ppo_with_a_reward_function_of_its_own(folder: Path) -> None:
    summary = train(folder, "experiment=priced_ppo_demo", "algorithm.token_price=0.5", *PPO, *REWARD)
    assert summary["objective/scores"] < 0.5  # words cost, and random ones are rarely polite


@pytest.mark.slow
def test_a_reward_function_as_a_named_part_of_a_sum(folder: Path) -> None:
    parts = "{polite: {function: my_rlhf.short_and_polite, weight: 2.0}, gold: "
    parts += "{function: rlhf_lightning.simulation.gold_reward}}"
    summary = train(folder, "experiment=ppo_demo", *PPO, "reward.model=null", f"reward.components={parts}")
    total = 2 * summary["objective/scores/polite"] + summary["objective/scores/gold"]
    assert summary["objective/scores"] == pytest.approx(total, abs=1e-4)


def test_the_price_is_taken_off_valid_tokens_only(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.syspath_prepend(str(EXAMPLE))
    from my_rlhf import PricedPPOModule

    from tests.algorithms.conftest import ADAM, count_early
    from tests.rollout.test_loader import rollout
    from tests.tiny import tiny_model, tiny_tokenizer

    module = PricedPPOModule(tiny_model, tiny_tokenizer(), ADAM, reward=count_early, token_price=0.5)
    some = rollout()
    plain = super(PricedPPOModule, module).token_rewards(some, torch.zeros_like(some.mask))
    assert torch.equal(module.token_rewards(some, torch.zeros_like(some.mask)), plain - 0.5 * some.mask)
