import pytest
import torch

from rlhf_lightning.models import response_logprobs
from rlhf_lightning.rollout import NativeEngine, SamplingSettings, seeded_generator
from rlhf_lightning.rollout.native import sample
from tests.tiny import tiny_model

PROMPTS = [[5, 6, 7], [8], [9, 10], [5]]


def engine(family: str = "llama", eos: int = 1, batch_size: int | None = None) -> NativeEngine:
    made = NativeEngine(pad_id=0, eos_ids=[eos], batch_size=batch_size)
    made.sync(tiny_model(family).eval())
    return made


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_greedy_tokens_equal_hugging_face_generate_row_by_row(family: str) -> None:
    greedy = SamplingSettings(max_new_tokens=12, temperature=0.0)
    model = tiny_model(family).eval()
    out = engine(family).generate(PROMPTS, greedy)
    for i, prompt in enumerate(PROMPTS):
        ids = torch.tensor([prompt])
        want = model.generate(ids, max_new_tokens=12, do_sample=False, eos_token_id=1, pad_token_id=0)
        assert out.tokens[i][out.mask[i].bool()].tolist() == want[0, len(prompt) :].tolist()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
def test_log_probabilities_kept_while_decoding_equal_a_forward_pass(family: str, temperature: float) -> None:
    sampler = engine(family, eos=7)
    prompts = PROMPTS * 8
    settings = SamplingSettings(max_new_tokens=10, temperature=temperature)
    out = sampler.generate(prompts, settings, seeded_generator("cpu", 0))
    assert out.ended.any() and not out.ended.all()  # rows end at different lengths, so rows have left the batch
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    with torch.no_grad():
        again = response_logprobs(sampler.model, ids, mask, out.tokens, out.mask, temperature)
    torch.testing.assert_close(out.logprobs, again, atol=2e-5, rtol=0)


def test_a_response_ends_with_its_first_eos_and_says_so() -> None:
    out = engine(eos=7).generate(PROMPTS * 16, SamplingSettings(max_new_tokens=10), seeded_generator("cpu", 1))
    for tokens, mask, ended in zip(out.tokens, out.mask, out.ended, strict=True):
        kept = tokens[mask.bool()].tolist()
        assert mask.tolist() == sorted(mask.tolist(), reverse=True)
        assert ended == (kept[-1] == 7)
        assert 7 not in kept[:-1]
        assert ended or len(kept) == 10
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
