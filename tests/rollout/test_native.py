import math
import random
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from rlhf_lightning.functional import token_logprobs
from rlhf_lightning.models import response_logprobs
from rlhf_lightning.models.forward import bare_model
from rlhf_lightning.rollout import Generation, NativeEngine, SamplingSettings, seeded_generator
from rlhf_lightning.rollout.drawn import Row
from rlhf_lightning.rollout.native import REFILL_AT, Decoding, alike, sample
from tests.tiny import FAMILIES, tiny_model

PROMPTS = [[5, 6, 7], [8], [9, 10], [5]]
ENDS = [3, 7, 11]  # several, so that responses end at different lengths


def engine(family: str = "llama", eos: int = 1, batch_size: int | None = None) -> NativeEngine:
    made = NativeEngine(pad_id=0, eos_ids=[eos], batch_size=batch_size)
    made.sync(tiny_model(family).eval())
    assert made.decoding is Decoding  # a cache that is wrong is not used, and a test of it would test nothing
    return made


def mixed_prompts(count: int, longest: int = 12) -> list[list[int]]:
    """Return prompts of lengths 1 to `longest`, in no order."""
    draw = random.Random(0)
    return [[draw.randrange(3, 29) for _ in range(1 + i * 7 % longest)] for i in range(count)]


def kept(out: Generation, row: int) -> list[int]:
    tokens: list[int] = out.tokens[row][out.mask[row].bool()].tolist()
    return tokens


def greedy_by_hugging_face(model: PreTrainedModel, prompt: list[int], new: int) -> list[int]:
    ids = torch.tensor([prompt])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new,
        do_sample=False,
        eos_token_id=ENDS,
        pad_token_id=0,
    )
    tokens: list[int] = out[0, len(prompt) :].tolist()
    return tokens


def windowed(family: str) -> PreTrainedModel:
    """Return a model whose attention reaches back only four tokens, in the layers that slide."""
    model = tiny_model(family)
    model.config.sliding_window = 4
    return model


def convolutional() -> PreTrainedModel:
    """Return a model of whose three layers two keep a convolution's state instead of keys and values."""
    config = AutoConfig.for_model(
        "lfm2",
        vocab_size=29,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        layer_types=["conv", "full_attention", "conv"],
        initializer_range=0.2,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config)


NETWORKS: dict[str, Callable[[], PreTrainedModel]] = {
    **{family: lambda family=family: tiny_model(family) for family in FAMILIES},  # type: ignore[misc]
    "mistral, window of 4": lambda: windowed("mistral"),
    "gemma2, window of 4": lambda: windowed("gemma2"),
    "lfm2": convolutional,
}


class Passes:
    """Records the rows of every forward pass of an engine: of those that read prompts, and of the steps."""

    def __init__(self, sampler: NativeEngine) -> None:
        self.prompts: list[int] = []
        self.steps: list[int] = []
        bare_model(cast(nn.Module, sampler.model)).base_model.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        rows = len(kwargs["input_ids"])
        if "past_key_values" not in kwargs:  # not the engine's
            return
        if kwargs["past_key_values"].place.source is not None:
            self.prompts.append(rows)
        else:
            self.steps.append(rows)


@pytest.mark.parametrize("batch_size", [None, 5, 1])
@pytest.mark.parametrize("network", NETWORKS)
def test_greedy_tokens_equal_hugging_face_generate_row_by_row(network: str, batch_size: int | None) -> None:
    """With 5 slots for 16 prompts: rows end at different steps, and others take their places."""
    model = NETWORKS[network]().eval()
    prompts = mixed_prompts(14)
    prompts += prompts[:2]
    sampler = NativeEngine(pad_id=0, eos_ids=ENDS, batch_size=batch_size)
    sampler.sync(model)
    out = sampler.generate(prompts, SamplingSettings(max_new_tokens=12, temperature=0.0))
    want = [greedy_by_hugging_face(model, prompt, 12) for prompt in prompts]
    assert [kept(out, i) for i in range(len(prompts))] == want
    assert len({len(tokens) for tokens in want}) > 1


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
def test_log_probabilities_kept_while_decoding_equal_a_forward_pass(family: str, temperature: float) -> None:
    sampler = engine(family, eos=7)
    prompts = PROMPTS * 8
    settings = SamplingSettings(max_new_tokens=10, temperature=temperature)
    out = sampler.generate(prompts, settings, seeded_generator("cpu", 0))
    assert out.ended.any() and not out.ended.all()  # rows end at different lengths, so rows have left the batch
    torch.testing.assert_close(out.logprobs, forward_logprobs(sampler, prompts, out, temperature), atol=2e-5, rtol=0)


