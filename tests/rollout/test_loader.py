import pytest
import torch
from lightning.pytorch.plugins.precision import HalfPrecision

from rlhf_lightning.errors import UserError
from rlhf_lightning.rollout import Rollout, RolloutLoader, RolloutSettings, endless_order, seeded_generator


def rollout(n: int = 8, length: int = 4) -> Rollout:
    lengths = torch.arange(n) % length + 1
    mask = (torch.arange(length) < lengths.unsqueeze(1)).float()
    per_token = torch.arange(n * length, dtype=torch.float32).view(n, length)
    ids = torch.arange(n).unsqueeze(1)
    return Rollout(
        ids, torch.ones_like(ids), ids.expand(n, length), mask, torch.ones(n, dtype=torch.bool),
        per_token, per_token, per_token, torch.arange(n).float(), per_token, per_token, per_token,
    )  # fmt: skip


def loader(**kwargs: int) -> RolloutLoader:
    settings = {"batch_size": 8, "ppo_epochs": 3, "num_minibatches": 2, **kwargs}
    return RolloutLoader(rollout, lambda: seeded_generator("cpu", 0), **settings)


def test_length_is_exact_and_every_response_comes_once_a_pass() -> None:
    feed = loader(accumulate=2)
    batches = list(feed)
    assert len(batches) == len(feed) == 3 * 2 * 2
    for start in range(0, 12, 4):
        rows = torch.cat([batch.prompt_ids[:, 0] for batch in batches[start : start + 4]])
        assert sorted(rows.tolist()) == list(range(8))


def test_a_fresh_rollout_is_collected_for_every_pass_over_the_loader() -> None:
    calls = []
    feed = RolloutLoader(lambda: calls.append(1) or rollout(), lambda: seeded_generator("cpu", 0), 8, 1, 2)
    assert not calls  # nothing is collected, or prefetched, before the first batch is requested
    list(feed), list(feed)
    assert len(calls) == 2


@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_the_step_divides_by_the_whole_minibatch_however_it_is_split(accumulate: int) -> None:
    batches = list(loader(accumulate=accumulate, ppo_epochs=1))
    for start in range(0, len(batches), accumulate):
        parts = batches[start : start + accumulate]
        tokens = sum(float(part.mask.sum()) for part in parts)
        assert all(part.denominator * accumulate == pytest.approx(tokens) for part in parts)


def test_unequal_parts_are_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"rollout\.batch_size: found 8; .* algorithm\.num_minibatches \(3\)"):
        loader(num_minibatches=3)


def test_half_precision_never_reaches_old_log_probabilities() -> None:
    """bf16-true casts the float tensors of dicts and dataclasses; a rollout must be neither."""
    moved = HalfPrecision("bf16-true").convert_input(rollout()).to("cpu")
    assert moved.logprobs.dtype == torch.float32 and moved.prompt_ids.dtype == torch.long


def test_endless_order_is_a_function_of_seed_and_position() -> None:
    whole = endless_order(5, 0, 23, "prompts", 1)
    assert whole[7:16] == endless_order(5, 7, 9, "prompts", 1)
    assert all(sorted(whole[i : i + 5]) == list(range(5)) for i in range(0, 20, 5))
    assert whole != endless_order(5, 0, 23, "prompts", 2)


def test_rollout_settings_refuse_what_ppo_cannot_use() -> None:
    with pytest.raises(UserError, match=r"rollout\.engine"):
        RolloutSettings(engine="vlm")
    with pytest.raises(UserError, match=r"rollout\.temperature"):
        RolloutSettings(temperature=0.0)


@pytest.mark.parametrize(("passes", "minibatches", "key"), [(0, 2, "ppo_epochs"), (1, 0, "num_minibatches")])
def test_an_iteration_without_updates_is_refused(passes: int, minibatches: int, key: str) -> None:
    with pytest.raises(UserError, match=rf"^algorithm\.{key}: found 0; must be a whole number >= 1"):
        RolloutLoader(rollout, lambda: seeded_generator("cpu", 0), 8, passes, minibatches)
