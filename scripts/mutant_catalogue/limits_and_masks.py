"""Bugs in limits on costs, in the cost models behind them, and in masks of the vocabulary."""

from __future__ import annotations

from mutant_catalogue.rows import Mutant, Row

LAGRANGIAN = "algorithms/ppo_lagrangian.py"
GRADIENT = "exact/test_lagrangian.py::test_the_expected_loss_has_the_gradient_of_the_lagrangian[0.7-False-1.0]"
OF_LIMITS = "algorithms/test_ppo_lagrangian.py"
OF_COSTS = "algorithms/test_cost.py"
OF_MASKS = "algorithms/test_nlpo.py"
ON_POLICY = "algorithms/test_on_policy.py"
RATIO = f"{ON_POLICY}::test_at_learning_rate_zero_every_ratio_is_one_and_only_what_is_declared_is_built[nlpo]"

LIMITS_AND_MASKS = (
    Row(
        "reward and cost are weighed against each other wrongly",
        "the gradient, enumerated over every response, is that of the Lagrangian with the KL at its own coefficient",
        (
            Mutant(
                "the KL lowers the cost too",
                LAGRANGIAN,
                "rollout.mask, -coef)",
                "rollout.mask, coef)",
                (GRADIENT,),
            ),
            Mutant(
                "the advantage grows with the multiplier",
                LAGRANGIAN,
                "(of_reward - weight * of_cost) / (1 + weight)",
                "of_reward - weight * of_cost",
                (GRADIENT,),
            ),
            Mutant(
                "costs are rewarded",
                LAGRANGIAN,
                "of_reward - weight * of_cost",
                "of_reward + weight * of_cost",
                (GRADIENT,),
            ),
            Mutant(
                "the cost's critic learns the reward's returns",
                LAGRANGIAN,
                "(batch.cost_values, batch.cost_returns, batch.mask)",
                "(batch.cost_values, batch.returns, batch.mask)",
                (f"{OF_LIMITS}::test_each_critic_learns_its_own_returns_and_both_are_trained",),
            ),
        ),
    ),
    Row(
        "the multiplier forgets, winds up, or runs away",
        "PID control by hand; it leaves the ends of its range at once; a resumed run is bitwise the uninterrupted one",
        (
            Mutant(
                "the multiplier begins again after a resume",
                LAGRANGIAN,
                'resumes: ClassVar[tuple[str, ...]] = ("multiplier",)',
                "resumes: ClassVar[tuple[str, ...]] = ()",
                (f"{ON_POLICY}::test_a_resumed_run_is_bitwise_the_uninterrupted_one[ppo_lagrangian]",),
            ),
            Mutant(
                "the integral winds up",
                "experience/multiplier.py",
                "self.integral = min(max(self.integral + gains.ki * error, 0.0), gains.maximum)",
                "self.integral = self.integral + gains.ki * error",
                (f"{OF_LIMITS}::test_the_multiplier_stays_in_its_range_and_leaves_its_ends_at_once",),
            ),
            Mutant(
                "costs below the limit raise the multiplier",
                "experience/multiplier.py",
                "cost - self.limit",
                "self.limit - cost",
                (f"{OF_LIMITS}::test_the_multiplier_follows_the_formula_of_pid_control",),
            ),
        ),
    ),
    Row(
        "0 does not mean safe",
        "sign terms by hand; labels stay with their answers; a reward model is not a cost, and a cost not a reward",
        (
            Mutant(
                "the sign terms are the wrong way round",
                "functional/reward.py",
                "torch.where(safe.bool(), -c, c)",
                "torch.where(safe.bool(), c, -c)",
                (f"{OF_COSTS}::test_the_loss_is_the_formula_and_its_sign_terms_pull_to_both_sides",),
            ),
            Mutant(
                "labels are read of the other answer",
                "data/safety.py",
                '"chosen_safe": row[f"is_response_{safer}_safe"]',
                '"chosen_safe": row[f"is_response_{1 - safer}_safe"]',
                (f"{OF_COSTS}::test_labels_stay_with_their_answers",),
            ),
            Mutant(
                "a plain reward model is taken as a cost model",
                "rewards/cost.py",
                "if signed and not is_cost_model(model):",
                "if not signed:",
                (f"{OF_LIMITS}::test_a_reward_model_is_not_a_cost_model_unless_said_so",),
            ),
            Mutant(
                "a cost model is maximised",
                "config/inputs.py",
                'if signed and key.partition(".")[0] == "reward":',
                "if False:",
                (f"{OF_COSTS}::test_a_cost_model_learns_order_and_sign_and_only_it_is_a_cost",),
            ),
        ),
    ),
    Row(
        "sampling and learning see different sets of tokens",
        "masks and log-probabilities equal those of forward passes; at learning rate 0 every ratio is 1, the KL 0",
        (
            Mutant(
                "the update renormalises over the whole vocabulary",
                "algorithms/on_policy.py",
                "self.entropy_coef != 0, batch.allowed)",
                "self.entropy_coef != 0)",
                (RATIO,),
            ),
            Mutant(
                "the reference is not renormalised",
                "experience/old_policy.py",
                "response_logprobs(model, *tokens, self.temperature, allowed)",
                "response_logprobs(model, *tokens, self.temperature)",
                (f"{OF_MASKS}::test_the_masks_of_the_rollout_are_those_of_losses_and_of_the_kl",),
            ),
            Mutant(
                "the mask is the policy's own, not the copy's",
                "rollout/masked.py",
                "self.mask(self.lagging_logits[places], self.settings.temperature)",
                "self.mask(logits, self.settings.temperature)",
                (f"{OF_MASKS}::test_tokens_are_sampled_from_the_policy_over_the_nucleus_of_the_copy[True-llama]",),
            ),
            Mutant(
                "the end of a response may be masked",
                "rollout/masked.py",
                "for token in self.always if",
                "for token in () if",
                (f"{OF_MASKS}::test_the_masks_of_the_rollout_are_those_of_losses_and_of_the_kl",),
            ),
            Mutant(
                "the nucleus lacks its last token",
                "functional/allowed.py",
                "(before < top_p)",
                "(before + ordered <= top_p)",
                ("functional/test_allowed.py::test_the_nucleus_is_the_smallest_set_of_at_least_this_mass",),
            ),
        ),
    ),
    Row(
        "the lagging copy stays behind",
        "the copy that sampling uses is the policy of the last refresh, across a resume too",
        (
            Mutant(
                "the refreshed copy never reaches the sampler",
                "algorithms/nlpo.py",
                "            self.lagging.refresh()",
                "            self.lagging = LaggingPolicy(self.policy)",
                (f"{OF_MASKS}::test_the_refreshed_copy_reaches_sampling_and_only_at_its_iteration",),
            ),
            Mutant(
                "the copy moves with the policy",
                "models/lagging.py",
                "parameter.detach().clone()",
                "parameter.detach()",
                (f"{OF_MASKS}::test_the_copy_is_resumed_and_shares_what_is_frozen",),
            ),
            Mutant(
                "the copy begins again after a resume",
                "algorithms/nlpo.py",
                'resumes: ClassVar[tuple[str, ...]] = ("lagging",)',
                "resumes: ClassVar[tuple[str, ...]] = ()",
                (f"{OF_MASKS}::test_a_copy_that_was_refreshed_before_the_cut_is_resumed",),
            ),
        ),
    ),
)
