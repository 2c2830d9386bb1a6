"""Simple preference optimisation, without a reference."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from rlhf_lightning.algorithms.offline import Answers
from rlhf_lightning.algorithms.preference import PreferenceModule
from rlhf_lightning.functional import simpo_loss
from rlhf_lightning.value_checks import checked
from rlhf_lightning.value_types import NonNegative, Positive


class SimPOModule(PreferenceModule):
    """SimPO (Meng et al. 2024, equation 6).

        loss = - log sigmoid(beta (m_w - m_l - gamma_beta_ratio))

    m is the mean of log pi over an answer's tokens.

    Args:
        beta: scale of the reward beta m, > 0.
        gamma_beta_ratio: target margin between m_w and m_l, the paper's gamma / beta, nats per token, >= 0.
    """

    title: ClassVar[str] = "simple preference optimisation"

    per_token = True

    @checked("algorithm")
    def __init__(self, *args: Any, beta: Positive = 2.0, gamma_beta_ratio: NonNegative = 0.25, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.beta, self.gamma_beta_ratio = beta, gamma_beta_ratio

    def reward(self, answers: Answers) -> Tensor:
        """Return beta m, equation 4."""
        return self.beta * answers.mean_logps

    def pair_loss(self, chosen: Answers, rejected: Answers) -> Tensor:
        """Return the loss of each pair, equation 6."""
        return simpo_loss(chosen.mean_logps, rejected.mean_logps, self.beta, self.gamma_beta_ratio)
