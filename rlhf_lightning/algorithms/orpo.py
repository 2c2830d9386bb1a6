"""Odds-ratio preference optimisation: imitation and preference in one stage, without a reference."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from rlhf_lightning.algorithms.offline import Answers
from rlhf_lightning.algorithms.preference import PreferenceModule
from rlhf_lightning.functional import log_odds, odds_ratio_loss
from rlhf_lightning.value_checks import checked
from rlhf_lightning.value_types import Positive


class ORPOModule(PreferenceModule):
    """ORPO (Hong et al. 2024, equations 6 and 7).

        loss = - m_w - beta log sigmoid(o(m_w) - o(m_l)),    o(m) = m - log(1 - exp m)

    m is the mean of log pi over an answer's tokens, so -m_w is the chosen answer's negative log-likelihood per token;
    prompt tokens are not trained on.

    Args:
        beta: weight of the odds ratio, the paper's lambda, > 0.
    """

    title: ClassVar[str] = "odds-ratio preference optimisation"
    logs: ClassVar[tuple[str, ...]] = ("nll/chosen", "val/nll/chosen")

    per_token = True
    nll_coef = 1.0

    @checked("algorithm")
    def __init__(self, *args: Any, beta: Positive = 0.1, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.beta = beta

    def reward(self, answers: Answers) -> Tensor:
        """Return the log-odds of each answer, equation 4."""
        return log_odds(answers.mean_logps)

    def pair_loss(self, chosen: Answers, rejected: Answers) -> Tensor:
        """Return the loss of each pair, equation 6."""
        return -chosen.mean_logps + self.beta * odds_ratio_loss(chosen.mean_logps, rejected.mean_logps)
