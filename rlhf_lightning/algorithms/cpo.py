"""Contrastive preference optimisation: DPO under a uniform reference, regularised by imitating the chosen answers."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor
from torch.nn.functional import logsigmoid

from rlhf_lightning.algorithms.offline import Answers
from rlhf_lightning.algorithms.preference import PreferenceModule
from rlhf_lightning.value_checks import checked
from rlhf_lightning.value_types import NonNegative, Positive


class CPOModule(PreferenceModule):
    """CPO (Xu et al. 2024, equations 3 to 5).

        loss = - log sigmoid(beta (log pi(y_w) - log pi(y_l))) - nll_coef / |y_w| log pi(y_w)

    Args:
        beta: scale of the reward beta log pi, > 0.
        nll_coef: weight of the chosen answer's negative log-likelihood per token, >= 0.
    """

    title: ClassVar[str] = "contrastive preference optimisation"
    logs: ClassVar[tuple[str, ...]] = ("nll/chosen", "val/nll/chosen")

    @checked("algorithm")
    def __init__(self, *args: Any, beta: Positive = 0.1, nll_coef: NonNegative = 1.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.beta, self.nll_coef = beta, nll_coef

    def reward(self, answers: Answers) -> Tensor:
        """Return DPO's implicit reward, up to a constant, under a reference to which all answers are equally likely."""
        return self.beta * answers.logps

    def pair_loss(self, chosen: Answers, rejected: Answers) -> Tensor:
        """Return the loss of each pair, equation 5."""
        return -logsigmoid(self.reward(chosen) - self.reward(rejected)) - self.nll_coef * chosen.mean_logps