def forward_logprobs(sampler: NativeEngine, prompts: list[list[int]], out: Generation, temperature: float) -> Tensor:
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    assert sampler.model is not None
    with torch.no_grad():
        return response_logprobs(sampler.model, ids, mask, out.tokens, out.mask, temperature)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch_size", [2, 5, 16])
def test_a_row_in_a_used_slot_reads_nothing_of_the_former_one(family: str, batch_size: int) -> None:
    """Its log-probabilities are those of a forward pass over it alone; slots are reused often, and columns restart."""
    sampler = engine(family, eos=7, batch_size=batch_size)
    prompts = mixed_prompts(60)
    out = sampler.generate(prompts, SamplingSettings(max_new_tokens=9), seeded_generator("cpu", 0))
    assert out.ended.any() and not out.ended.all()
    torch.testing.assert_close(out.logprobs, forward_logprobs(sampler, prompts, out, 1.0), atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("batch_size", [None, 6])
def test_a_prompt_is_read_once_for_the_samples_that_start_together(family: str, batch_size: int | None) -> None:
    """Read once, it gives every sample the same as when each reads its own."""
    sampler = engine(family, eos=7, batch_size=batch_size)
    prompts = [prompt for prompt in mixed_prompts(4, longest=20) for _ in range(6)]
    passes = Passes(sampler)
    out = sampler.generate(prompts, SamplingSettings(max_new_tokens=8), seeded_generator("cpu", 0))
    assert sum(passes.prompts) == 4 if batch_size is None else sum(passes.prompts) < len(prompts)
    assert len({tuple(kept(out, i)) for i in range(6)}) > 3  # samples of one prompt, each with its own draws
    torch.testing.assert_close(out.logprobs, forward_logprobs(sampler, prompts, out, 1.0), atol=1e-5, rtol=0)


def test_free_slots_are_filled_so_that_a_long_response_does_not_idle_the_others() -> None:
    sampler, slots, new = engine(eos=7, batch_size=8), 8, 40
    passes = Passes(sampler)
    out = sampler.generate(mixed_prompts(96), SamplingSettings(max_new_tokens=new), seeded_generator("cpu", 0))
    tokens = int(out.mask.sum())
    assert max(passes.steps) == slots and out.mask.sum(dim=1).min() < 4 and out.mask.sum(dim=1).max() == new
    assert sum(passes.steps) == tokens - len(out.tokens)  # no row is decoded after its end; the prompt gives a token
    idle = max(1, math.ceil(REFILL_AT * slots)) - 1
    assert len(passes.steps) <= tokens / (slots - idle) + new


def test_with_nothing_waiting_the_batch_shrinks_with_every_end() -> None:
    sampler = engine(eos=7)
    passes = Passes(sampler)
    out = sampler.generate(mixed_prompts(32), SamplingSettings(max_new_tokens=20), seeded_generator("cpu", 0))
    lengths = out.mask.sum(dim=1)
    assert passes.steps == [int((lengths > step).sum()) for step in range(1, int(lengths.max()))]


def test_prompts_are_read_together_while_little_of_it_is_padding() -> None:
    lengths = sorted((1 + 17 * i % 200 for i in range(200)), reverse=True)
    groups = alike([Row([5] * length) for length in lengths for _ in range(2)])
    assert [len(row.prompt) for group in groups for row in group] == [n for length in lengths for n in (length, length)]
    for group in groups:
        distinct = {len(row.prompt) for row in group}
        padding = sum(max(distinct) - length for length in distinct)
        assert padding <= max(64, 0.1 * len(distinct) * max(distinct))
    assert len(groups) < 12


@pytest.mark.parametrize("batch_size", [None, 5])
def test_samples_are_a_function_of_the_generator_and_the_prompts(batch_size: int | None) -> None:
    settings, prompts = SamplingSettings(max_new_tokens=12), mixed_prompts(24)
    sampler = engine(eos=7, batch_size=batch_size)
    runs: list[Generation] = []
    for number in (0, 0, 1):
        torch.manual_seed(len(runs))  # the global generator has no influence
        runs.append(sampler.generate(prompts, settings, seeded_generator("cpu", number)))
    first, again, other = runs
    assert torch.equal(first.tokens, again.tokens) and torch.equal(first.logprobs, again.logprobs)
    assert not torch.equal(first.tokens, other.tokens)


def test_results_are_float32_whatever_the_default_type() -> None:
    sampler = engine(eos=7, batch_size=2)
    torch.set_default_dtype(torch.bfloat16)
    try:
        out = sampler.generate(PROMPTS, SamplingSettings(max_new_tokens=4), seeded_generator("cpu", 0))
    finally:
        torch.set_default_dtype(torch.float32)
    assert out.logprobs.dtype == out.mask.dtype == torch.float32
    assert out.tokens.dtype == torch.long and out.ended.dtype == torch.bool


def test_greedy_tokens_of_an_adapter_equal_hugging_face_generate() -> None:
    base = tiny_model()
    plain = [greedy_by_hugging_face(base.eval(), prompt, 12) for prompt in mixed_prompts(12)]
    model = get_peft_model(base, LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)).eval()
    sampler = NativeEngine(pad_id=0, eos_ids=ENDS, batch_size=5)
    sampler.sync(model)
    out = sampler.generate(mixed_prompts(12), SamplingSettings(max_new_tokens=12, temperature=0.0))
    want = [greedy_by_hugging_face(model, prompt, 12) for prompt in mixed_prompts(12)]
    assert [kept(out, i) for i in range(12)] == want != plain


