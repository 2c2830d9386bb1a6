"""Token log-probabilities and entropies compared with plain Python, and the chunked form with the plain one."""

from __future__ import annotations

import math

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from rlhf_lightning.functional import chunked_token_logprobs, entropy, token_logprobs

NAN = float("nan")


def _softmax(logits: list[float], temperature: float) -> list[float]:
    top = max(logits)
    weights = [math.exp((logit - top) / temperature) for logit in logits]
    return [weight / sum(weights) for weight in weights]


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(3, 5, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3


@pytest.fixture
def labels() -> torch.Tensor:
    return torch.randint(11, (3, 5), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
def test_logprobs_and_entropy_equal_python(logits, labels, temperature) -> None:
    logprobs, entropies = token_logprobs(logits, labels, temperature), entropy(logits, temperature)
    for row in range(3):
        for t in range(5):
            probabilities = _softmax(logits[row, t].tolist(), temperature)
            assert logprobs[row, t].item() == pytest.approx(math.log(probabilities[labels[row, t]]), abs=1e-12)
            expected = -sum(p * math.log(p) for p in probabilities)
            assert entropies[row, t].item() == pytest.approx(expected, abs=1e-12)


def test_the_gradient_is_that_of_finite_differences(logits, labels) -> None:
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: token_logprobs(z, labels, 0.7), (logits,))


def test_a_token_far_below_the_likeliest_keeps_its_log_probability() -> None:
    logits = torch.tensor([[[0.0, 200.0, -300.0]]])
    assert token_logprobs(logits.expand(1, 3, 3), torch.tensor([[0, 1, 2]])).tolist() == [[-200.0, 0.0, -500.0]]


def test_labels_are_not_shifted(logits, labels) -> None:
    """Changing the logits at t changes only the log-probability at t."""
    changed = logits.clone()
    changed[:, 2, 0] += 1
    moved = token_logprobs(changed, labels) != token_logprobs(logits, labels)
    assert torch.equal(moved.any(0), torch.tensor([False, False, True, False, False]))


def test_ignored_positions_give_0_and_are_never_read(logits, labels) -> None:
    labels[1, 2:] = -100
    logits[1, 2:] = NAN
    logits.requires_grad_()
    logprobs = token_logprobs(logits, labels)
    assert (logprobs[1, 2:] == 0).all()
    logprobs.sum().backward()
    assert torch.isfinite(logits.grad).all()
    assert (logits.grad[1, 2:] == 0).all()
    assert (logits.grad[0] != 0).all()


def test_excluded_tokens_have_no_mass_and_no_gradient(logits, labels) -> None:
    labels = labels.clamp(min=1)
    logits[..., 0] = -math.inf
    logits.requires_grad_()
    assert torch.allclose(token_logprobs(logits, labels), token_logprobs(logits[..., 1:], labels - 1))
    assert torch.allclose(entropy(logits), entropy(logits[..., 1:]))
    (token_logprobs(logits, labels) + entropy(logits)).sum().backward()
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_gradients(logits, labels, temperature) -> None:
    logits = logits[:1, :2].requires_grad_()
    labels = labels[:1, :2]
    assert torch.autograd.gradcheck(lambda logits: token_logprobs(logits, labels, temperature), logits)
    assert torch.autograd.gradcheck(lambda logits: entropy(logits, temperature), logits)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(logits, labels, dtype) -> None:
    half = logits.to(dtype)
    logprobs, entropies = token_logprobs(half, labels, 0.7), entropy(half, 0.7)
    assert logprobs.dtype == entropies.dtype == torch.float32
    assert torch.allclose(logprobs, token_logprobs(half.double(), labels, 0.7).float(), atol=1e-5)
    assert torch.allclose(entropies, entropy(half.double(), 0.7).float(), atol=1e-5)


def test_entropy_of_uniform_is_log_vocabulary_and_of_certainty_0() -> None:
    assert entropy(torch.zeros(1, 1, 50)).item() == pytest.approx(math.log(50), rel=1e-6)
    assert entropy(torch.tensor([[[1000.0, 0.0]]])).item() == 0


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(3, 4, dtype=torch.long), r"`labels` has shape \[3, 4\]; expected \[3, 5\]"),
        (torch.zeros(3, 1, dtype=torch.long), r"`labels` has shape \[3, 1\]"),
        (torch.zeros(3, 5), r"`labels` has dtype torch\.float32; expected integers"),
    ],
)
def test_labels_that_do_not_fit_are_refused(logits, labels, message) -> None:
    with pytest.raises(ValueError, match=message):
        token_logprobs(logits, labels)
    with pytest.raises(ValueError, match=message):
        chunked_token_logprobs(logits, torch.nn.Identity(), labels)


@pytest.mark.parametrize("temperature", [0.0, -1.0, NAN])
def test_temperature_must_be_above_0(logits, labels, temperature) -> None:
    with pytest.raises(ValueError, match="`temperature`"):
        token_logprobs(logits, labels, temperature)
    with pytest.raises(ValueError, match="`temperature`"):
        entropy(logits, temperature)


