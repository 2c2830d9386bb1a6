"""The real modules, trained in the enumerable world by a real Trainer, and their distance from the optimum."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from transformers import LlamaForSequenceClassification

from rlhf_lightning.algorithms import (
    CostMultiplier,
    DPOModule,
    KLPenalty,
    NLPOModule,
    OnlineDPOModule,
    PolicyGradientModule,
    PPOLagrangianModule,
    PPOModule,
    RewardModule,
)
from rlhf_lightning.data import PreferenceBatch
from rlhf_lightning.experience.statistics import response_kl
from rlhf_lightning.models import RewardModel
from rlhf_lightning.rollout import RolloutSettings
from tests.exact.costs import CostWorld
from tests.exact.enumerable import World, tiny_llama
from tests.exact.masks import masked_regret, nuclei, possible


@dataclass(frozen=True)
class OnPolicy:
    """How an algorithm is trained: its settings, responses per iteration, iterations, and the learning rate."""

    module: Any
    settings: dict[str, Any]
    responses: int
    iterations: int
    learning_rate: float
    samples: int = 1  # of a prompt
    bounds: tuple[float, float] = (0.01, 0.05)  # of the regret at beta 1 and 0.3; docs/exact.md says why


# One set of hyper-parameters per algorithm for every beta and seed; docs/exact.md says why these.
PPO_ITERATIONS = 80
PPO_RESPONSES = 4096
PPO_LEARNING_RATE = 5e-4
CONTROLLED_ITERATIONS = 200  # the controller needs many small steps, and a mean over its last ones
CONTROLLED_RESPONSES = 1024
PPO_SETTINGS: dict[str, Any] = {
    "clip_range": 0.02,
    "ppo_epochs": 4,
    "num_minibatches": 4,
    "whiten_advantages": False,
    "value_clip_range": None,
    "value_coef": 1.0,
    "lam": 0.95,
}
CLIPPED = {"clip_range": 0.02, "ppo_epochs": 4, "num_minibatches": 4}
ONE_STEP = {"ppo_epochs": 1, "num_minibatches": 1, "whiten_advantages": False}
ONE_STEP_BACK = {"lam": 0.0, "value_clip_range": None, "value_coef": 1.0}  # later tokens are learned first
ON_POLICY: dict[str, OnPolicy] = {
    "rloo": OnPolicy(PolicyGradientModule, {"estimator": "leave_one_out", **CLIPPED}, 4096, 80, 5e-4, samples=8),
    "grpo without std": OnPolicy(
        PolicyGradientModule, {"estimator": "group_mean", **CLIPPED}, 4096, 80, 5e-4, samples=8
    ),
    "reinforce_pp": OnPolicy(
        PolicyGradientModule, {"estimator": "returns", "whiten_advantages": True, **CLIPPED}, 4096, 110, 5e-4
    ),
    "a2c": OnPolicy(PPOModule, {**ONE_STEP, **ONE_STEP_BACK}, 512, 1200, 1e-3),
}
ON_POLICY |= {
    "gspo": OnPolicy(
        PolicyGradientModule, {"ratio": "sequence", "aggregation": "sequence", **CLIPPED}, 4096, 80, 5e-4, samples=8
    ),
    "dapo": OnPolicy(
        PolicyGradientModule,
        {"accuracy": "score", "accuracy_threshold": 0.0, **CLIPPED, "clip_range_high": 0.028},
        *(4096, 80, 5e-4),
        samples=8,
    ),
    "cispo": OnPolicy(
        PolicyGradientModule,
        {"loss_type": "cispo", "clip_range": None, "clip_range_high": 4.0, "ppo_epochs": 1, "num_minibatches": 2},
        *(1024, 4000, 2e-4),
        samples=8,
        bounds=(0.01, 0.1),
    ),
}
ONLINE_DPO = OnPolicy(
    OnlineDPOModule, {"ppo_epochs": 1, "num_minibatches": 4}, 4096, 600, 1e-3, samples=2, bounds=(0.05, 0.15)
)
# 8,192 answers instead of 512 need more of them per iteration: two of each, on average. At beta 1 all of them keep a
# share of the probability, and those that are rarely sampled need larger steps.
_RARE = replace(ON_POLICY["grpo without std"], responses=16_384, iterations=100)
LARGE = {1.0: replace(_RARE, settings={**_RARE.settings, "clip_range": 0.05}, learning_rate=1e-3), 0.3: _RARE}
PAIR_STEPS = 1000
PAIRS_PER_STEP = 2048
DPO_LEARNING_RATE = 3e-3
REWARD_LEARNING_RATE = 1e-3


def linear_to_zero(optimizer: torch.optim.Optimizer, num_training_steps: int) -> LambdaLR:
    """Return a learning rate that falls linearly and reaches 0 with the last step."""
    return LambdaLR(optimizer, lambda step: max(0.0, 1 - step / num_training_steps))


def quiet_trainer(**kwargs: Any) -> L.Trainer:
    """Return a Trainer on the CPU that writes nothing."""
    return L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **kwargs,
    )


def fit(module: L.LightningModule, data: L.LightningDataModule, **kwargs: Any) -> float:
    """Train, and return the seconds it took."""
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")  # advice on workers and intervals
        quiet_trainer(**kwargs).fit(module, datamodule=data)
    return time.perf_counter() - started


# ---- PPO


@dataclass(frozen=True)
class PPOResult:
    """Regret and KL (nats per response) of the trained policy, compared with the optimum's."""

    regret: float
    kl: float
    best_kl: float
    seconds: float


