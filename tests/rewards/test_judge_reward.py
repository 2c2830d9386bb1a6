"""A judge as a reward, through the settings of a run."""

from __future__ import annotations

import pytest

from rlhf_lightning.errors import UserError
from rlhf_lightning.judging.judge import Judge
from rlhf_lightning.judging.usage import Usage
from rlhf_lightning.rewards import JudgeReward, make_reward
from rlhf_lightning.rewards.scores import BadScoreError
from tests.judges import write_judge


class Script:
    """Rates an answer by its length; says nothing about `mute` ones."""

    def __init__(self) -> None:
        self.usage = Usage()

    def logprobs(self, questions, verdicts=("A", "B"), lead=""):
        sizes = [len(question.partition("[Answer]\n")[2].partition("\n\nRate")[0]) for question in questions]
        rated = [[0.0 if int(each) == min(9, size) else -50.0 for each in verdicts] for size in sizes]
        return [None if "mute" in question else one for question, one in zip(questions, rated, strict=True)]

    def generate(self, questions):
        return ["Rating: 2" for _ in questions]


def test_a_reward_is_the_mean_rating(tmp_path):
    reward = JudgeReward({"model": "x"}, Judge(Script(), ["be kind"]))
    assert reward(["p", "p"], ["aaaaaaaaa", "b"]) == pytest.approx([1.0, -1.0])
    assert reward.key == "reward.judge"
    with pytest.raises(BadScoreError, match=r"reward\.judge: no rating of 1 of 2") as raised:
        reward(["p", "q"], ["a", "mute"])
    assert raised.value.index == 1
    assert JudgeReward({"model": "x"}, Judge(Script(), ["be kind"], "reasons"))(["p"], ["a"]) == [-0.75]


def test_settings_make_a_reward_and_parts_of_a_sum(tmp_path):
    settings = {"model": str(write_judge(tmp_path / "judge")), "batch_size": 2}
    alone = make_reward(judge=settings)
    scores = alone(["a", "b"], ["c d", "e"], messages=[None, None])
    part = make_reward(components={"kind": {"judge": settings, "weight": 2.0}})
    assert part(["a", "b"], ["c d", "e"]) == pytest.approx([2 * score for score in scores])
    assert set(part.origin()) == {"reward.components.kind.judge", "reward.components.kind.weight"}
    assert alone.origin() == JudgeReward(settings).origin()
    with pytest.raises(UserError, match=r"reward\.model and reward\.judge: only one source"):
        make_reward(judge=settings, model="m")
    with pytest.raises(UserError, match=r"reward\.judge\.model: missing"):
        make_reward(judge={"by": "reasons"})