class TestChunked:
    """B * T = 15 tokens, hidden size 6, vocabulary 11."""

    @pytest.fixture
    def hidden(self) -> torch.Tensor:
        return torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    @pytest.fixture
    def head(self) -> torch.nn.Linear:
        torch.manual_seed(3)
        return torch.nn.Linear(6, 11, dtype=torch.float64)

    @pytest.mark.parametrize("chunk_size", [1, 4, 5, 15, 1024])
    @pytest.mark.parametrize("temperature", [0.7, 1.0])
    def test_values_and_gradients_equal_the_plain_form(self, hidden, head, labels, chunk_size, temperature) -> None:
        labels[0, 3:] = -100
        scored = labels != -100
        weights = torch.randn(2, 3, 5, dtype=torch.float64)
        results = []
        for chunked in (False, True):
            head.zero_grad()
            states = hidden.clone().requires_grad_()
            if chunked:
                logprobs, entropies = chunked_token_logprobs(
                    states, head, labels, temperature, chunk_size, with_entropy=True
                )
            else:
                logprobs = token_logprobs(head(states), labels, temperature)
                entropies = entropy(head(states), temperature) * scored
            (weights[0] * logprobs + weights[1] * entropies).sum().backward()
            results.append((logprobs.detach(), entropies.detach(), states.grad, head.weight.grad, head.bias.grad))
        for plain, chunked in zip(*results, strict=True):
            assert torch.allclose(plain, chunked, rtol=0, atol=1e-12)
        assert all((result.abs() > 1e-3).any() for result in results[0])

    @pytest.mark.parametrize("chunk_size", [4, 1024])
    def test_a_frozen_head_runs_once_and_gives_the_same_gradients(self, hidden, head, labels, chunk_size) -> None:
        labels[0, 3:] = -100
        head.requires_grad_(False)
        weights, results, calls = torch.randn(3, 5, dtype=torch.float64), [], []

        def counting_head(states: torch.Tensor) -> torch.Tensor:
            calls.append(len(states))
            return head(states)

        for frozen in (False, True):
            calls.clear()
            states = hidden.clone().requires_grad_()
            logprobs, _ = chunked_token_logprobs(
                states, counting_head, labels, 0.7, chunk_size=chunk_size, frozen_head=frozen
            )
            (weights * logprobs).sum().backward()
            results.append((logprobs.detach(), states.grad))
        assert sum(calls) == 15
        for plain, at_once in zip(*results, strict=True):
            assert torch.allclose(plain, at_once, rtol=0, atol=1e-12)
        assert (results[1][1][0, 3:] == 0).all() and (results[1][1][1:] != 0).all()

    def test_entropy_is_none_unless_asked_for(self, hidden, head, labels) -> None:
        assert chunked_token_logprobs(hidden, head, labels)[1] is None

    def test_hidden_states_at_ignored_positions_are_never_read(self, hidden, head, labels) -> None:
        labels[2, 1:] = -100
        hidden[2, 1:] = NAN
        hidden.requires_grad_()
        logprobs, entropies = chunked_token_logprobs(hidden, head, labels, chunk_size=4, with_entropy=True)
        (logprobs + entropies).sum().backward()
        for result in (logprobs, entropies, hidden.grad, head.weight.grad, head.bias.grad):
            assert torch.isfinite(result).all()
        assert (logprobs[2, 1:] == 0).all()
        assert (entropies[2, 1:] == 0).all()

    def test_logits_of_all_tokens_never_exist(self, hidden, head, labels) -> None:
        """No tensor of an operation, forward or backward, and no sum of stored ones reaches tokens * vocabulary."""
        largest, stored = 0, 0

        class Watch(TorchDispatchMode):
            def __torch_dispatch__(self, function, types, args=(), kwargs=None):
                nonlocal largest
                results = function(*args, **(kwargs or {}))
                for result in results if isinstance(results, (tuple, list)) else [results]:
                    if isinstance(result, torch.Tensor):
                        largest = max(largest, result.numel())
                return results

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal stored
            stored += tensor.numel()
            return tensor

        wide = torch.nn.Linear(6, 500, dtype=torch.float64)
        tokens = hidden.repeat(1, 40, 1).requires_grad_()  # 600 tokens
        labels = labels.repeat(1, 40)
        chunk, everything = 20 * 500, 600 * 500
        with Watch(), saved_tensors_hooks(pack, lambda tensor: tensor):
            chunked_token_logprobs(tokens, wide, labels, 0.7, 20, with_entropy=True)[0].sum().backward()
        assert largest <= chunk
        assert stored < everything / 2
        with Watch(), saved_tensors_hooks(pack, lambda tensor: tensor):
            token_logprobs(wide(tokens), labels, 0.7).sum().backward()
        assert largest >= everything, "the watch sees what it has to see"
        assert stored >= everything

    def test_without_gradients_nothing_is_checkpointed(self, hidden, head, labels, monkeypatch) -> None:
        monkeypatch.setattr("rlhf_lightning.functional.logprobs.checkpoint", None)
        rows = []

        def counting_head(states: torch.Tensor) -> torch.Tensor:
            rows.append(len(states))
            return head(states)

        with torch.no_grad():
            chunked_token_logprobs(hidden, counting_head, labels, chunk_size=4)
        assert rows == [4, 4, 4, 3]

    def test_chunk_size_must_be_above_0(self, hidden, head, labels) -> None:
        with pytest.raises(ValueError, match="`chunk_size` is 0"):
            chunked_token_logprobs(hidden, head, labels, chunk_size=0)
