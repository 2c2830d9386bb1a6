"""Direct preference optimisation and its relatives."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from torch import Tensor

from rlhf_lightning.algorithms.offline import Answers
from rlhf_lightning.algorithms.preference import PreferenceModule
from rlhf_lightning.functional import dpo_loss, implicit_rewards
from rlhf_lightning.functional.preference import PER_TOKEN
from rlhf_lightning.setting_rules import check_smoothing
from rlhf_lightning.value_checks import checked
from rlhf_lightning.value_types import BelowHalf, NonNegative, Positive

LossType = Literal["sigmoid", "ipo", "hinge", "robust", "exo_pair", "nca_pair", "sppo_hard", "apo_zero", "apo_down"]


class DPOModule(PreferenceModule):
    """DPO and its relatives on chosen and rejected answers (Rafailov et al. 2023, equation 7).

        loss = - log sigmoid(beta (log pi(y_w)/pi_ref(y_w) - log pi(y_l)/pi_ref(y_l)))        for `sigmoid`
               - nll_coef / |y_w| log pi(y_w)

    The reference is the policy before training: the model with its adapters switched off, or a frozen copy.

    Args:
        beta: strength of the pull towards the reference, > 0.
        loss_type: one of the types that `functional.dpo_loss` lists.
        label_smoothing: probability that a label is wrong, in [0, 0.5). Only for sigmoid (conservative DPO), robust and
            exo_pair; the other loss types refuse it.
        nll_coef: weight of the chosen answer's negative log-likelihood per token (Pang et al. 2024, equation 1); 0
            for none.
        per_token: compare means over an answer's tokens instead of sums; None: as the loss is defined, on means for ipo
            (see `functional.answer_logps`) and on sums for the others.
        precompute_reference: compute the reference's log-probabilities once before training, keep them in
            `<default_root_dir>/reference_logprobs.pt`, and release the frozen copy.
    """

    title: ClassVar[str] = "direct preference optimisation"
    roles: ClassVar[tuple[str, ...]] = ("policy", "reference")
    logs: ClassVar[tuple[str, ...]] = ("nll/chosen", "val/nll/chosen")

    @checked("algorithm")
    def __init__(
        self,
        *args: Any,
        beta: Positive = 0.1,
        loss_type: LossType = "sigmoid",
        label_smoothing: BelowHalf = 0.0,
        nll_coef: NonNegative = 0.0,
        per_token: bool | None = None,
        precompute_reference: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        check_smoothing(loss_type, label_smoothing)
        self.beta, self.loss_type, self.label_smoothing, self.nll_coef = beta, loss_type, label_smoothing, nll_coef
        self.per_token = loss_type in PER_TOKEN if per_token is None else per_token
        self.precompute_reference = precompute_reference

    def reward(self, answers: Answers) -> Tensor:
        """Return the implicit reward, equation 5 without its constant."""
        answers = self.in_unit(answers)
        return implicit_rewards(answers.logps, answers.reference, self.beta)

    def pair_loss(self, chosen: Answers, rejected: Answers) -> Tensor:
        """Return the loss of each pair: equation 7 or that of another loss type, plus the chosen answer's NLL term."""
        better, worse = self.in_unit(chosen), self.in_unit(rejected)  # a step's are in it already
        losses = dpo_loss(
            better.logps,
            worse.logps,
            better.reference,
            worse.reference,
            beta=self.beta,
            label_smoothing=self.label_smoothing,
            loss_type=self.loss_type,
        )
        return losses - self.nll_coef * chosen.mean_logps if self.nll_coef else losses