def ppo_module(world: World, kl: KLPenalty, seed: int, **kwargs: Any) -> PPOModule:
    """Return a PPOModule on the world's reward table."""
    settings = {
        "rollout": RolloutSettings(max_new_tokens=world.length, batch_size=PPO_RESPONSES),
        **PPO_SETTINGS,
        **kwargs,
    }
    optimizer = partial(torch.optim.Adam, lr=PPO_LEARNING_RATE)
    return PPOModule(
        world.load_model,
        world.tokenizer,
        optimizer,
        linear_to_zero,
        reward=world.reward,
        kl=kl,
        seed=seed,
        **settings,
    )


def train_ppo(world: World, beta: float, seed: int) -> PPOResult:
    """Train PPO with a fixed coefficient."""
    module = ppo_module(world, KLPenalty(kind="fixed", coef=beta), seed)
    seconds = fit(module, world.prompt_data(), max_epochs=PPO_ITERATIONS)
    logprobs = world.logprobs(module.policy)
    return PPOResult(world.regret(logprobs, beta), world.kl(logprobs), world.kl(world.optimum(beta)), seconds)


def train_on_policy(plan: OnPolicy, world: World, beta: float, seed: int) -> PPOResult:
    """Train an algorithm of ON_POLICY, with the KL in the reward."""
    module = plan.module(
        world.load_model,
        world.tokenizer,
        partial(torch.optim.Adam, lr=plan.learning_rate),
        linear_to_zero,
        reward=world.reward,
        rollout=RolloutSettings(
            max_new_tokens=world.length, batch_size=plan.responses // plan.samples, samples_per_prompt=plan.samples
        ),
        kl=KLPenalty(kind="fixed", coef=beta),
        seed=seed,
        **plan.settings,
    )
    seconds = fit(module, world.prompt_data(), max_epochs=plan.iterations)
    logprobs = world.logprobs(module.policy)
    return PPOResult(world.regret(logprobs, beta), world.kl(logprobs), world.kl(world.optimum(beta)), seconds)


# ---- under masks

NLPO = OnPolicy(NLPOModule, {**PPO_SETTINGS, "mask_top_p": 0.8, "mask_refresh": 40}, 1024, 80, 1e-3)


@dataclass(frozen=True)
class NLPOResult:
    """Regret among the policies under the last masks, and the share of responses that these allow."""

    regret: float
    possible: float
    seconds: float


