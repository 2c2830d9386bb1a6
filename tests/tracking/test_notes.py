"""The description of a run in its store: first figures, the command, and a reader's own words left alone."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rlhf_lightning.runs.command_words import GivenCommand
from rlhf_lightning.runs.run import Run, read_run
from rlhf_lightning.tracking.notes import NOTE, pipeline_note, put_note, run_note
from tests.commands.runs import write_run

COMMAND = GivenCommand("rlhf-train", ("experiment=ppo_demo", "optimizer.lr=1e-4"))


class Client:
    """Tags of one run."""

    def __init__(self) -> None:
        self.tags: dict[str, str] = {}

    def get_run(self, run_id: str) -> Any:
        return SimpleNamespace(data=SimpleNamespace(tags=dict(self.tags)))

    def set_tag(self, run_id: str, key: str, value: str) -> None:
        self.tags[key] = value


def made(folder: Path, summary: dict[str, Any]) -> Run:
    found = read_run(write_run(folder / "ppo", "outputs/sft", "PPOModule", summary, reward={"model": "outputs/rm"}))
    assert found is not None
    return found


def test_a_note_says_what_it_is_its_first_figures_and_how_to_do_it_again(tmp_path: Path) -> None:
    summary = {"time/update": 3.0, "objective/kl": 1.7283, "objective/scores": 2.5914, "wall_seconds": 90}
    note = run_note(made(tmp_path, summary), COMMAND)
    assert "`outputs/sft`, rewarded by `outputs/rm`, seed 3" in note.splitlines()[0]
    rows = [line for line in note.splitlines() if line.startswith("|")][2:]
    assert rows == ["| `objective/scores` | 2.591 |", "| `objective/kl` | 1.728 |", "| time | 1.5 min |"]
    assert "```bash\nrlhf-train experiment=ppo_demo optimizer.lr=1e-4\n```" in note


def test_the_note_of_a_run_that_an_ensemble_rewards_names_all_members(tmp_path: Path) -> None:
    reward = {"model": None, "models": ["outputs/rm_a", "outputs/rm_b"], "combine": "min"}
    run = read_run(write_run(tmp_path / "ppo", "outputs/sft", "PPOModule", {}, reward=reward))
    assert run is not None
    assert "rewarded by the min of `outputs/rm_a`, `outputs/rm_b`, seed 3" in run_note(run, COMMAND).splitlines()[0]


def test_a_pipelines_note_has_a_line_per_policy(tmp_path: Path) -> None:
    pipeline = Run({"stages": {"sft": {}, "ppo": {}}, "seed": 1}, tmp_path)
    summary = {
        **{"sft.gold_mean": 0.08, "sft.length": 12.9, "sft.loss": 0.4},
        **{"ppo.gold_mean": 2.59, "ppo.length": 13.3, "ppo.gold_win_rate_vs_sft": 0.835},
        "ppo.gold_win_rate_vs_sft_low": 0.78,
    }
    lines = pipeline_note(pipeline, GivenCommand(), summary).splitlines()
    assert lines[2:6] == [
        "| policy | gold | length | gold wins against sft |",
        "| --- | --- | --- | --- |",
        "| `sft` | 0.08 | 12.9 | – |",
        "| `ppo` | 2.59 | 13.3 | 84% |",
    ]


def test_the_end_replaces_the_beginning_but_not_what_a_reader_has_written(tmp_path: Path) -> None:
    client, run = Client(), made(tmp_path, {"objective/kl": 1.0})
    put_note(client, "id", run_note(made(tmp_path, {}), COMMAND))
    assert "objective/kl" not in client.tags[NOTE]
    put_note(client, "id", run_note(run, COMMAND))
    assert "objective/kl" in client.tags[NOTE]
    put_note(client, "id", run_note(run, GivenCommand()))  # rlhf-track does not know the command
    assert "rlhf-train experiment=ppo_demo" in client.tags[NOTE]
    client.tags[NOTE] = "the one that we ship"
    put_note(client, "id", run_note(run, COMMAND))
    assert client.tags[NOTE] == "the one that we ship"
