"""Algorithms on given answers, without training: a step over every answer has the gradient of their own objective.

The objective is written out from the papers, on all pairs of answers to each prompt, weighted by how often the
reference gives them and by Bradley-Terry on the gold reward, and differentiated in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlhf_lightning import algorithms
from rlhf_lightning.algorithms import KTOModule
from rlhf_lightning.data import MismatchedBatch, PreferenceBatch, UnpairedBatch
from tests.exact.enumerable import World
from tests.exact.runs import quiet_trainer

TOLERANCE = 1e-5
BETA = 0.4
EPSILON = 0.1
SEED = 1


def log_odds(mean: Tensor) -> Tensor:
    return mean - torch.log(1 - mean.exp())


def rewarded(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """Return a loss of the two log-ratios."""
    return lambda w, o, rw, rl: loss(w - rw, o - rl)


def margined(loss: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """Return a loss of beta times the difference of the log-ratios."""
    return lambda w, o, rw, rl: loss(BETA * (w - rw - o + rl))


LENGTH = 2  # tokens of every answer
# Name and settings -> the loss of log pi of the winner and of the other answer, and of both under the reference.
OBJECTIVES: list[tuple[str, dict[str, Any], Callable[..., Tensor]]] = [
    ("DPOModule", {}, margined(lambda x: torch.log(1 + torch.exp(-x)))),
    (
        "DPOModule",
        {"label_smoothing": EPSILON},
        margined(lambda x: (1 - EPSILON) * torch.log(1 + torch.exp(-x)) + EPSILON * torch.log(1 + torch.exp(x))),
    ),
    ("DPOModule", {"loss_type": "ipo"}, lambda w, o, rw, rl: ((w - rw - o + rl) / LENGTH - 1 / (2 * BETA)) ** 2),
    (
        "DPOModule",
        {"loss_type": "ipo", "per_token": False},
        lambda w, o, rw, rl: (w - rw - o + rl - 1 / (2 * BETA)) ** 2,
    ),
    ("DPOModule", {"loss_type": "hinge"}, margined(lambda x: torch.maximum(1 - x, 0 * x))),
    (
        "DPOModule",
        {"loss_type": "robust", "label_smoothing": EPSILON},
        margined(lambda x: ((EPSILON - 1) * logsigmoid(x) + EPSILON * logsigmoid(-x)) / (1 - 2 * EPSILON)),
    ),
    (
        "DPOModule",
        {"loss_type": "exo_pair", "label_smoothing": EPSILON},
        margined(
            lambda x: (
                torch.sigmoid(x) * torch.log(torch.sigmoid(x) / (1 - EPSILON))
                + torch.sigmoid(-x) * torch.log(torch.sigmoid(-x) / EPSILON)
            )
        ),
    ),
    (
        "DPOModule",
        {"loss_type": "nca_pair"},
        rewarded(lambda w, o: -logsigmoid(BETA * w) - 0.5 * logsigmoid(-BETA * w) - 0.5 * logsigmoid(-BETA * o)),
    ),
    (
        "DPOModule",
        {"loss_type": "sppo_hard"},
        rewarded(lambda w, o: (w - 0.5 / BETA) ** 2 + (o + 0.5 / BETA) ** 2),
    ),
    (
        "DPOModule",
        {"loss_type": "apo_zero"},
        rewarded(lambda w, o: 1 - torch.sigmoid(BETA * w) + torch.sigmoid(BETA * o)),
    ),
    (
        "DPOModule",
        {"loss_type": "apo_down"},
        rewarded(lambda w, o: torch.sigmoid(BETA * w) + 1 - torch.sigmoid(BETA * (w - o))),
    ),
    (
        "DPOModule",
        {"nll_coef": 0.7},
        lambda w, o, rw, rl: -logsigmoid(BETA * (w - rw - o + rl)) - 0.7 * w / LENGTH,
    ),
    (
        "DPOModule",
        {"per_token": True},
        lambda w, o, rw, rl: -logsigmoid(BETA * (w - rw - o + rl) / LENGTH),
    ),
    (
        "ORPOModule",
        {},
        lambda w, o, rw, rl: -w / LENGTH - BETA * logsigmoid(log_odds(w / LENGTH) - log_odds(o / LENGTH)),
    ),
    (
        "SimPOModule",
        {"gamma_beta_ratio": 0.3},
        lambda w, o, rw, rl: -logsigmoid(BETA / LENGTH * w - BETA / LENGTH * o - 0.3 * BETA),
    ),
    ("CPOModule", {"nll_coef": 0.6}, lambda w, o, rw, rl: -logsigmoid(BETA * w - BETA * o) - 0.6 * w / LENGTH),
]


@pytest.fixture(scope="module")
def world() -> World:
    return World(vocabulary=3, length=LENGTH, n_prompts=4)


def moved(world: World, name: str, **settings: Any) -> Any:
    """Return the module with a policy that differs from its reference."""
    make = getattr(algorithms, name)
    module = make(world.load_model, world.tokenizer, partial(torch.optim.SGD, lr=0.0), beta=BETA, **settings)
    module.configure_model()
    module.trainer = quiet_trainer()
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for parameter in module.model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return module


def all_pairs(world: World) -> tuple[PreferenceBatch, Tensor]:
    """Return every pair of different answers to each prompt, [P * N * N] of them, and their weights."""
    n_prompts, n = world.ref.shape
    ids, flags = world.rows()
    rows = torch.arange(len(ids)).view(n_prompts, n)
    pairs = torch.stack([rows[:, :, None].expand(-1, -1, n), rows[:, None, :].expand(-1, n, -1)], dim=-1).view(-1, 2)
    preferred = torch.sigmoid(world.rewards[:, :, None] - world.rewards[:, None, :])
    weights = world.ref.exp()[:, :, None] * world.ref.exp()[:, None, :] * preferred * (1 - torch.eye(n))
    batch = PreferenceBatch(
        ids,
        attention_mask=(ids != world.vocabulary).long(),
        completion_mask=flags,
        pairs=pairs,
        margin=None,
        pair_weights=weights.flatten().float(),
        row_ids=torch.arange(len(ids)),
        denominator=float(n_prompts),
    )
    return batch, weights


def assert_same_gradient(module: Any, loss: Tensor, value: Tensor) -> None:
    names, parameters = zip(*module.model.named_parameters(), strict=True)
    expected = torch.autograd.grad(value, parameters)
    found = torch.autograd.grad(loss, parameters)
    assert float(loss) == pytest.approx(float(value), abs=TOLERANCE)
    assert max(float(gradient.abs().max()) for gradient in expected) > 0.005
    for name, one, other in zip(names, found, expected, strict=True):
        assert float((one - other).abs().max()) <= TOLERANCE, name


@pytest.mark.parametrize(
    ("name", "settings", "objective"),
    OBJECTIVES,
    ids=[f"{name}-{'-'.join(map(str, settings.values()))}" for name, settings, _ in OBJECTIVES],
)
def test_a_step_over_all_pairs_has_the_gradient_of_the_objective(
    name: str, settings: dict[str, Any], objective: Callable[..., Tensor], world: World
) -> None:
    module = moved(world, name, **settings)
    batch, weights = all_pairs(world)
    logps, ref = world.token_logprobs(module.model).double().sum(dim=2), world.ref
    losses = objective(logps[:, :, None], logps[:, None, :], ref[:, :, None], ref[:, None, :])
    value = (losses * weights).sum() / len(world.prompts)
    assert_same_gradient(module, module.training_step(batch, 0), value)


def test_a_step_of_kto_over_all_answers_has_the_gradient_of_the_objective(world: World) -> None:
    module = moved(world, "KTOModule", desirable_weight=1.3, undesirable_weight=0.8)
    assert isinstance(module, KTOModule)
    n_prompts = len(world.prompts)
    ids, flags = world.rows()
    often, wanted = world.ref.exp(), torch.sigmoid(world.rewards)
    weights = torch.cat([(often * wanted).flatten(), (often * (1 - wanted)).flatten()]).float()
    elsewhere = world.logprobs(module.model).exp()  # so that z is KL(pi || pi_ref), above 0
    batch = UnpairedBatch(
        ids.repeat(2, 1),
        attention_mask=(ids != world.vocabulary).long().repeat(2, 1),
        completion_mask=flags.repeat(2, 1),
        desirable=torch.arange(2 * len(ids)) < len(ids),
        weights=weights,
        denominator=float(n_prompts),
    )
    batch.mismatched = (MismatchedBatch(ids, flags, elsewhere.flatten().float()),)
    ratios = world.token_logprobs(module.model).double().sum(dim=2) - world.ref
    z = (ratios * elsewhere).sum().detach() / n_prompts
    assert z > 0.01
    losses = 1.3 * wanted * (1 - torch.sigmoid(BETA * (ratios - z)))
    losses = losses + 0.8 * (1 - wanted) * (1 - torch.sigmoid(BETA * (z - ratios)))
    assert_same_gradient(module, module.training_step(batch, 0), (losses * often).sum() / n_prompts)
