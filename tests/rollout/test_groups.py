"""Several responses to a prompt: adjacent in the rollout, each with its own draws; the prompt is read once."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch

from rlhf_lightning.errors import UserError
from rlhf_lightning.rollout import (
    NativeEngine,
    RolloutLoader,
    RolloutSettings,
    SamplingSettings,
    VLLMRollout,
    make_engine,
    rows_by_tokens,
    seeded_generator,
)
from tests.rollout.test_loader import rollout
from tests.rollout.test_native import Passes, forward_logprobs, kept, mixed_prompts
from tests.tiny import tiny_model

SAMPLES = 3


def repeated(prompts: list[list[int]], samples: int = SAMPLES) -> list[list[int]]:
    return [prompt for prompt in prompts for _ in range(samples)]


def engine(batch_size: int | None = None, samples: int = SAMPLES, family: str = "llama") -> NativeEngine:
    settings = RolloutSettings(generation_batch_size=batch_size, samples_per_prompt=samples)
    made = make_engine(settings, pad_id=0, eos_ids=[7])
    assert isinstance(made, NativeEngine)
    made.sync(tiny_model(family).eval())
    return made


# ---- the engine


@pytest.mark.parametrize("batch_size", [None, 1, 2, 4])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_prompt_is_read_once_for_all_its_samples_whatever_the_slots(family: str, batch_size: int | None) -> None:
    """Tokens are counted in the forward passes; every sample gets the numbers of a row that is read alone."""
    sampler = engine(batch_size, family=family)
    prompts = repeated(mixed_prompts(24))
    passes, read = Passes(sampler), []

    def count(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        cache = kwargs.get("past_key_values")
        if cache is not None and cache.place.source is not None:
            read.append(int(kwargs["attention_mask"].sum()))

    cast(Any, sampler.model).base_model.register_forward_pre_hook(count, with_kwargs=True)
    out = sampler.generate(prompts, SamplingSettings(max_new_tokens=9), seeded_generator("cpu", 0))
    assert sum(passes.prompts) == 24 and sum(read) == sum(map(len, mixed_prompts(24)))
    assert max(passes.steps) <= SAMPLES * (batch_size or 24)
    torch.testing.assert_close(out.logprobs, forward_logprobs(sampler, prompts, out, 1.0), atol=1e-5, rtol=0)


def test_the_samples_are_those_of_an_engine_that_is_given_repeated_prompts() -> None:
    prompts = repeated(mixed_prompts(6))
    settings = SamplingSettings(max_new_tokens=9)
    grouped, plain = (
        engine(None, samples).generate(prompts, settings, seeded_generator("cpu", 0)) for samples in (SAMPLES, 1)
    )
    assert torch.equal(grouped.tokens, plain.tokens) and torch.equal(grouped.logprobs, plain.logprobs)


@pytest.mark.parametrize("batch_size", [None, 2])
def test_the_samples_of_a_prompt_have_draws_of_their_own(batch_size: int | None) -> None:
    prompts = repeated([[5, 6, 7], [8], [9, 10]], 6)
    out = engine(batch_size, samples=6).generate(
        prompts, SamplingSettings(max_new_tokens=12), seeded_generator("cpu", 0)
    )
    for start in range(0, 18, 6):
        assert len({tuple(kept(out, start + i)) for i in range(6)}) >= 5


@pytest.mark.parametrize("batch_size", [None, 1, 4])
def test_fewer_rows_than_a_group_are_sampled_as_well(batch_size: int | None) -> None:
    """As in a validation, with one response per prompt."""
    prompts = mixed_prompts(7)
    out = engine(batch_size, samples=3).generate(
        prompts, SamplingSettings(max_new_tokens=5), seeded_generator("cpu", 0)
    )
    assert len(out.tokens) == 7 and (out.mask.sum(dim=1) > 0).all()
    single = engine(batch_size, samples=8).generate(
        [[5]], SamplingSettings(max_new_tokens=5), seeded_generator("cpu", 0)
    )
    assert len(single.tokens) == 1


# ---- minibatches


def grouped_loader(**kwargs: Any) -> RolloutLoader:
    """Of 8 rows: 4 prompts with 2 responses each."""
    settings = {"batch_size": 4, "ppo_epochs": 3, "num_minibatches": 2, "samples_per_prompt": 2, **kwargs}
    return RolloutLoader(rollout, lambda: seeded_generator("cpu", 0), **settings)


def test_minibatches_and_microbatches_keep_groups_whole_and_in_order() -> None:
    feed = grouped_loader(accumulate=2, whole_groups=True)
    batches = list(feed)
    assert len(batches) == len(feed) == 12
    firsts = []
    for batch in batches:
        first, second = batch.prompt_ids[:, 0].tolist()
        assert first % 2 == 0 and second == first + 1
        firsts.append(first)
    assert all(sorted(firsts[i : i + 4]) == [0, 2, 4, 6] for i in range(0, 12, 4))
    assert len({tuple(firsts[i : i + 4]) for i in range(0, 12, 4)}) > 1  # shuffled again in each pass


def test_an_algorithm_that_does_not_need_them_whole_shuffles_responses() -> None:
    batches = list(grouped_loader())
    assert sorted(torch.cat([batch.prompt_ids[:, 0] for batch in batches[:2]]).tolist()) == list(range(8))
    assert any(batch.prompt_ids[0, 0] // 2 != batch.prompt_ids[1, 0] // 2 for batch in batches)


def test_groups_that_do_not_divide_are_refused_by_key() -> None:
    with pytest.raises(UserError, match=r"^rollout\.batch_size: found 4; .*groups of 2 responses, which stay whole"):
        grouped_loader(num_minibatches=8, whole_groups=True)
    assert len(grouped_loader(num_minibatches=8)) == 24
    with pytest.raises(UserError, match=r"^rollout\.batch_size: found 4; .*num_minibatches \(3\)"):
        grouped_loader(num_minibatches=3)


def test_parts_by_tokens_keep_groups_whole() -> None:
    lengths = torch.tensor([3, 9, 2, 2, 5, 1, 4, 4])
    for parts in (rows_by_tokens(lengths, 16, group_size=2), rows_by_tokens(lengths, 16, lambda n: 4, group_size=2)):
        rows = [part.tolist() for part in parts]
        assert sorted(row for part in rows for row in part) == list(range(8))
        assert all(row[i] % 2 == 0 and row[i + 1] == row[i] + 1 for row in rows for i in range(0, len(row), 2))
    budget = [len(part) * int(lengths[part].max()) for part in rows_by_tokens(lengths, 18, group_size=2)]
    assert max(budget) <= 18 and len(budget) < 4


# ---- settings


def test_settings_count_prompts_and_responses() -> None:
    settings = RolloutSettings(batch_size=4, samples_per_prompt=3, generation_batch_size=2)
    assert (settings.responses, settings.responses_at_once) == (12, 6)
    assert RolloutSettings(batch_size=4).responses == 4 and RolloutSettings().responses_at_once is None


@pytest.mark.parametrize("kind", [RolloutSettings, VLLMRollout])
def test_no_sample_is_refused(kind: Any) -> None:
    with pytest.raises(UserError, match=r"^rollout\.samples_per_prompt: found 0; must be a whole number >= 1"):
        kind(samples_per_prompt=0)
