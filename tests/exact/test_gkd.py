"""GKD on every answer of the student: the gradient by enumeration, and (slow) a student that reaches its teacher."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf_lightning.algorithms import GKDModule
from rlhf_lightning.data import SFTDataModule
from rlhf_lightning.models.forward import output_head, states_before
from rlhf_lightning.models.teacher import Teacher
from tests.exact.enumerable import World
from tests.exact.gradients import assert_opposite, move
from tests.exact.runs import fit, linear_to_zero

STEPS, ROWS, LEARNING_RATE = 400, 256, 3e-3
BOUND = 1e-3  # nats per response: as DPO's, which sees all answers, where the student samples its own


def taught(world: World, **settings: Any) -> GKDModule:
    """Return a student, and a teacher with the weights of another world."""
    optimizer = partial(torch.optim.Adam, lr=LEARNING_RATE)
    given = {"teacher": "in memory", "lmbda": 1.0, "max_new_tokens": world.length, **settings}
    module = GKDModule(world.load_model, world.tokenizer, optimizer, linear_to_zero, **given)
    module.teacher = Teacher(World(world.vocabulary, world.length, len(world.prompts), seed=7).load_model())
    module.configure_model()
    return module


def distributions(world: World, model: Any, temperature: float) -> Tensor:
    """Return log-probabilities [P, N, T, V] of the next token before every token of every response."""
    ids, flags = world.rows()
    logits = output_head(model)(states_before(model, ids, flags)).double() / temperature
    return logits.log_softmax(-1).view(len(world.prompts), len(world.responses), world.length, -1)


def by_definition(teacher: Tensor, student: Tensor, beta: float) -> Tensor:
    """Return the divergences [P, N, T] of log-probabilities."""
    p, q = teacher.exp(), student.exp()
    if beta in (0.0, 1.0):
        return (p * (teacher - student)).sum(-1) if beta == 0 else (q * (student - teacher)).sum(-1)
    mixture = (beta * p + (1 - beta) * q).log()
    return (beta * p * (teacher - mixture) + (1 - beta) * q * (student - mixture)).sum(-1)


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_the_gradient_on_its_own_answers_is_that_of_the_objective_at_fixed_answers(beta: float) -> None:
    world = World(vocabulary=3, length=2, n_prompts=4)
    module = taught(world, beta=beta, temperature=0.9)
    move(module.model)
    often = world.logprobs(module.model, 0.9).exp()
    names, parameters = zip(*module.model.named_parameters(), strict=True)
    ids, flags = world.rows()
    loss = (module.row_divergences(ids, flags) * often.flatten().float()).sum() / len(world.prompts)
    found = torch.autograd.grad(loss, parameters)
    with torch.no_grad():
        wanted = distributions(world, module.teacher.model, 0.9)
    divergences = by_definition(wanted, distributions(world, module.model, 0.9), beta)
    value = (divergences.mean(dim=2) * often).sum() / len(world.prompts)
    assert float(loss) == pytest.approx(float(value), abs=1e-6)
    expected = torch.autograd.grad(-value, parameters)
    assert_opposite(dict(zip(names, found, strict=True)), dict(zip(names, expected, strict=True)))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_a_student_that_answers_itself_reaches_its_teacher(beta: float, seed: int) -> None:
    world = World(seed=seed)
    assert train_gkd(world, beta, seed) < BOUND


def train_gkd(world: World, beta: float, seed: int) -> float:
    """Train a student on its own answers alone; return KL(student || teacher) in nats per response."""
    torch.manual_seed(seed)
    module = taught(world, beta=beta)
    rows = [{"prompt": world.text(prompt), "completion": world.words[0]} for prompt in world.prompts]
    data = SFTDataModule(world.tokenizer, rows * (ROWS // len(rows)), batch_size=ROWS, seed=seed)
    before = world.kl(world.logprobs(module.model), world.logprobs(module.teacher.model))
    assert before > 20 * BOUND
    fit(module, data, max_epochs=STEPS)
    return world.kl(world.logprobs(module.model), world.logprobs(module.teacher.model))
