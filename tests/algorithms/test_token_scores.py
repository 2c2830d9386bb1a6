"""Numbers per token: credited to their tokens, and added up wherever a response counts as one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf_lightning.algorithms import KLPenalty, RewardShaping
from rlhf_lightning.errors import UserError
from rlhf_lightning.experience.token_scores import placed
from rlhf_lightning.models import fingerprint
from tests.algorithms.conftest import ADAM, count_early, on_policy, ppo
from tests.algorithms.test_ppo import STILL, run


class OfTokens:
    """Scores token t of a response by its id and its place."""

    name, key, reads_tokens = "tokens", "reward.function", True

    def __call__(self, prompts: list[str], responses: list[str], **columns: Any) -> list[list[float]]:
        return [[token / 10 - t for t, token in enumerate(each)] for each in columns["sampled"].responses]


class AtTheEnd(OfTokens):
    """Gives the whole score as the last token's."""

    def __call__(self, prompts: list[str], responses: list[str], **columns: Any) -> list[list[float]]:
        lengths = [len(each) for each in columns["sampled"].responses]
        scores = count_early(prompts, responses)
        return [[*[0.0] * (n - 1), score] for n, score in zip(lengths, scores, strict=True)]


def numbers(rollout: Any) -> torch.Tensor:
    places = torch.arange(rollout.mask.shape[1])
    return (rollout.response_ids / 10 - places) * rollout.mask


def kl_of(rollout: Any) -> torch.Tensor:
    return (rollout.logprobs - rollout.ref_logprobs) * rollout.mask


def test_each_number_is_the_reward_of_its_token(tmp_path: Path) -> None:
    module, data = ppo(reward=OfTokens(), kl=KLPenalty(kind="fixed", coef=0.3))
    watch = run(tmp_path, module, data, max_epochs=2)
    rollout = module.last_rollout
    assert kl_of(rollout).abs().sum() > 0.1
    torch.testing.assert_close(rollout.rewards, numbers(rollout) - 0.3 * kl_of(rollout), atol=1e-5, rtol=0)
    torch.testing.assert_close(rollout.scores, numbers(rollout).sum(1), atol=1e-5, rtol=0)
    assert watch.last["objective/scores"] == pytest.approx(float(numbers(rollout).sum(1).mean()), abs=1e-4)


def test_shaping_scales_every_token_and_the_rest_is_at_the_last(tmp_path: Path) -> None:
    shaping = RewardShaping(normalize=True, missing_eos_penalty=0.5)
    module, data = ppo(reward=OfTokens(), kl=KLPenalty(kind="fixed", coef=0.3), shaping=shaping)
    run(tmp_path, module, data, max_epochs=2)
    rollout, moments = module.last_rollout, module.reward_moments
    shaped = (numbers(rollout).sum(1) - moments.mean) / moments.std - 0.5 * ~rollout.ended
    torch.testing.assert_close(rollout.scores, shaped, atol=1e-5, rtol=0)
    torch.testing.assert_close(rollout.rewards.sum(1), shaped - 0.3 * kl_of(rollout).sum(1), atol=1e-4, rtol=0)
    last = torch.arange(rollout.mask.shape[1]) == rollout.mask.sum(1, keepdim=True) - 1
    own = rollout.rewards + 0.3 * kl_of(rollout)
    torch.testing.assert_close(own[~last], (numbers(rollout) / moments.std)[~last], atol=1e-5, rtol=0)


def test_a_score_per_token_of_the_response_is_that_of_each_of_its_tokens(tmp_path: Path) -> None:
    still = KLPenalty(kind="fixed", coef=0.0, target=None, horizon=None)
    module, data = ppo(reward=OfTokens(), kl=still, shaping=RewardShaping(length_normalize=True))
    run(tmp_path, module, data)
    rollout = module.last_rollout
    torch.testing.assert_close(rollout.rewards, numbers(rollout) / rollout.mask.sum(1, keepdim=True))


def test_a_clipped_sum_of_numbers_per_token_is_refused(tmp_path: Path) -> None:
    module, data = ppo(reward=OfTokens(), shaping=RewardShaping(clip=1.0))
    with pytest.raises(UserError, match=r"^algorithm\.shaping\.clip: found 1\.0, but reward\.function gives numbers"):
        run(tmp_path, module, data)


def test_a_score_on_the_last_token_trains_as_the_score_of_the_response_does(tmp_path: Path) -> None:
    found = []
    for reward in (count_early, AtTheEnd()):
        module, data = ppo(reward=reward, optimizer=ADAM)
        run(tmp_path, module, data, max_epochs=2)
        found.append(fingerprint(module.policy))
    assert found[0] == found[1]


@pytest.mark.parametrize(("name", "per_token"), [("grpo", False), ("rloo", False), ("reinforce_pp", True)])
def test_groups_compare_sums_and_returns_look_ahead_from_each_token(name: str, per_token: bool, tmp_path: Path) -> None:
    module, data = on_policy(name, reward=OfTokens(), optimizer=STILL, whiten_advantages=False)
    run(tmp_path, module, data)
    rollout = module.last_rollout
    rewards = numbers(rollout)  # at learning rate 0 the KL is 0
    if per_token:
        wanted = rewards.flip(1).cumsum(1).flip(1) * rollout.mask
    else:
        groups = rewards.sum(1).view(-1, 4)
        centred = groups - groups.mean(1, keepdim=True)
        scaled = centred / (groups.std(1, keepdim=True) + 1e-6) if name == "grpo" else centred * 4 / 3
        wanted = scaled.view(-1, 1) * rollout.mask
    torch.testing.assert_close(rollout.advantages, wanted, atol=1e-4, rtol=1e-4)


def test_padding_has_no_score() -> None:
    mask = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    assert placed([[1.0, 2.0, 3.0], [4.0]], mask).tolist() == [[1.0, 2.0, 3.0], [4.0, 0.0, 0.0]]
    assert placed([1.0, 2.0], mask) is None