def test_it_decodes_under_autocast() -> None:
    sampler = engine(eos=7, batch_size=3)
    prompts = mixed_prompts(10)
    with torch.autocast("cpu", torch.bfloat16):
        out = sampler.generate(prompts, SamplingSettings(max_new_tokens=9), seeded_generator("cpu", 0))
    torch.testing.assert_close(out.logprobs, forward_logprobs(sampler, prompts, out, 1.0), atol=0.5, rtol=0)


def test_a_response_ends_with_its_first_eos_and_says_so() -> None:
    out = engine(eos=7).generate(PROMPTS * 16, SamplingSettings(max_new_tokens=10), seeded_generator("cpu", 1))
    for tokens, mask, ended in zip(out.tokens, out.mask, out.ended, strict=True):
        valid = tokens[mask.bool()].tolist()
        assert mask.tolist() == sorted(mask.tolist(), reverse=True)
        assert ended == (valid[-1] == 7)
        assert 7 not in valid[:-1]
        assert ended or len(valid) == 10
        assert (tokens[~mask.bool()] == 0).all()


def test_batches_of_any_size_have_the_same_shape_of_result() -> None:
    settings = SamplingSettings(max_new_tokens=6, temperature=0.0)
    whole, parts = engine().generate(PROMPTS, settings), engine(batch_size=3).generate(PROMPTS, settings)
    assert torch.equal(whole.tokens, parts.tokens)
    assert torch.equal(whole.mask, parts.mask)


def test_the_same_prompt_on_two_ranks_never_gets_the_same_samples() -> None:
    settings = SamplingSettings(max_new_tokens=16)
    ranks = [engine().generate([[5, 6]] * 64, settings, seeded_generator("cpu", "rollout", 0, 0, r)) for r in (0, 1)]
    assert sum(torch.equal(a, b) for a, b in zip(ranks[0].tokens, ranks[1].tokens, strict=True)) == 0
    again = engine().generate([[5, 6]] * 64, settings, seeded_generator("cpu", "rollout", 0, 0, 0))
    assert torch.equal(again.tokens, ranks[0].tokens)


def test_sampling_follows_the_softmax_at_its_temperature() -> None:
    logits = torch.tensor([[1.0, 0.0, -1.0]])
    drawn, logprobs = sample(logits.expand(40_000, 3), SamplingSettings(temperature=0.5), seeded_generator("cpu", 0))
    p = (logits[0] / 0.5).softmax(-1)
    frequency = torch.bincount(drawn, minlength=3) / 40_000
    error = (p * (1 - p) / 40_000).sqrt()
    assert ((frequency - p).abs() < 4 * error).all()
    torch.testing.assert_close(logprobs, p.log()[drawn])


def test_top_k_and_top_p_keep_only_what_they_say() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]]).expand(2000, 4)  # 0.64, 0.24, 0.09, 0.03
    generator = seeded_generator("cpu", 0)
    assert set(sample(logits, SamplingSettings(top_k=2), generator)[0].tolist()) == {0, 1}
    assert set(sample(logits, SamplingSettings(top_p=0.9), generator)[0].tolist()) == {0, 1, 2}
    assert set(sample(logits, SamplingSettings(top_p=0.5), generator)[0].tolist()) == {0}


@pytest.mark.parametrize("settings", [{"top_k": 2}, {"top_p": 0.9}, {"top_k": 3, "top_p": 0.9}])
def test_log_probabilities_are_those_before_top_k_and_top_p(settings: dict[str, Any]) -> None:
    logits = torch.randn(500, 4, generator=seeded_generator("cpu", 1)) * 2
    drawn, logprobs = sample(logits, SamplingSettings(temperature=0.7, **settings), seeded_generator("cpu", 0))
    torch.testing.assert_close(logprobs, token_logprobs(logits, drawn, temperature=0.7))
