"""The tokenizer round trip over all text of the world, and models that leave the global random state alone."""

from __future__ import annotations

import pytest
import torch

from rlhf_lightning.errors import UserError
from rlhf_lightning.simulation import build_model, build_tokenizer
from rlhf_lightning.simulation.prompts import all_prompts
from rlhf_lightning.simulation.sentences import lexicon


def test_all_text_of_the_world_decodes_to_itself_without_unknown_words() -> None:
    tokenizer = build_tokenizer()
    texts = [*all_prompts(), *lexicon(), *(f"{a} {b}" for a, b in zip(lexicon(), list(lexicon())[1:], strict=False))]
    ids = tokenizer(texts).input_ids
    assert not any(tokenizer.unk_token_id in row for row in ids)
    assert tokenizer.batch_decode(ids) == texts


def test_prompt_and_answer_tokenise_together_as_apart() -> None:
    tokenizer = build_tokenizer()
    prompt, answer = "what is the capital of france?", "it is paris."
    assert tokenizer(prompt + answer).input_ids == tokenizer(prompt).input_ids + tokenizer(answer).input_ids


def test_the_vocabulary_has_200_to_400_words_and_four_distinct_special_tokens() -> None:
    tokenizer = build_tokenizer()
    assert 200 <= len(tokenizer) <= 400
    ids = {tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id}
    assert len(ids) == 4
    assert tokenizer("paris").input_ids == [tokenizer.convert_tokens_to_ids("paris")]  # nothing is added


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_model_is_a_function_of_its_seed_and_leaves_the_global_random_state(family: str) -> None:
    tokenizer = build_tokenizer()
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first, again, other = (build_model(tokenizer, family, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.rand(3), expected)
    weights = [next(model.parameters()) for model in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert all(p.dtype == torch.float32 for p in first.parameters())
    assert first.num_parameters() < 1_000_000
    assert first.config.eos_token_id == tokenizer.eos_token_id


@pytest.mark.parametrize("arguments", [{"family": "bert"}, {"hidden_size": 30}])
def test_a_model_that_cannot_be_built_is_an_error_and_leaves_the_random_state(arguments: dict[str, object]) -> None:
    state = torch.get_rng_state()
    with pytest.raises(UserError, match="choose"):
        build_model(build_tokenizer(), **arguments)
    assert torch.equal(torch.get_rng_state(), state)
