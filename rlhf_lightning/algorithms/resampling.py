"""The base of on-policy algorithms that choose which of their responses teach."""

from __future__ import annotations

from typing import Any, ClassVar

from rlhf_lightning.algorithms.on_policy import OnPolicyModule
from rlhf_lightning.errors import UserError
from rlhf_lightning.experience.dynamic_sampling import DynamicSampling, further_rows
from rlhf_lightning.experience.sampled import Sampled, learning_from
from rlhf_lightning.setting_rules import check_accuracy
from rlhf_lightning.value_checks import checked
from rlhf_lightning.value_types import Count, Number, Text


class ResamplingModule(OnPolicyModule):
    """Samples further prompts in the place of those that teach nothing, and leaves truncated responses out if asked to.

    Both are DAPO's (Yu et al. 2025, sections 3.2 and 3.4). Prompts and responses are functions of (seed, epoch, rank)
    and of the weights, so that a resumed run samples what the uninterrupted one does.

    Args:
        accuracy: sample prompts again whose responses are all right or all wrong, as judged by this part of the reward,
            or by `score`; null: every group is trained on. See DynamicSampling.
        accuracy_threshold: a response is right if its accuracy is at least this.
        max_tries: how often prompts are sampled at most, the first time included.
        mask_truncated: leave responses without an EOS out of the loss and its divisors; they stay in the baseline.
    """

    logs: ClassVar[tuple[str, ...]] = (
        *("rollout/accuracy", "rollout/kept", "rollout/resampled", "rollout/unfilled", "rollout/truncated"),
    )

    @checked("algorithm")
    def __init__(
        self,
        *args: Any,
        accuracy: Text | None = None,
        accuracy_threshold: Number = 0.5,
        max_tries: Count = 10,
        mask_truncated: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        size = self.rollout.samples_per_prompt
        self.dynamic_sampling, self.mask_truncated = None, mask_truncated
        if accuracy is not None:
            check_accuracy(accuracy, size, None, bool(getattr(self.scorer.given, "normalize", False)))
            self.dynamic_sampling = DynamicSampling(accuracy, accuracy_threshold, max_tries, size)

    def sample(self) -> Sampled:
        """Return the responses of this iteration: with `accuracy`, to prompts that teach."""
        if self.dynamic_sampling is None:
            sampled = super().sample()
        else:
            sampled, found = self.dynamic_sampling(self.ask, self.max_over_processes, self.rollout.batch_size)
            if self.scorer.per_token:
                raise UserError(
                    f"algorithm.accuracy: found {self.dynamic_sampling.accuracy}, but {self.scorer.key} gives numbers "
                    "per token, which cannot be sampled again; return one number per response, or set it to null"
                )
            self.record_all(found)
        if self.mask_truncated:
            ended = sampled.generation.ended.float()
            self.record("rollout/truncated", 1 - ended.mean(), len(ended))
            return learning_from(sampled, ended)
        return sampled

    def ask(self, attempt: int, start: int, count: int) -> Sampled:
        """Return the responses to the prompts of a try: the iteration's own, then `count` others from `start` on."""
        if not attempt:
            return self.answered(self.prompts())
        self.stopwatch.lap("score", self.device)  # of the try before
        rows, world = self.trainer.datamodule.train_prompts, self.trainer.world_size  # type: ignore[attr-defined]
        key = (self.prompt_order(len(rows)), start * world, count * world, self.seed, self.current_epoch)
        chosen = further_rows(len(rows), *key)[self.global_rank :: world]
        return self.answered([rows[i] for i in chosen], "again", attempt)
