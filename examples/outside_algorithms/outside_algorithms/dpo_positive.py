"""DPO-Positive (Pal et al. 2024, equation 3): DPO that does not let the chosen answer become less likely.

h_w, h_l = log pi - log pi_ref of the chosen and the rejected answer
loss = - log sigmoid(beta (h_w - h_l - penalty max(0, - h_w)))
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor
from torch.nn.functional import logsigmoid

from rlhf_lightning.algorithms import Answers, PreferenceModule
from rlhf_lightning.value_checks import checked
from rlhf_lightning.value_types import NonNegative, Positive


class DPOPositiveModule(PreferenceModule):
    """Plain DPO's loss with a price on what the chosen answer lost.

    Args:
        beta: scale of the log-ratios, in 1 / nats.
        penalty: nats of margin that each nat costs by which the chosen answer is less likely than under the reference.
    """

    title: ClassVar[str] = "DPO-Positive"
    roles: ClassVar[tuple[str, ...]] = ("policy", "reference")

    @checked("algorithm")
    def __init__(self, *args: Any, beta: Positive = 0.1, penalty: NonNegative = 50.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.beta, self.penalty = beta, penalty

    def pair_loss(self, chosen: Answers, rejected: Answers) -> Tensor:
        """The loss of each pair [M]."""
        lost = (-chosen.log_ratios).clamp(min=0)
        return -logsigmoid(self.beta * (chosen.log_ratios - rejected.log_ratios - self.penalty * lost))

    def reward(self, answers: Answers) -> Tensor:
        """DPO's implicit reward of each answer [M], for margins and accuracies."""
        return self.beta * answers.log_ratios
