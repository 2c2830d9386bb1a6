"""Bugs in the losses without a critic that differ from PPO's."""

from __future__ import annotations

from mutant_catalogue.rows import Mutant, Row

LOSSES = "functional/ppo.py"
POLICY_LOSS = "experience/policy_loss.py"
OFF_POLICY = "exact/test_off_policy.py::test_a_clipped_loss_has_the_expectation_of_its_formula_off_policy"
CISPO = "functional/test_ppo.py::TestCispoLoss::test_loss_gradient_and_stats_equal_python"

CRITIC_FREE = (
    Row(
        "a clipped loss is right at ratio 1 and wrong elsewhere",
        "off-policy, the gradient is that of the loss's own formula, enumerated over every group",
        (
            Mutant(
                "the ratio of a sequence is the product of its tokens' ratios",
                LOSSES,
                "masked_mean(log_ratio, valid, dim=1).unsqueeze(1)",
                "log_ratio.sum(dim=1).unsqueeze(1)",
                (f"{OFF_POLICY}[gspo]",),
            ),
            Mutant(
                "the upper side of the range is the lower one's",
                LOSSES,
                "high = clip_range if clip_range_high is None else clip_range_high",
                "high = clip_range",
                (f"{OFF_POLICY}[dapo]",),
            ),
            Mutant(
                "CISPO's weight carries a gradient",
                LOSSES,
                "torch.exp(logprobs.detach() - old_logprobs)",
                "torch.exp(logprobs - old_logprobs)",
                (f"{OFF_POLICY}[cispo]", CISPO),
            ),
            Mutant(
                "CISPO's bound is the weight itself",
                LOSSES,
                "1 - clip_range_low, 1 + clip_range_high)",
                "1 - clip_range_low, clip_range_high)",
                (f"{OFF_POLICY}[cispo]", CISPO),
            ),
            Mutant(
                "CISPO's settings are read as PPO's",
                POLICY_LOSS,
                'if self.loss_type == "cispo":',
                'if self.loss_type == "clipped":',
                (f"{OFF_POLICY}[cispo]",),
            ),
        ),
    ),
)
