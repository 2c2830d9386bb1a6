"""(c) A new algorithm: a LightningModule of its own with its own config."""

from typing import Any

from torch import Tensor
from torch.nn.functional import logsigmoid

from rlhf_lightning.algorithms import AlignmentModule
from rlhf_lightning.data import PreferenceBatch
from rlhf_lightning.models import sequence_logprobs


class SimPOModule(AlignmentModule):
    """Simple preference optimisation, without a reference (Meng et al. 2024, equation 6).

        loss = - log sigmoid(beta / |y_w| log pi(y_w) - beta / |y_l| log pi(y_l) - gamma)

    Args:
        beta: scale of the length-normalised log-probabilities.
        gamma: the margin asked for.
    """

    def __init__(self, *args: Any, beta: float = 2.0, gamma: float = 0.5, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.beta, self.gamma = beta, gamma

    def training_step(self, batch: PreferenceBatch, batch_idx: int) -> Tensor:
        """The weighted sum of the pair losses over the step's number of prompts."""
        lengths = batch.completion_mask.sum(dim=1)
        means = sequence_logprobs(self.model, batch.input_ids, batch.completion_mask) / lengths
        chosen, rejected = batch.pairs.unbind(dim=1)
        margins = self.beta * (means[chosen] - means[rejected])
        self.record("train/accuracy", (margins > 0).float().mean(), len(margins))
        losses = -logsigmoid(margins - self.gamma) * batch.pair_weights
        self.record("train/loss", losses.sum() / batch.pair_weights.sum(), batch.pair_weights.sum())
        return losses.sum() / batch.denominator
