"""ILQL's losses compared with loops over tokens, and with what must not be read or followed by a gradient."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rlhf_lightning.functional import guided_logits, ilql_losses, ilql_targets

MASK = torch.tensor([[0.0, 1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0, 0.0]])
GAMMA, TAU, AWAC = 0.9, 0.7, 0.4


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def given() -> dict[str, Tensor]:
    shapes = {"q_values": (2, 2, 5), "target_q_values": (2, 2, 5), "values": (2, 5), "rewards": (2, 5)}
    shapes |= {"q_logprobs": (2, 2, 5), "logprobs": (2, 5)}
    return {name: drawn(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}


def literal(x: dict[str, Tensor], row: int, t: int) -> list[float]:
    """Return the four terms of one token, written out."""
    last = t + 1 == MASK.shape[1] or MASK[row, t + 1] == 0
    target = float(x["rewards"][row, t]) + (0.0 if last else GAMMA * float(x["values"][row, t + 1]))
    error = min(float(x["target_q_values"][k, row, t]) for k in range(2)) - float(x["values"][row, t])
    return [
        sum((float(x["q_values"][k, row, t]) - target) ** 2 for k in range(2)),
        (TAU if error >= 0 else 1 - TAU) * error**2,
        -sum(float(x["q_logprobs"][k, row, t]) for k in range(2)),
        -math.exp(AWAC * error) * float(x["logprobs"][row, t]),
    ]


def test_the_terms_are_the_literal_formulas() -> None:
    x = given()
    terms = ilql_losses(**x, mask=MASK, gamma=GAMMA, expectile=TAU, awac_beta=AWAC)
    for row, t in MASK.nonzero().tolist():
        assert [float(term[row, t]) for term in terms] == pytest.approx(literal(x, row, t), abs=1e-12)
    assert all(not term[MASK == 0].any() for term in terms)


def test_what_lies_outside_the_mask_is_not_read() -> None:
    x = given()
    dirty = {name: value.masked_fill(MASK == 0, float("nan")).requires_grad_() for name, value in x.items()}
    clean = ilql_losses(**x, mask=MASK, gamma=GAMMA)
    terms = ilql_losses(**dirty, mask=MASK, gamma=GAMMA)
    sum(term.sum() for term in terms).backward()
    assert all(torch.equal(one, other) for one, other in zip(terms, clean, strict=True))
    assert all(value.grad is None or value.grad.isfinite().all() for value in dirty.values())


def test_gradients_flow_into_q_v_and_the_policy_and_nowhere_else() -> None:
    x = {name: value.requires_grad_() for name, value in given().items()}
    terms = ilql_losses(**x, mask=MASK, gamma=GAMMA, awac_beta=AWAC)
    names = {"q": "q_values", "value": "values", "conservative": "q_logprobs", "policy": "logprobs"}
    for name, term in terms._asdict().items():
        found = torch.autograd.grad(term.sum(), list(x.values()), allow_unused=True, retain_graph=True)
        moved = {key for key, gradient in zip(x, found, strict=True) if gradient is not None and gradient.any()}
        assert moved == {names[name]} | ({"rewards"} if name == "q" else set())


def test_the_last_token_is_followed_by_nothing() -> None:
    targets = ilql_targets(torch.zeros(2, 5), torch.ones(2, 5), MASK, GAMMA)
    assert torch.equal(targets, GAMMA * torch.tensor([[0.0, 1, 1, 0, 0], [1, 0, 0, 0, 0]]))


def test_guided_logits_are_the_policy_times_the_exponentiated_advantage() -> None:
    logits, q, v = drawn(3, 7, seed=1), drawn(2, 3, 7, seed=2), drawn(3, seed=3)
    found = guided_logits(logits, q, v, 1.7).softmax(-1)
    weights = logits.softmax(-1) * torch.exp(1.7 * (torch.minimum(q[0], q[1]) - v[:, None]))
    assert torch.allclose(found, weights / weights.sum(-1, keepdim=True), atol=1e-12)
    assert torch.allclose(guided_logits(logits, q, v, 0.0).softmax(-1), logits.softmax(-1), atol=1e-12)
    assert guided_logits(logits.bfloat16(), q.bfloat16(), v.bfloat16(), 1.7).dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": torch.zeros(2, 4)}, "`values` has shape"),
        ({"target_q_values": torch.zeros(1, 2, 5)}, "`target_q_values` has shape"),
        ({"gamma": 1.5}, "`gamma` is 1.5"),
        ({"expectile": 1.0}, "`expectile` is 1.0"),
    ],
)
def test_what_cannot_be_read_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ilql_losses(**{**given(), "mask": MASK, **change})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`values` has shape"):
        guided_logits(torch.zeros(3, 7), torch.zeros(2, 3, 7), torch.zeros(2), 1.0)
