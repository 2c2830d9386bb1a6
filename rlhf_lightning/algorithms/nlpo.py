"""PPO on the policy renormalised over the top-p tokens of a lagging copy of itself.

Deviations from Ramamurthy et al. 2022: all log-probabilities, the KL's and the reference's too, are of distributions
under the mask; the refreshed copy reaches sampling in the next iteration; masks are kept as they were sampled with.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from rlhf_lightning.algorithms.ppo import PPOModule
from rlhf_lightning.data import PromptRow
from rlhf_lightning.errors import UserError
from rlhf_lightning.functional import count_allowed
from rlhf_lightning.models import end_of_sequence_ids
from rlhf_lightning.models.forward import bare_model
from rlhf_lightning.models.lagging import LaggingPolicy
from rlhf_lightning.rollout import Generation, Rollout, TopPMask, as_engine
from rlhf_lightning.value_checks import checked
from rlhf_lightning.value_types import Between, Count


class NLPOModule(PPOModule):
    """PPO with action elimination by a lagging policy (NLPO, Ramamurthy et al. 2022, section 4 and algorithm 1).

        pi~(a | s) = pi(a | s) 1[a in M(s)] / sum over M(s) of pi;    M(s) = top-p of pi_lag(. | s), and special tokens

    Responses are sampled from pi~. Ratios, entropy and KL are of pi~ too, and the reference is renormalised over the
    same sets: every log-probability in the losses is under the mask that was sampled with, which the rollout keeps. The
    policy that is exported is pi itself.

    Args:
        mask_top_p: mass of the lagging copy's nucleus, below 1: with 1 it is PPO.
        mask_refresh: iterations after which the copy takes over the policy's weights.
    """

    title: ClassVar[str] = "natural language policy optimisation"
    roles: ClassVar[tuple[str, ...]] = ("policy", "lagging", "reference", "critic", "reward")
    engines: ClassVar[tuple[str, ...]] = ("native",)
    logs: ClassVar[tuple[str, ...]] = ("rollout/allowed_tokens",)
    resumes: ClassVar[tuple[str, ...]] = ("lagging",)

    @checked("algorithm")
    def __init__(self, *args: Any, mask_top_p: Between = 0.9, mask_refresh: Count = 20, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.mask_top_p, self.mask_refresh = mask_top_p, mask_refresh
        self.lagging: LaggingPolicy | None = None

    def configure_model(self) -> None:
        """Copy the policy, and let the engine sample under the copy's mask.

        Raises:
            UserError: an engine that cannot, or weights that are in parts on several devices.
        """
        if self.actor_critic is not None:
            return
        if self.device_mesh is not None:
            raise UserError(
                "trainer.strategy: NLPO samples with a whole copy of the trained weights, and this strategy splits "
                "them; choose trainer=ddp"
            )
        super().configure_model()
        assert self.engine is not None
        self.lagging = LaggingPolicy(self.policy)
        always = [*self.tokenizer.all_special_ids, *end_of_sequence_ids(bare_model(self.policy), self.tokenizer)]
        if not as_engine(self.engine).restrict(TopPMask(self.lagging, self.mask_top_p, always)):
            raise UserError(
                f"rollout.engine: {type(self.engine).__name__} cannot sample under NLPO's masks; choose rollout=native"
            )

    def evaluate(self, prompts: list[PromptRow], generation: Generation) -> Rollout:
        """Return the rollout with the masks that its responses were sampled under."""
        rollout = super().evaluate(prompts, generation)
        assert rollout.allowed is not None
        return rollout

    def collect(self) -> Rollout:
        """Collect as PPO does, and log how many tokens were allowed."""
        rollout = super().collect()
        assert rollout.allowed is not None
        tokens = rollout.mask.sum()
        self.record("rollout/allowed_tokens", (count_allowed(rollout.allowed) * rollout.mask).sum() / tokens, tokens)
        return rollout

    def end_iteration(self, metrics: dict[str, Tensor]) -> None:
        """Refresh the copy when it is time: the next iteration samples under its new masks."""
        super().end_iteration(metrics)
        assert self.lagging is not None
        if (self.current_epoch + 1) % self.mask_refresh == 0:
            self.lagging.refresh()
