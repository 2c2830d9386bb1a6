"""The generalised Jensen-Shannon divergence by hand, at its ends, and in chunks."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rlhf_lightning.functional import chunked_divergences, generalized_jsd


def drawn(seed: int, *shape: int) -> Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


STUDENT, TEACHER = drawn(0, 2, 3, 5), drawn(1, 2, 3, 5)
MASK = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])


def probabilities(logits: Tensor, temperature: float) -> list[float]:
    exponentials = [math.exp(x / temperature) for x in logits.tolist()]
    return [x / sum(exponentials) for x in exponentials]


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def by_hand(beta: float, temperature: float) -> float:
    """Return the mean over valid tokens, with plain numbers."""
    total = 0.0
    for row, t in MASK.nonzero().tolist():
        s, q = probabilities(STUDENT[row, t], temperature), probabilities(TEACHER[row, t], temperature)
        if beta in (0.0, 1.0):
            total += kl(q, s) if beta == 0 else kl(s, q)
            continue
        mixture = [beta * b + (1 - beta) * a for a, b in zip(s, q, strict=True)]
        total += beta * kl(q, mixture) + (1 - beta) * kl(s, mixture)
    return total / float(MASK.sum())


@pytest.mark.parametrize("beta", [0.0, 0.2, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_divergence_is_that_by_hand(beta: float, temperature: float) -> None:
    found = generalized_jsd(STUDENT, TEACHER, MASK, beta, temperature)
    assert float(found) == pytest.approx(by_hand(beta, temperature), abs=1e-12)


def test_beta_0_is_the_forward_kl_and_beta_1_the_reverse_one() -> None:
    """A student that misses what the teacher says pays under the forward KL, one that adds to it under the reverse."""
    narrow, wide, mask = torch.tensor([[[9.0, 0.0]]]), torch.zeros(1, 1, 2), torch.ones(1, 1)
    missing, adding = (narrow, wide), (wide, narrow)
    assert generalized_jsd(*missing, mask, 0.0) > 5 * generalized_jsd(*missing, mask, 1.0)
    assert generalized_jsd(*adding, mask, 1.0) > 5 * generalized_jsd(*adding, mask, 0.0)


@pytest.mark.parametrize("end", [0.0, 1.0])
def test_the_ends_are_the_limits_of_the_divergence_per_weight(end: float) -> None:
    near = 1e-6
    beta = near if end == 0 else 1 - near
    limit = generalized_jsd(STUDENT, TEACHER, MASK, beta) / near
    assert float(limit) == pytest.approx(float(generalized_jsd(STUDENT, TEACHER, MASK, end)), rel=1e-4)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_chunks_change_neither_value_nor_gradient_and_the_teacher_gets_none(beta: float) -> None:
    found = []
    for size in (1, 4, 1024):
        student, teacher = STUDENT.clone().requires_grad_(), TEACHER.clone().requires_grad_()
        loss = generalized_jsd(student, teacher, MASK, beta, chunk_size=size)
        loss.backward()
        assert teacher.grad is None
        found.append((loss.detach(), student.grad))
    for loss, gradient in found[1:]:
        torch.testing.assert_close(loss, found[0][0])
        torch.testing.assert_close(gradient, found[0][1])
    assert not found[0][1][MASK == 0].any()


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_padding_and_tokens_that_are_excluded_by_both_are_harmless(beta: float) -> None:
    excluded = torch.zeros(5, dtype=torch.bool)
    excluded[2] = True
    student = STUDENT.masked_fill(excluded, -torch.inf).masked_fill(MASK.unsqueeze(-1) == 0, torch.nan)
    teacher = TEACHER.masked_fill(excluded, -torch.inf).masked_fill(MASK.unsqueeze(-1) == 0, torch.nan)
    student.requires_grad_()
    loss = generalized_jsd(student, teacher, MASK, beta)
    loss.backward()
    expected = generalized_jsd(STUDENT[..., ~excluded], TEACHER[..., ~excluded], MASK, beta)
    assert float(loss) == pytest.approx(float(expected), abs=1e-12)
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_equal_distributions_have_none_and_half_precision_is_computed_in_float32() -> None:
    for beta in (0.0, 0.5, 1.0):
        assert float(generalized_jsd(STUDENT, STUDENT + 3, MASK, beta)) == pytest.approx(0.0, abs=1e-12)
    assert generalized_jsd(STUDENT.bfloat16(), TEACHER.bfloat16(), MASK).dtype == torch.float32
    assert float(generalized_jsd(STUDENT, TEACHER, 0 * MASK)) == 0.0


def test_from_hidden_states_it_is_the_same() -> None:
    heads = [torch.nn.Linear(width, 5, dtype=torch.float64) for width in (3, 4)]
    states = [drawn(2, 6, 3).requires_grad_(), drawn(3, 6, 4).requires_grad_()]
    found = chunked_divergences(states[0], heads[0], states[1], heads[1], 0.4, 0.8, chunk_size=4)
    logits = [head(state).unsqueeze(0) for head, state in zip(heads, states, strict=True)]
    expected = generalized_jsd(*logits, torch.ones(1, 6), 0.4, 0.8)
    assert float(found.mean()) == pytest.approx(float(expected), abs=1e-12)
    found.sum().backward()
    assert states[0].grad is not None
    assert states[1].grad is None
    assert heads[1].weight.grad is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teacher_logits": TEACHER[..., :4]}, "`teacher_logits` has shape"),
        ({"mask": MASK[:, :2]}, "`student_logits` has shape"),
        ({"beta": 1.2}, "`beta` is 1.2"),
        ({"temperature": 0.0}, "`temperature` is 0.0"),
    ],
)
def test_what_cannot_be_compared_is_refused(change: dict[str, object], message: str) -> None:
    given = {"student_logits": STUDENT, "teacher_logits": TEACHER, "mask": MASK, **change}
    with pytest.raises(ValueError, match=message):
        generalized_jsd(**given)  # type: ignore[arg-type]