def train_nlpo(world: World, beta: float, seed: int, plan: OnPolicy = NLPO) -> NLPOResult:
    """Train NLPO, whose copy is refreshed halfway, and compare it with the optimum under the masks of that copy."""
    copies: list[Any] = []

    class Watch(L.Callback):
        def on_train_epoch_start(self, trainer: L.Trainer, module: Any) -> None:
            copies[:] = [{name: weight.clone() for name, weight in module.lagging.weights.items()}]

    module = plan.module(
        world.load_model,
        world.tokenizer,
        partial(torch.optim.Adam, lr=plan.learning_rate),
        linear_to_zero,
        reward=world.reward,
        rollout=RolloutSettings(max_new_tokens=world.length, batch_size=plan.responses),
        kl=KLPenalty(kind="fixed", coef=beta),
        seed=seed,
        **plan.settings,
    )
    seconds = fit(module, world.prompt_data(), max_epochs=plan.iterations, callbacks=[Watch()])
    copy = world.load_model()
    copy.load_state_dict(copies[0], strict=False)  # the masks that the last iteration sampled under
    masks = nuclei(world, copy, plan.settings["mask_top_p"])
    share = float(possible(world, masks).float().mean())
    return NLPOResult(masked_regret(world, module.policy, masks, beta), share, seconds)


# ---- under a limit on costs

COST_BETA = 0.5
COST_LIMIT = -0.5  # half a standard deviation below the reference's mean, where rewards alone raise costs
LAGRANGIAN = OnPolicy(
    PPOLagrangianModule, {**PPO_SETTINGS, "multiplier": CostMultiplier(init=0.0, kp=2.0, ki=0.1)}, 1024, 100, 1e-3
)


@dataclass(frozen=True)
class LagrangianResult:
    """The trained policy's exact mean cost and reward, and those of the constrained optimum.

    `regret` is that of the Lagrangian at the exact multiplier; `multiplier` is the mean of the last quarter.
    """

    cost: float
    reward: float
    best_reward: float
    regret: float
    multiplier: float
    exact_multiplier: float
    seconds: float


