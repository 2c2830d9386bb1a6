from typing import Any

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM

from rlhf_lightning.models import forward as forward_module
from rlhf_lightning.models import output_head, predict_tokens, response_logprobs, right_padded, scatter_tokens
from rlhf_lightning.models.forward import predict_from_hidden
from tests.tiny import FAMILIES, tiny_model


def rows(pad: int = 0) -> tuple[torch.Tensor, ...]:
    """Return two prompts of 3 and 1 tokens with responses of 2 and 4, with `pad` more columns on both sides."""
    prompts, responses = [[5, 6, 7], [8]], [[9, 1], [10, 11, 12, 1]]
    prompt_ids = torch.tensor([[0] * (3 + pad - len(p)) + p for p in prompts])
    prompt_mask = torch.tensor([[0] * (3 + pad - len(p)) + [1] * len(p) for p in prompts])
    response_ids = torch.tensor([r + [0] * (4 + pad - len(r)) for r in responses])
    mask = torch.tensor([[1.0] * len(r) + [0.0] * (4 + pad - len(r)) for r in responses])
    return prompt_ids, prompt_mask, response_ids, mask


@pytest.mark.parametrize("family", FAMILIES)
def test_response_logprobs_equal_those_of_each_row_alone_through_hugging_face(family: str) -> None:
    model = tiny_model(family).eval()
    got = response_logprobs(model, *rows())
    for i, (prompt, response) in enumerate([([5, 6, 7], [9, 1]), ([8], [10, 11, 12, 1])]):
        ids = torch.tensor([prompt + response])
        logprobs = model(ids).logits.log_softmax(-1)[0, len(prompt) - 1 : -1]
        expected = logprobs.gather(1, torch.tensor(response).unsqueeze(1)).squeeze(1)
        torch.testing.assert_close(got[i, : len(response)], expected, atol=1e-5, rtol=0)
        assert (got[i, len(response) :] == 0).all()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pad", [1, 4, 16])
def test_padding_on_either_side_does_not_change_log_probabilities(family: str, pad: int) -> None:
    model = tiny_model(family).eval()
    with torch.no_grad():
        plain, padded = (response_logprobs(model, *rows(n)) for n in (0, pad))
    torch.testing.assert_close(padded[:, :4], plain, atol=1e-5, rtol=0)
    assert (padded[:, 4:] == 0).all()


def test_temperature_divides_the_logits() -> None:
    model = tiny_model().eval()
    ids, flags = right_padded(*rows())
    got = predict_tokens(model, ids, flags, temperature=0.7).logprobs
    logprobs = (model(ids).logits[:, :-1] / 0.7).log_softmax(-1).gather(2, ids[:, 1:, None]).squeeze(2)
    torch.testing.assert_close(got, logprobs[flags[:, 1:].bool()], atol=1e-5, rtol=0)


def test_right_padded_keeps_every_token_in_order() -> None:
    ids, flags = right_padded(*rows(pad=2))
    assert ids[0, :5].tolist() == [5, 6, 7, 9, 1]
    assert ids[1].tolist() == [8, 10, 11, 12, 1]
    assert flags.tolist() == [[0, 0, 0, 1, 1], [0, 1, 1, 1, 1]]


def test_scatter_puts_flat_values_back_in_row_major_order() -> None:
    mask = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    assert scatter_tokens(torch.tensor([1.0, 2.0, 3.0]), mask).tolist() == [[1, 0], [2, 3]]


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_equal_those_of_the_full_logits(family: str) -> None:
    ids, flags = right_padded(*rows())
    gradients = []
    for form in ("ours", "full"):
        model = tiny_model(family).eval()
        if form == "ours":
            loss = predict_tokens(model, ids, flags).logprobs.sum()
        else:
            logprobs = model(ids).logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None]).squeeze(2)
            loss = logprobs[flags[:, 1:].bool()].sum()
        loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(*gradients, atol=2e-5, rtol=1e-4)


def test_soft_capped_logits_equal_hugging_faces() -> None:
    config = Gemma2Config(
        vocab_size=20, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, final_logit_softcapping=2.0, initializer_range=0.5,
    )  # fmt: skip
    model = Gemma2ForCausalLM(config).eval()
    ids = torch.arange(3, 9).unsqueeze(0)
    logits = output_head(model)(model.model(ids).last_hidden_state)
    torch.testing.assert_close(logits, model(ids).logits)
    assert logits.abs().max() <= 2.0


@pytest.mark.parametrize(("on_cpu", "tokens"), [(None, 2**23 // 64), (True, 2**23 // 64), (False, 2**25 // 64)])
def test_a_cpu_has_fewer_logits_in_flight(on_cpu: bool | None, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, sizes = tiny_model(vocab_size=64), []

    def chunked(*given: Any, chunk_size: int, **more: Any) -> Any:
        sizes.append(chunk_size)
        return given[0][:, 0], None

    monkeypatch.setattr(forward_module, "chunked_token_logprobs", chunked)
    predict_from_hidden(model, torch.zeros(3, 32), torch.zeros(3, dtype=torch.long), on_cpu=on_cpu)
    assert sizes == [tokens]
