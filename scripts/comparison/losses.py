"""The losses and gradients that both sides compute, with each side's settings: no library is imported."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

EPSILON, BETA = 0.1, 0.3


@dataclass(frozen=True)
class Case:
    """One loss on one batch of all rows.

    Args:
        key: its name in the table.
        module: our class.
        ours: its arguments besides beta.
        trainer: TRL's trainer, without the word.
        peer: arguments of its config besides beta.
        nll: what TRL averages the negative log-likelihood over, if it differs from ours, a mean over pairs of means
            over the chosen answer's tokens: `tokens`, a mean over the batch's chosen tokens; `rows`, the same over
            prompts and chosen answers. "": there is none, or no difference.
        beta: the same for both.
    """

    key: str
    module: str
    ours: dict[str, Any] = field(default_factory=dict)
    trainer: str = "DPO"
    peer: dict[str, Any] = field(default_factory=dict)
    nll: str = ""
    beta: float = BETA


def _dpo(loss_type: str, **both: Any) -> Case:
    return Case(
        f"dpo, {loss_type}", "DPOModule", {"loss_type": loss_type, **both}, peer={"loss_type": [loss_type], **both}
    )


CASES = [
    _dpo("sigmoid"),
    _dpo("ipo"),
    _dpo("hinge"),
    _dpo("robust", label_smoothing=EPSILON),
    _dpo("exo_pair", label_smoothing=EPSILON),
    _dpo("nca_pair"),
    _dpo("sppo_hard"),
    _dpo("apo_zero"),
    _dpo("apo_down"),
    Case("dpo, per_token", "DPOModule", {"per_token": True}, peer={"loss_type": ["sigmoid_norm"]}),
    Case(
        "dpo, nll_coef",
        "DPOModule",
        {"nll_coef": 0.5},
        peer={"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]},
        nll="tokens",
    ),
    Case("orpo", "ORPOModule", trainer="ORPO", nll="rows"),
    Case(
        "simpo",
        "SimPOModule",
        {"gamma_beta_ratio": 0.25},
        "CPO",
        {"loss_type": "simpo", "cpo_alpha": 0.0, "simpo_gamma": 0.5},
        beta=2.0,
    ),
    Case("cpo, without nll", "CPOModule", {"nll_coef": 0.0}, "CPO", {"loss_type": "sigmoid", "cpo_alpha": 0.0}),
    Case("cpo", "CPOModule", {"nll_coef": 1.0}, "CPO", {"loss_type": "sigmoid", "cpo_alpha": 1.0}, "tokens"),
    Case(
        "kto",
        "KTOModule",
        {"desirable_weight": 1.5, "undesirable_weight": 0.5},
        "KTO",
        {"desirable_weight": 1.5, "undesirable_weight": 0.5},
    ),
]
