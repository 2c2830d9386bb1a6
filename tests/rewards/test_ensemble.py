"""Several reward models as one."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf_lightning.commands import train
from rlhf_lightning.commands.composition import compose_config
from rlhf_lightning.config.inputs import _check_members, check_inputs
from rlhf_lightning.errors import UserError
from rlhf_lightning.rewards import Ensemble, ModelReward, make_reward
from rlhf_lightning.setting_rules import check_reward
from tests.algorithms.conftest import count_early, ppo
from tests.algorithms.test_ppo import run
from tests.tiny import tiny_model, write_reward_model

TEXTS = (["a b", "c"], ["d e f", "g"])


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return three reward models that disagree, each with its moments."""
    folders = []
    for number in range(3):
        model = tiny_model()
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(number)))
        folder = write_reward_model(tmp_path_factory.mktemp("members") / f"rm{number}", model)
        config = json.loads((folder / "config.json").read_text())
        config |= {"score_mean": 0.5 * number, "score_std": 1.0 + number}
        (folder / "config.json").write_text(json.dumps(config))
        folders.append(str(folder))
    return folders


@pytest.mark.parametrize("standardize", [False, True])
def test_scores_are_the_mean_the_minimum_or_the_mean_minus_the_spread(members: list[str], standardize: bool) -> None:
    alone = torch.tensor([ModelReward(path, standardize=standardize)(*TEXTS) for path in members], dtype=torch.float64)
    assert alone.std(dim=0, correction=0).min() > 0.01
    spread = ((alone - alone.mean(0)) ** 2).mean(0).sqrt()
    wanted = {"mean": alone.mean(0), "min": alone.min(0).values, "mean_minus_std": alone.mean(0) - 0.7 * spread}
    for combine, score in wanted.items():
        more: dict[str, Any] = {"std_coef": 0.7} if combine == "mean_minus_std" else {}
        reward = make_reward(models=members, combine=combine, standardize=standardize, **more)  # type: ignore[arg-type]
        assert reward(*TEXTS) == pytest.approx(score.tolist(), abs=1e-9)
        assert reward.figures["disagreement"] == pytest.approx(spread.tolist(), abs=1e-9)  # type: ignore[attr-defined]


def test_a_run_names_every_member_and_how_they_are_combined_in_its_checkpoints(members: list[str]) -> None:
    marks = make_reward(models=members, combine="min").origin()  # type: ignore[attr-defined]
    assert set(marks) == {*(f"reward.models.{i}" for i in range(3)), "reward.models.combine"}
    other = make_reward(models=members, combine="mean").origin()  # type: ignore[attr-defined]
    assert {key for key in marks if marks[key] != other[key]} == {"reward.models.combine"}
    swapped = make_reward(models=members[::-1], combine="min").origin()  # type: ignore[attr-defined]
    assert {key for key in marks if marks[key] != swapped[key]} == {"reward.models.0", "reward.models.2"}


def test_a_member_without_moments_names_the_key_of_the_setting(members: list[str], tmp_path: Path) -> None:
    bare = str(write_reward_model(tmp_path / "bare"))
    with pytest.raises(UserError, match=r"^reward\.standardize=true: .*bare has no score_mean"):
        make_reward(models=[members[0], bare], standardize=True)
    with pytest.raises(UserError, match=r"^reward\.models\.1: .*nowhere does not exist"):
        make_reward(models=[members[0], str(tmp_path / "nowhere")])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"models": ["a"]}, "reward.models: found 1 model; an ensemble has at least 2; for one use reward.model"),
        ({"models": ["a", "b", "a"]}, "reward.models: a is named twice"),
        ({"models": ["a", "b", "./x/../a/"]}, "reward.models: ./x/../a/ is named twice"),
        ({"model": "a", "combine": "min"}, "reward.combine: found min; only several models have it; set reward.models"),
        ({"model": "a", "std_coef": 2.0}, "reward.std_coef: found 2.0; only several models have it"),
        ({"models": ["a", "b"], "std_coef": 2.0}, "reward.std_coef: found 2.0; only reward.combine=mean_minus_std"),
        ({"models": ["a", "b"], "model": "c"}, "reward.model and reward.models: only one source of scores"),
        ({"models": ["a", "b"], "timeout": 3}, "reward.timeout: found 3; only a function can have a time limit"),
        ({"model": "a", "normalize_parts": True}, "reward.normalize_parts: only a weighted sum has parts"),
        (
            {"components": {"x": {"model": "a", "standardize": True}}, "normalize_parts": True},
            "reward.components.x.standardize: reward.normalize_parts takes mean and scale out again",
        ),
        ({"components": {"x": {"models": ["a"]}}}, "reward.components.x.models: found 1 model"),
    ],
)
def test_settings_that_nothing_reads_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(message)}"):
        check_reward(settings)


def test_an_ensemble_can_be_a_part_and_its_disagreement_has_the_parts_name(members: list[str]) -> None:
    part = {"models": members, "combine": "min", "weight": 2.0}
    whole = make_reward(models=members, combine="min")(*TEXTS)
    reward = make_reward(components={"safe": part})  # type: ignore[dict-item]
    assert reward(*TEXTS) == pytest.approx([2 * score for score in whole])
    assert list(reward.figures) == ["disagreement/safe"]  # type: ignore[attr-defined]


def test_a_config_names_each_member_that_is_missing(members: list[str], tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n')
    tiny_model().save_pretrained(tmp_path / "base")
    words = ["experiment=ppo", f"model.path={tmp_path}/base", f"data.train={tmp_path}/p.jsonl", "reward.combine=min"]
    config = compose_config("train", [*words, f"reward.models=[{members[0]},{tmp_path}/nowhere]"])
    train.check(config)
    with pytest.raises(UserError, match=r"^reward\.models\.1: .*nowhere does not exist"):
        check_inputs(config)


def test_training_logs_how_much_the_members_disagree(members: list[str], tmp_path: Path) -> None:
    module, data = ppo(reward=make_reward(models=members, combine="min"))
    watch = run(tmp_path, module, data)
    reward = module.scorer.given
    assert isinstance(reward, Ensemble)
    assert watch.last["reward/disagreement"] == pytest.approx(
        sum(reward.figures["disagreement"]) / len(reward.figures["disagreement"]), rel=1e-5
    )
    assert watch.last["reward/disagreement"] > 0


def test_one_member_is_refused() -> None:
    with pytest.raises(UserError, match=r"^reward\.models: found 1 of at least 2 members"):
        Ensemble([count_early])  # type: ignore[list-item]


def test_a_process_reward_model_is_not_combined_with_others(members: list[str], tmp_path: Path) -> None:
    steps = write_reward_model(tmp_path / "steps", tiny_model())
    file = steps / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"step_separator": "\n"}))
    message = r"^reward\.models: .*/steps scores steps by probabilities, and .* no common unit"
    with pytest.raises(UserError, match=message):
        make_reward(models=[members[0], str(steps)])
    with pytest.raises(UserError, match=message.replace("models", r"components\.a\.models")):
        make_reward(components={"a": {"models": [str(steps), members[0]]}})
    words = ["experiment=ppo", f"model.path={members[0]}", "data.train=x", f"reward.models=[{members[0]},{steps}]"]
    with pytest.raises(UserError, match=message):
        _check_members(compose_config("train", words))
