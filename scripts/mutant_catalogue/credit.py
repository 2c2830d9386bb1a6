"""Bugs in who is praised or blamed, and by how much, where other responses take the place of a critic."""

from __future__ import annotations

from mutant_catalogue.rows import Mutant, Row

POLICY_GRADIENT = "algorithms/policy_gradient.py"
POLICY_LOSS = "experience/policy_loss.py"
EXPECTED = "exact/test_group_gradient.py::test_the_expected_loss_has_the_gradient_of_the_objective"
ON_POLICY = "algorithms/test_on_policy.py"
SPLIT = f"{ON_POLICY}::test_gradients_do_not_depend_on_how_a_minibatch_is_split"
RATIO = f"{ON_POLICY}::test_at_learning_rate_zero_every_ratio_is_one_and_only_what_is_declared_is_built"

CREDIT = (
    Row(
        "a response is compared with something other than the regularised rewards of its group",
        "the gradient, enumerated over every group, is that of the objective or of the estimator's own formula",
        (
            Mutant(
                "the KL in the reward is left out of the baseline",
                "experience/credit.py",
                "group_advantages(rollout.rewards.sum(dim=1), self.group_size",
                "group_advantages(rollout.scores, self.group_size",
                (f"{EXPECTED}[leave_one_out-clipped]",),
            ),
            Mutant(
                "the spread of the group is ignored",
                "experience/credit.py",
                "self.group_size, self.baseline, self.scale",
                'self.group_size, self.baseline, "none"',
                (
                    "exact/test_group_gradient.py::"
                    "test_dividing_by_the_groups_spread_has_the_expectation_of_its_formula[group_mean]",
                ),
            ),
            Mutant(
                "equal scores leave the rounding of their mean",
                "functional/advantages.py",
                "return advantages.masked_fill(equal, 0.0).view(-1)",
                "return advantages.view(-1)",
                (f"{ON_POLICY}::test_a_group_that_all_score_the_same_teaches_exactly_nothing[grpo]",),
            ),
            Mutant(
                "a group of one is not refused",
                "experience/credit.py",
                "if group_size < 2:",
                "if group_size < 1:",
                (f"{ON_POLICY}::test_a_group_of_one_is_refused_by_name[grpo]",),
            ),
            Mutant(
                "returns without a critic are never whitened",
                POLICY_GRADIENT,
                "self.whiten(advantages, rollout.loss_mask) if self.whiten_advantages else advantages",
                "advantages",
                (f"{RATIO}[reinforce_pp]",),
            ),
        ),
    ),
    Row(
        "long responses count too much or too little",
        "means over responses and constant divisors do not depend on how a minibatch is split",
        (
            Mutant(
                "a mean over responses divides by those of its part",
                POLICY_LOSS,
                "            return batch.responses\n",
                "            return float(len(batch))\n",
                (f"{SPLIT}[grpo]",),
            ),
            Mutant(
                "a constant divisor counts the responses of its part",
                POLICY_LOSS,
                "batch.responses * self.denominator",
                "len(batch) * self.denominator",
                (f"{SPLIT}[dr_grpo]",),
            ),
            Mutant(
                "the KL in the loss is not averaged as the policy loss is",
                POLICY_LOSS,
                "weight * (x / self.lengths(batch)).sum()",
                "weight * x.sum()",
                ("exact/test_group_gradient.py::test_kl_in_the_loss_has_its_gradient_at_fixed_states[k3-sequence]",),
            ),
            Mutant(
                "the plain policy gradient forgets the length of a response",
                POLICY_LOSS,
                "weights = batch.advantages / self.lengths(batch)",
                "weights = batch.advantages",
                (f"{EXPECTED}[leave_one_out-plain, mean over responses of means]",),
            ),
        ),
    ),
    Row(
        "a critic is trained although no algorithm asks for one",
        "only the networks of an algorithm's roles are built",
        (
            Mutant(
                "every on-policy algorithm gets a value head",
                "models/roles.py",
                'values, costs = "critic" in roles,',
                "values, costs = True,",
                (f"{RATIO}[grpo]",),
            ),
        ),
    ),
)
