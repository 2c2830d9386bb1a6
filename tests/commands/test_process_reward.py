"""Step rows to a process reward model to a policy that it rewards, by rlhf-train alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlhf_lightning.commands import train
from rlhf_lightning.commands.composition import compose_config
from rlhf_lightning.models import step_separator
from tests.commands.runs import write_model
from tests.tiny import WORDS

SHORT = ["model.path=base", "trainer.accelerator=cpu", "trainer.max_epochs=1", "callbacks.progress=null", "logger=none"]


def last_metrics(run: str) -> dict[str, float]:
    found: dict[str, float] = json.loads(Path(run, "metrics.jsonl").read_text().splitlines()[-1])
    return found


def start(*words: str) -> None:
    config = compose_config("train", [*words, *SHORT])
    train.check_all(config)
    train.train(config)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("aggregation", ["min", "steps"])
def test_a_process_reward_run_scores_the_samples_of_ppo(
    aggregation: str, empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_model(Path("base"))
    steps = [[f" {a} {b}" for b in WORDS[i : i + 1 + i % 3]] for i, a in enumerate(WORDS[:16])]
    rows = [{"prompt": "a b", "completions": each, "labels": [len(each) > 1] * len(each)} for each in steps]
    Path("steps.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("prompts.jsonl").write_text("".join(json.dumps({"prompt": word}) + "\n" for word in WORDS[:8]))

    data = ["data.train=steps.jsonl", "data.val=steps.jsonl", "data.val_fraction=0", "data.step_separator=' z'"]
    start("experiment=process_reward", *data, "run_dir=process")
    assert {"val/loss", "val/step_accuracy", "val/brier_score"} <= last_metrics("process").keys()
    assert step_separator("process") == " z"
    assert "reward.model=process" in capsys.readouterr().out

    reward = ["reward.model=process", f"reward.aggregation={aggregation}"]
    rollout = ["rollout.batch_size=8", "rollout.max_new_tokens=6", "algorithm.num_minibatches=2"]
    start("experiment=ppo", "data.train=prompts.jsonl", *reward, *rollout, "run_dir=ppo")
    scores = [json.loads(line)["score"] for line in Path("ppo/samples.jsonl").read_text().splitlines()]
    assert last_metrics("ppo")["objective/scores"] == pytest.approx(sum(scores) / len(scores), rel=1e-4)
    assert len(set(scores)) > 1 and all(0 < score < (1 if aggregation == "min" else 6) for score in scores)
