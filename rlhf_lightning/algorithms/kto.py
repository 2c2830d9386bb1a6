"""Kahneman-Tversky optimisation, for answers that are labelled one by one."""

from __future__ import annotations

import logging
from typing import Any, ClassVar

from torch import Tensor

from rlhf_lightning.algorithms.offline import Answers
from rlhf_lightning.algorithms.unpaired import UnpairedModule
from rlhf_lightning.functional import implicit_rewards, kto_loss
from rlhf_lightning.value_checks import checked
from rlhf_lightning.value_types import Positive

log = logging.getLogger(__name__)

BALANCE = (1.0, 4 / 3)  # Ethayarajh et al. 2024


class KTOModule(UnpairedModule):
    """KTO (Ethayarajh et al. 2024, equation 8), r = log pi(y|x) - log pi_ref(y|x).

        loss = desirable_weight   (1 - sigmoid(beta (r - z)))   of a desirable answer
               undesirable_weight (1 - sigmoid(beta (z - r)))   of an undesirable one

    Args:
        beta: how quickly the loss of an answer saturates, per nat, > 0.
        desirable_weight: lambda_D, > 0.
        undesirable_weight: lambda_U, > 0.
    """

    title: ClassVar[str] = "Kahneman-Tversky optimisation"

    @checked("algorithm")
    def __init__(
        self,
        *args: Any,
        beta: Positive = 0.1,
        desirable_weight: Positive = 1.0,
        undesirable_weight: Positive = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.beta, self.desirable_weight, self.undesirable_weight = beta, desirable_weight, undesirable_weight

    def reward(self, answers: Answers) -> Tensor:
        """Return beta r."""
        return implicit_rewards(answers.logps, answers.reference, self.beta)

    def answer_loss(self, answers: Answers, desirable: Tensor, kl: Tensor) -> Tensor:
        """Return equation 8, with the constant lambda_y added so that no loss is below 0."""
        weights = self.desirable_weight, self.undesirable_weight
        return kto_loss(answers.log_ratios, desirable, kl, self.beta, *weights)

    def on_fit_start(self) -> None:
        """Warn if desirable and undesirable answers are out of balance, which the weights can correct."""
        super().on_fit_start()
        labels = [row.desirable for row in self.trainer.datamodule.train_rows]  # type: ignore[attr-defined]
        wanted, unwanted = labels.count(True), labels.count(False)
        if not wanted or not unwanted:
            log.warning(f"data.train: all {len(labels)} answers are {'desirable' if wanted else 'undesirable'}")
            return
        ratio = self.desirable_weight * wanted / (self.undesirable_weight * unwanted)
        if not BALANCE[0] - 1e-9 <= ratio <= BALANCE[1] + 1e-9:
            key, value = (
                ("undesirable_weight", self.desirable_weight * wanted / unwanted)
                if ratio > 1
                else ("desirable_weight", self.undesirable_weight * unwanted / wanted)
            )
            log.warning(
                f"algorithm.{key}: the weights of {wanted} desirable and {unwanted} undesirable answers add up to "
                f"{ratio:.2f} to 1, which Ethayarajh et al. (2024) keep between 1 and 4/3; {value:.4g} makes it 1"
            )
