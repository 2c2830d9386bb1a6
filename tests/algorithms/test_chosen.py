"""Which responses DAPO, online DPO and RAFT learn from, and what the others leave untouched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf_lightning.algorithms import OnlineDPOModule, RAFTModule
from rlhf_lightning.errors import UserError
from rlhf_lightning.experience.choice import best_and_worst, best_of_all, best_of_each
from rlhf_lightning.experience.dynamic_sampling import DynamicSampling, further_rows
from rlhf_lightning.experience.sampled import Sampled
from rlhf_lightning.functional import best_of_n_kl
from rlhf_lightning.models import fingerprint
from rlhf_lightning.rewards import WeightedSum
from rlhf_lightning.rollout import Generation, RolloutSettings
from tests.algorithms.conftest import SGD, count_early, on_policy, trainer
from tests.algorithms.test_ppo import STILL, run
from tests.tiny import tiny_model, tiny_tokenizer

GROUPS = RolloutSettings(max_new_tokens=6, batch_size=4, samples_per_prompt=4)


def constant(prompts: list[str], responses: list[str], **columns: Any) -> list[float]:
    return [1 / 3] * len(responses)


def answers(scores: list[float], width: int = 2, **parts: list[float]) -> Sampled:
    """Return as many responses as scores, numbered by their first token."""
    n = len(scores)
    tokens = torch.arange(n)[:, None].repeat(1, width)
    generation = Generation(tokens, torch.ones(n, width), torch.zeros(n, width), torch.ones(n, dtype=torch.bool))
    return Sampled([None] * n, generation, torch.tensor(scores), parts, {}, torch.ones(n))  # type: ignore[list-item]


# ---- dynamic sampling


def test_groups_are_kept_where_some_are_right_and_some_wrong_by_the_accuracy_and_not_by_the_score() -> None:
    """All right, with different scores, teaches nothing; different widths are padded."""
    tries = [answers([0.9, 0.2, 0.5, 0.5], right=[1.0, 1.0, 1.0, 0.0]), answers([5.0, 5.0], 3, right=[0.0, 1.0])]
    asked: list[tuple[int, int, int]] = []

    def ask(*what: int) -> Sampled:
        asked.append(what)
        return tries[what[0]]

    sampled, found = DynamicSampling("right", 0.5, 5, group_size=2)(ask, int, groups=2)
    assert asked == [(0, 0, 2), (1, 0, 1)]
    assert sampled.scores.tolist() == [0.5, 0.5, 5.0, 5.0] and sampled.parts == {"right": [1.0, 0.0, 0.0, 1.0]}
    assert sampled.generation.tokens[:, 0].tolist() == [2, 3, 0, 1]
    assert sampled.generation.mask.sum(dim=1).tolist() == [2, 2, 3, 3]
    assert sampled.learned.tolist() == [1.0] * 4
    values = {name: float(value) for name, (value, _) in found.items()}
    assert values == pytest.approx(
        {"rollout/accuracy": 4 / 6, "rollout/kept": 2 / 3, "rollout/resampled": 0.5, "rollout/unfilled": 0.0}
    )


def test_score_is_the_whole_score_even_if_a_part_is_called_so() -> None:
    whole = answers([0.9, 0.2], score=[0.0, 1.0], other=[1.0, 1.0])
    assert DynamicSampling("score", 0.5, 1, group_size=2).correct(whole).tolist() == [True, False]


def test_at_the_bound_the_other_places_get_groups_that_are_not_learned_from(caplog: pytest.LogCaptureFixture) -> None:
    scores = iter([[1.0, 1.0, 0.0, 1.0, 0.0, 0.0], [1.0, 1.0] * 2, [0.0, 0.0] * 2])
    sampling = DynamicSampling("score", 0.5, 3, group_size=2)
    sampled, found = sampling(lambda *_: answers(next(scores)), int, groups=3)
    assert sampled.scores.tolist() == [0.0, 1.0, 1.0, 1.0, 0.0, 0.0]
    assert sampled.learned.tolist() == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    assert float(found["rollout/unfilled"][0]) == pytest.approx(2 / 3)
    assert float(found["rollout/resampled"][0]) == pytest.approx(4 / 3)
    assert "algorithm.max_tries: after 3 tries 67% of the groups" in caplog.text


def test_every_process_takes_part_in_every_try() -> None:
    """One that has enough still samples, since another lacks two groups."""
    tries = iter([answers([0.0, 1.0] * 2), answers([0.0, 1.0, 1.0, 1.0]), answers([0.0, 0.0])])
    missing, asked = iter([2, 1, 0]), []

    def ask(*what: int) -> Sampled:
        asked.append(what)
        return next(tries)

    sampled, _ = DynamicSampling("score", 0.5, 9, group_size=2)(ask, lambda n: next(missing), groups=2)
    assert asked == [(0, 0, 2), (1, 0, 2), (2, 2, 1)]
    assert sampled.scores.tolist() == [0.0, 1.0] * 2 and sampled.learned.tolist() == [1.0] * 4


def test_further_prompts_are_others_in_an_order_of_their_own() -> None:
    first = [3, 1]
    order = further_rows(8, first, 0, 6, 0, 5)
    assert sorted(order) == [0, 2, 4, 5, 6, 7]
    assert further_rows(8, first, 2, 4, 0, 5) == order[2:] != further_rows(8, first, 2, 4, 0, 6)
    assert set(further_rows(2, [0, 1], 0, 4, 0)) == {0, 1}  # there are no others


def test_further_prompts_are_a_function_of_seed_and_epoch(tmp_path: Path) -> None:
    """Two epochs at learning rate 0 ask others, a second run the same."""
    asked: list[list[list[int]]] = []
    for _ in range(2):
        module, data = on_policy("dapo", optimizer=STILL, reward=constant, max_tries=2, rollout=GROUPS)
        prompts: list[list[int]] = []
        inner = module.answered
        module.answered = lambda rows, *stream, p=prompts, f=inner: (
            p.append([id(row) for row in rows]),
            f(rows, *stream),
        )[1]
        trainer(tmp_path, max_epochs=2).fit(module, datamodule=data)
        numbers = {id(row): i for i, row in enumerate(data.train_prompts)}
        asked.append([[numbers[row] for row in rows] for rows in prompts])
    assert asked[0] == asked[1] and len(asked[0]) == 4
    assert not set(asked[0][0]) & set(asked[0][1])
    assert further_rows(20, asked[0][0], 0, 4, 0, 0) == asked[0][1]
    assert further_rows(20, asked[0][2], 0, 4, 0, 1) == asked[0][3]


def test_dapo_learns_from_mixed_groups_only_and_logs_what_it_sampled(tmp_path: Path) -> None:
    module, data = on_policy("dapo", optimizer=STILL, accuracy_threshold=2.0, max_tries=6, rollout=GROUPS)
    watch = run(tmp_path, module, data)
    rollout = module.last_rollout
    right = (rollout.scores >= 2).view(4, 4)
    mixed = right.any(dim=1) & ~right.all(dim=1)
    assert torch.equal(rollout.learned, mixed.float().repeat_interleave(4)) and mixed.any()
    assert watch.last["rollout/resampled"] > 0 and 0 < watch.last["rollout/kept"] < 1
    assert watch.last["rollout/unfilled"] == pytest.approx(1 - float(mixed.float().mean()))
    prompts = rollout.prompt_ids.view(4, 4, -1)
    assert (prompts == prompts[:, :1]).all()


def test_where_no_group_teaches_nothing_is_learned_though_shaped_scores_differ(tmp_path: Path) -> None:
    def right(prompts: list[str], responses: list[str], **columns: Any) -> list[float]:
        return [1.0] * len(responses)

    reward = WeightedSum({"right": right, "style": count_early}, {"right": 1.0, "style": 0.1})
    module, data = on_policy("dapo", optimizer=SGD, reward=reward, accuracy="right", max_tries=2)
    watch = run(tmp_path, module, data)
    assert module.last_rollout.advantages.abs().max() > 0.1
    assert watch.last["rollout/unfilled"] == 1.0 and watch.last["rollout/accuracy"] == 1.0
    assert watch.last["train/loss"] == 0.0
    assert fingerprint(module.policy) == fingerprint(tiny_model())


def test_truncated_responses_are_out_of_the_loss_and_its_divisors_but_in_the_baseline(tmp_path: Path) -> None:
    """One step, so the update is the gradient of the mean over the tokens of the others."""
    settings = {"accuracy": None, "mask_truncated": True, "num_minibatches": 1, "scale": "none"}
    module, data = on_policy("dapo", optimizer=SGD, rollout=GROUPS, **settings)
    watch = run(tmp_path, module, data)
    rollout, again = module.last_rollout, on_policy("dapo", optimizer=SGD, rollout=GROUPS, **settings)[0]
    ended = rollout.ended
    assert 0 < ended.sum() < len(ended)
    assert watch.last["rollout/truncated"] == pytest.approx(1 - float(ended.float().mean()))
    scores = rollout.scores.view(4, 4)
    advantages = (scores - scores.mean(dim=1, keepdim=True)).flatten()
    torch.testing.assert_close(rollout.advantages, advantages[:, None] * rollout.mask)
    again.configure_model()
    out = again.actor_critic(rollout.prompt_ids, rollout.prompt_mask, rollout.response_ids, rollout.mask)
    kept = rollout.mask * ended[:, None]
    (-(advantages[:, None] * out.logprobs * kept).sum() / kept.sum()).backward()
    for trained, start in zip(module.policy.parameters(), again.policy.parameters(), strict=True):
        torch.testing.assert_close(trained, start - 0.1 * start.grad, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"accuracy": "rigth"}, r"^algorithm\.accuracy: found rigth; must be score \| right \| style"),
        (
            {"rollout": RolloutSettings(batch_size=4), "estimator": "returns", "scale": "none"},
            r"^rollout\.samples_per_prompt: found 1, but algorithm\.accuracy=score",
        ),
    ],
)
def test_an_accuracy_that_cannot_judge_is_refused(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    reward = WeightedSum({"right": constant, "style": count_early}, {"right": 1.0, "style": 0.1})
    with pytest.raises(UserError, match=message):
        run(tmp_path, *on_policy("dapo", reward=reward, **settings))


def test_numbers_per_token_are_refused(tmp_path: Path) -> None:
    def per_token(prompts: list[str], responses: list[str], sampled: Any, **columns: Any) -> list[list[float]]:
        return [[1.0] * len(tokens) for tokens in sampled.responses]

    per_token.reads_tokens = True  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"^algorithm\.accuracy: found score, but reward gives numbers per token"):
        run(tmp_path, *on_policy("dapo", reward=per_token))


# ---- online DPO and RAFT


def test_choices_of_groups_with_and_without_a_difference() -> None:
    rewards = torch.tensor([1.0, 4.0, 2.0, 7.0, 7.0, 7.0, 5.0, 0.0, 6.0])
    rows, learned = best_and_worst(rewards, 3)
    assert rows.tolist() == [1, 0, 3, 3, 8, 7] and learned.tolist() == [1, 1, 0, 0, 1, 1]
    rows, learned = best_of_each(rewards, 3)
    assert rows.tolist() == [1, 3, 8] and learned.tolist() == [1, 0, 1]
    rows, learned = best_of_all(rewards, 3)
    assert rows.tolist() == [8, 6, 1] and learned.tolist() == [1, 1, 1]
    rows, learned = best_of_all(torch.tensor([3.0, 3.0, 2.0, 2.0]), 2)
    assert learned.tolist() == [0, 0]


@pytest.mark.parametrize("name", ["online_dpo", "raft"])
def test_without_any_difference_the_loss_is_zero_and_nothing_moves(name: str, tmp_path: Path) -> None:
    module, data = on_policy(name, optimizer=SGD, reward=constant)
    watch = run(tmp_path, module, data)
    assert watch.last["rollout/ties"] == 1.0 and watch.last["train/loss"] == 0.0
    assert all(value == value for value in watch.last.values())
    assert fingerprint(module.policy) == fingerprint(tiny_model())


def test_online_dpo_trains_on_pairs_of_one_prompt_and_counts_ties(tmp_path: Path) -> None:
    module, data = on_policy("online_dpo", optimizer=STILL, ppo_epochs=2, num_minibatches=2)
    seen, inner = [], module.loss
    module.loss = lambda batch: (seen.append(batch), inner(batch))[1]
    watch = run(tmp_path, module, data)
    scores = module.last_rollout.scores.view(4, 4)
    ties = scores.amax(dim=1) == scores.amin(dim=1)
    assert watch.last["rollout/ties"] == pytest.approx(float(ties.float().mean())) and not ties.all()
    assert watch.last["train/loss"] == pytest.approx(0.693147, abs=1e-6)
    assert watch.last["rewards/margins"] == 0.0 and watch.last["rewards/accuracies"] == 0.5
    assert [len(batch) for batch in seen] == [4] * 4
    for batch in seen:
        chosen, rejected = batch.scores[::2], batch.scores[1::2]
        assert (batch.prompt_ids[::2] == batch.prompt_ids[1::2]).all()
        assert torch.equal(chosen > rejected, batch.learned[::2] == 1)


@pytest.mark.parametrize("select", ["per_prompt", "share"])
def test_raft_trains_on_the_best_and_reports_the_kl_of_choosing(select: str, tmp_path: Path) -> None:
    module, data = on_policy("raft", optimizer=STILL, select=select, num_minibatches=2)
    seen, inner = [], module.loss
    module.loss = lambda batch: (seen.append(batch), inner(batch))[1]
    watch = run(tmp_path, module, data)
    scores = module.last_rollout.scores.view(4, 4)
    scores = scores[scores.amax(dim=1) != scores.amin(dim=1)]
    wanted = scores.amax(dim=1) if select == "per_prompt" else scores.flatten().sort(descending=True).values[:4]
    found = torch.cat([batch.scores[batch.learned == 1] for batch in seen])
    assert sum(map(len, seen)) == 4 and sorted(found.tolist()) == sorted(wanted.tolist())
    assert watch.last["rollout/chosen_scores"] == pytest.approx(float(wanted.mean()))
    assert watch.last["rollout/chosen_scores"] > watch.last["objective/scores"]
    bound = best_of_n_kl(4) if select == "per_prompt" else 1.386294
    assert watch.last["rollout/best_of_n_kl"] == pytest.approx(bound, rel=1e-5)
    assert watch.last["policy/nll"] == watch.last["train/loss"] > 0


@pytest.mark.parametrize("kind", [OnlineDPOModule, RAFTModule])
def test_a_single_response_leaves_no_choice(kind: Any) -> None:
    with pytest.raises(UserError, match=rf"^rollout\.samples_per_prompt: found 1, but {kind.__name__} chooses"):
        kind(tiny_model, tiny_tokenizer(), SGD, reward=count_early)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["online_dpo", "raft"])
def test_the_score_rises(name: str, tmp_path: Path) -> None:
    module, data = on_policy(name, rollout=RolloutSettings(max_new_tokens=6, batch_size=16, samples_per_prompt=4))
    scores: list[float] = []
    inner = module.end_iteration
    module.end_iteration = lambda metrics: (scores.append(float(metrics["objective/scores"])), inner(metrics))
    trainer(tmp_path, max_epochs=12).fit(module, datamodule=data)
    assert sum(scores[-3:]) > sum(scores[:3]) + 0.5