class MultiplierTrace(L.Callback):
    """Records the multiplier of every iteration."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_epoch_end(self, trainer: L.Trainer, module: Any) -> None:
        self.values.append(module.multiplier.value)


def train_lagrangian(world: CostWorld, seed: int, plan: OnPolicy = LAGRANGIAN) -> LagrangianResult:
    """Train PPO-Lagrangian with a fixed KL coefficient, from a multiplier far from the right one."""
    module = plan.module(
        world.load_model,
        world.tokenizer,
        partial(torch.optim.Adam, lr=plan.learning_rate),
        linear_to_zero,
        reward=world.reward,
        cost=world.cost,
        cost_limit=COST_LIMIT,
        rollout=RolloutSettings(max_new_tokens=world.length, batch_size=plan.responses),
        kl=KLPenalty(kind="fixed", coef=COST_BETA),
        seed=seed,
        **plan.settings,
    )
    trace = MultiplierTrace()
    seconds = fit(module, world.prompt_data(), max_epochs=plan.iterations, callbacks=[trace])
    last = plan.iterations // 4
    exact = world.multiplier_for(COST_LIMIT, COST_BETA)
    logprobs, best = world.logprobs(module.policy), world.tilted(exact, COST_BETA)
    return LagrangianResult(
        world.mean_cost(logprobs),
        world.mean_reward(logprobs),
        world.mean_reward(best),
        world.lagrangian_regret(logprobs, exact, COST_BETA),
        sum(trace.values[-last:]) / last,
        exact,
        seconds,
    )


class NoisyReward:
    """The world's reward plus Gumbel noise: of two answers, the better one wins with Bradley-Terry's probability."""

    def __init__(self, world: World, seed: int) -> None:
        self.world, self.generator = world, torch.Generator().manual_seed(seed)

    def __call__(self, prompts: list[str], responses: list[str], **columns: Any) -> list[float]:
        uniform = torch.rand(len(responses), generator=self.generator, dtype=torch.float64).clamp(1e-12, 1 - 1e-12)
        scores = torch.tensor(self.world.reward(prompts, responses, **columns), dtype=torch.float64)
        return (scores - (-uniform.log()).log()).tolist()


def train_online_dpo(world: World, beta: float, seed: int) -> PPOResult:
    """Train online DPO on pairs that are labelled by Bradley-Terry on the gold reward, so that its optimum is pi*."""
    plan = ONLINE_DPO
    module = OnlineDPOModule(
        world.load_model,
        world.tokenizer,
        partial(torch.optim.Adam, lr=plan.learning_rate),
        linear_to_zero,
        reward=NoisyReward(world, seed),
        rollout=RolloutSettings(
            max_new_tokens=world.length, batch_size=plan.responses // plan.samples, samples_per_prompt=plan.samples
        ),
        kl=KLPenalty(kind="fixed", coef=0.0, target=None, horizon=None),
        beta=beta,
        seed=seed,
        **plan.settings,
    )
    seconds = fit(module, world.prompt_data(), max_epochs=plan.iterations)
    logprobs = world.logprobs(module.policy)
    return PPOResult(world.regret(logprobs, beta), world.kl(logprobs), world.kl(world.optimum(beta)), seconds)


# ---- closed loop


@dataclass(frozen=True)
class ControllerResult:
    """Means over the last quarter of the iterations, and their targets."""

    kl: float
    target: float
    coef: float
    beta: float
    seconds: float


class ControllerTrace(L.Callback):
    """Records sampled KL and coefficient of every iteration."""

    def __init__(self) -> None:
        self.kl: list[float] = []
        self.coef: list[float] = []

    def on_train_epoch_end(self, trainer: L.Trainer, module: Any) -> None:
        # A callback's hook runs before the module's own, which logs the iteration and updates the controller.
        self.kl.append(float(response_kl(module.last_rollout).mean()))
        self.coef.append(module.kl_controller.value)


def train_controlled(world: World, target: float, seed: int) -> ControllerResult:
    """Train PPO with the adaptive controller, from a coefficient far from the right one."""
    kl = KLPenalty(kind="adaptive", coef=0.2, target=target, horizon=5_000)
    rollout = RolloutSettings(max_new_tokens=world.length, batch_size=CONTROLLED_RESPONSES)
    module, trace = ppo_module(world, kl, seed, rollout=rollout), ControllerTrace()
    seconds = fit(module, world.prompt_data(), max_epochs=CONTROLLED_ITERATIONS, callbacks=[trace])
    last = CONTROLLED_ITERATIONS // 4
    mean_kl, mean_coef = (sum(values[-last:]) / last for values in (trace.kl, trace.coef))
    return ControllerResult(mean_kl, target, mean_coef, world.beta_for(target), seconds)


# ---- comparisons


class RandomPairs(L.LightningDataModule):
    """New random pairs of answers at every step, labelled by Bradley-Terry on the gold reward.

    A batch holds every answer to every prompt once, and the pairs point into it.

    Args:
        soft: both directions of a pair, weighted by their probabilities (so the labels have no noise); otherwise one
            direction, drawn.
    """

    def __init__(self, world: World, soft: bool, seed: int) -> None:
        super().__init__()
        self.world, self.soft, self.seed = world, soft, seed

    def train_dataloader(self) -> RandomPairs:
        return self

    def __len__(self) -> int:
        return PAIR_STEPS

    def __iter__(self) -> Iterator[PreferenceBatch]:
        generator = torch.Generator().manual_seed(self.seed)
        gold = self.world.rewards
        n_prompts, n = gold.shape
        ids, flags = self.world.rows()
        rows = torch.arange(len(ids))
        for _ in range(PAIR_STEPS):
            prompt = torch.randint(n_prompts, (PAIRS_PER_STEP,), generator=generator)
            first = torch.randint(n, (PAIRS_PER_STEP,), generator=generator)
            second = (first + torch.randint(1, n, (PAIRS_PER_STEP,), generator=generator)) % n
            better = torch.sigmoid(gold[prompt, first] - gold[prompt, second]).float()
            if not self.soft:
                better = torch.bernoulli(better, generator=generator)
            pairs = torch.stack([prompt * n + first, prompt * n + second], dim=1)
            yield PreferenceBatch(
                ids,
                attention_mask=(ids != self.world.vocabulary).long(),
                completion_mask=flags,
                pairs=torch.cat([pairs, pairs.flip(1)]),
                margin=None,
                pair_weights=torch.cat([better, 1 - better]),
                row_ids=rows,
                denominator=float(PAIRS_PER_STEP),
            )


def slope(x: Tensor, y: Tensor, weights: Tensor) -> float:
    """Return the slope of the weighted least-squares line from x to y, with one constant per prompt; all [P, N]."""
    weights = weights / weights.sum(dim=1, keepdim=True)
    x, y = (z - (weights * z).sum(dim=1, keepdim=True) for z in (x, y))
    return float((weights * x * y).sum() / (weights * x * x).sum())


@dataclass(frozen=True)
class DPOResult:
    """KL(pi || pi*) in nats per response, and the slope of the implicit reward on the gold one."""

    kl: float
    slope: float
    gold_std: float
    seconds: float


def train_dpo(world: World, beta: float, seed: int) -> DPOResult:
    """Train DPO on soft labels, whose minimum is exactly pi*."""
    optimizer = partial(torch.optim.Adam, lr=DPO_LEARNING_RATE)
    module = DPOModule(world.load_model, world.tokenizer, optimizer, linear_to_zero, beta=beta)
    seconds = fit(module, RandomPairs(world, soft=True, seed=seed), max_epochs=1)
    logprobs = world.logprobs(module.model)
    gold_std = float((world.rewards.square() * logprobs.exp()).sum(dim=1).mean().sqrt())
    implicit = beta * (logprobs - world.ref)
    return DPOResult(
        world.kl(logprobs, world.optimum(beta)), slope(world.rewards, implicit, logprobs.exp()), gold_std, seconds
    )


@dataclass(frozen=True)
class RewardResult:
    """Accuracy over all pairs, the best that noisy labels allow, and the slope of the score on the gold reward."""

    accuracy: float
    bayes_accuracy: float
    slope: float
    seconds: float


def train_reward_model(world: World, seed: int) -> RewardResult:
    """Train a reward model on drawn labels; its accuracy on noisy labels is computed over all pairs, not sampled."""
    classifier = partial(tiny_llama, world.vocabulary, seed, model_class=LlamaForSequenceClassification, num_labels=1)
    optimizer = partial(torch.optim.Adam, lr=REWARD_LEARNING_RATE)
    module = RewardModule(lambda: RewardModel(classifier()), world.tokenizer, optimizer, linear_to_zero)
    seconds = fit(module, RandomPairs(world, soft=False, seed=seed), max_epochs=1)
    ids, _ = world.rows()
    valid = (ids != world.vocabulary).long()
    with torch.no_grad():
        scores = module.model(ids, valid).double().view_as(world.rewards)
    preferred = torch.sigmoid(world.rewards[:, :, None] - world.rewards[:, None, :])  # P(i beats j)
    agrees = (scores[:, :, None] > scores[:, None, :]).double()
    distinct = 1 - torch.eye(len(world.responses))
    pairs = distinct.sum() * len(world.prompts)
    accuracy = float((distinct * (agrees * preferred + (1 - agrees) * (1 - preferred))).sum() / pairs)
    bayes = float((distinct * torch.maximum(preferred, 1 - preferred)).sum() / pairs)
    return RewardResult(accuracy, bayes, slope(world.rewards, scores, torch.ones_like(scores)), seconds)
