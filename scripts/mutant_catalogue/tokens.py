"""Bugs between a score and an advantage: where the score lands, GAE, whitening, KL."""

from __future__ import annotations

from mutant_catalogue.rows import Mutant, Row

PPO = "algorithms/ppo.py"
ROLES = "models/roles.py"
NATIVE = "rollout/native.py"
ADVANTAGES = "functional/advantages.py"
STATISTICS = "experience/statistics.py"
SAMPLED = "invariants/test_sampling.py::test_responses_are_drawn_from_the_whole_tempered_policy"
GAE = "functional/test_advantages.py::TestGAE"
CONTROLLER = (
    "invariants/test_token_values.py::test_the_controller_is_given_the_kl_per_response_and_the_number_of_responses"
)

TOKENS = (
    Row(
        "the score is placed one token late, or on padding",
        "token rewards match a hand-written 6-token example and add up to score - coef * sum of KL",
        (
            Mutant(
                "the score is one token late",
                ADVANTAGES,
                "is_last = valid & (valid.cumsum(1) == valid.sum(1, keepdim=True))",
                "is_last = torch.arange(mask.shape[1]) == valid.sum(1, keepdim=True)",
                ("functional/test_advantages.py::TestTokenRewards::test_six_token_oracle",),
            ),
            Mutant(
                "the score is on the padding too",
                ADVANTAGES,
                "is_last = valid & (valid.cumsum(1)",
                "is_last = (valid.cumsum(1)",
                ("functional/test_advantages.py::TestTokenRewards::test_six_token_oracle",),
            ),
            Mutant(
                "the EOS is not a token of the response",
                NATIVE,
                "torch.arange(length, device=device) < facts[0].unsqueeze(1)",
                "torch.arange(length, device=device) < (facts[0] - facts[1]).unsqueeze(1)",
                ("rollout/test_native.py::test_a_response_ends_with_its_first_eos_and_says_so",),
            ),
            Mutant(
                "the penalty for a missing EOS falls on those that ended",
                "experience/reward_shaping.py",
                "torch.where(ended, scores, scores - shaping.missing_eos_penalty)",
                "torch.where(~ended, scores, scores - shaping.missing_eos_penalty)",
                ("algorithms/test_reward_shaping.py::test_normalise_then_clip_then_charge_for_a_missing_eos",),
            ),
        ),
    ),
    Row(
        "the penalty for a long response begins, or ends, at the wrong length",
        "hand-derived penalties at each end of the buffer and beyond the allowed length, after clipping",
        (
            Mutant(
                "the overlong penalty has no ceiling",
                "functional/lengths.py",
                "torch.clamp(beyond / buffer, 0.0, 1.0)",
                "torch.clamp(beyond / buffer, min=0.0)",
                (
                    "algorithms/test_reward_shaping.py::"
                    "test_the_overlong_penalty_rises_over_its_buffer_up_to_the_length_limit",
                ),
            ),
            Mutant(
                "the overlong penalty begins at the length limit",
                "functional/lengths.py",
                "- (max_length - buffer)",
                "- max_length",
                (
                    "algorithms/test_reward_shaping.py::"
                    "test_the_overlong_penalty_rises_over_its_buffer_up_to_the_length_limit",
                ),
            ),
            Mutant(
                "short responses earn a length penalty back",
                "experience/reward_shaping.py",
                "(lengths - shaping.length_allowed).clamp(min=0)",
                "(lengths - shaping.length_allowed)",
                ("algorithms/test_reward_shaping.py::test_tokens_beyond_the_allowed_length_cost_the_same_each",),
            ),
        ),
    ),
    Row(
        "GAE runs past the EOS, or the value is off by one",
        (
            "advantages equal those of a float64 loop within 1e-6; changing anything after the EOS leaves them "
            "bitwise the same"
        ),
        (
            Mutant(
                "GAE runs past the EOS",
                ADVANTAGES,
                "check_probability(gamma=gamma, lam=lam)\n    valid = mask != 0",
                "check_probability(gamma=gamma, lam=lam)\n    valid = torch.ones_like(mask) != 0",
                (f"{GAE}::test_bitwise_unchanged_by_anything_after_eos",),
            ),
            Mutant(
                "the next value is the value after the next",
                ADVANTAGES,
                "torch.where(valid[:, t], values[:, t], next_value)",
                "torch.where(valid[:, t], values[:, min(t + 1, values.shape[1] - 1)], next_value)",
                (f"{GAE}::test_equals_the_looped_definition",),
            ),
            Mutant(
                "a separate critic sees a token less than it values",
                ROLES,
                "states_before(critic, ids, flags)",
                "states_before(critic, ids, flags.roll(-1, 1))",
                ("invariants/test_token_values.py::test_a_value_is_of_the_state_before_its_token_in_both_layouts",),
            ),
            Mutant(
                "gamma and lambda are swapped",
                "experience/credit.py",
                "rollout.mask, self.gamma, self.lam",
                "rollout.mask, self.lam, self.gamma",
                (
                    "invariants/test_token_values.py::test_advantages_and_returns_of_a_run_are_the_looped_definition[False]",
                ),
            ),
            Mutant(
                "returns come from whitened advantages",
                "algorithms/ppo.py",
                "return Credit(self.whiten(credit.advantages, rollout.mask), credit.returns)",
                "return Credit(*[self.whiten(credit.advantages, rollout.mask)] * 2)",
                (
                    "invariants/test_token_values.py::test_advantages_and_returns_of_a_run_are_the_looped_definition[True]",
                ),
            ),
        ),
    ),
    Row(
        "whitening includes padding, or is done per rank",
        (
            "over valid tokens the mean is at most 1e-6 and the standard deviation is 1 within 1e-3; two ranks whiten"
            " like one"
        ),
        (
            Mutant(
                "moments over padding",
                "functional/masking.py",
                "valid = mask != 0\n    x = blank(x, valid)\n    mean",
                "valid = torch.ones_like(mask) != 0\n    x = blank(x, valid)\n    mean",
                ("functional/test_masking.py::test_whitened_is_0_off_the_mask_and_does_not_depend_on_what_is_there",),
            ),
            Mutant(
                "PPO whitens over padding",
                "algorithms/iterations.py",
                "return masked_whiten(x, mask)",
                "return masked_whiten(x, torch.ones_like(mask)) * mask",
                ("algorithms/test_ppo.py::test_whitened_advantages_have_mean_zero_and_std_one_over_valid_tokens",),
            ),
            Mutant(
                "every rank whitens by its own moments",
                "algorithms/iterations.py",
                "if self.trainer.world_size == 1:\n            return masked_whiten",
                "if True:\n            return masked_whiten",
                ("invariants/test_token_values.py::test_whitening_on_two_ranks_is_whitening_on_one",),
            ),
            Mutant(
                "centring inverted",
                "functional/masking.py",
                "whitened if center else whitened + mean",
                "whitened + mean if center else whitened",
                ("functional/test_masking.py::test_whitening_without_centering_keeps_the_mean",),
            ),
        ),
    ),
    Row(
        "the KL estimate goes negative because of its sign or because sampling was filtered",
        (
            "the mean KL is at least -3 standard errors; every token is drawn as often as the full policy says, so no"
            " filter was active"
        ),
        (
            Mutant(
                "sign of the estimator",
                "functional/kl.py",
                "at_least_float32(logprobs) - at_least_float32(ref_logprobs)",
                "at_least_float32(ref_logprobs) - at_least_float32(logprobs)",
                ("functional/test_kl.py::test_each_kind_equals_its_formula",),
            ),
            Mutant(
                "sign of the penalty",
                "algorithms/on_policy.py",
                "kl_estimate(rollout.logprobs, rollout.ref_logprobs,",
                "kl_estimate(rollout.ref_logprobs, rollout.logprobs,",
                ("algorithms/test_ppo.py::test_token_rewards_add_up_to_the_score_minus_the_kl_penalty",),
            ),
            Mutant(
                "top-k in PPO's sampling",
                "rollout/container.py",
                "SamplingSettings(self.max_new_tokens, self.temperature)",
                "SamplingSettings(self.max_new_tokens, self.temperature, top_k=10)",
                (SAMPLED,),
            ),
            Mutant(
                "top-p in PPO's sampling",
                "rollout/container.py",
                "SamplingSettings(self.max_new_tokens, self.temperature)",
                "SamplingSettings(self.max_new_tokens, self.temperature, top_p=0.9)",
                (SAMPLED,),
            ),
            Mutant(
                "a least length: the EOS cannot be drawn",
                NATIVE,
                "        return self.head(states).float()[places]",
                "        return self.head(states).float().index_fill(1, torch.tensor([*self.eos_ids]), -1e9)[places]",
                (SAMPLED,),
            ),
            Mutant(
                "a random number is compared with weights that do not add up to 1",
                NATIVE,
                "uniform * total,",
                "uniform,",
                (SAMPLED, "rollout/test_native.py::test_sampling_follows_the_softmax_at_its_temperature"),
            ),
        ),
    ),
    Row(
        "the KL is in the wrong unit",
        (
            "the controller receives sums per response and counts of responses; in a closed loop it settles within "
            "10% of its target"
        ),
        (
            Mutant(
                "a mean per token where the target is per response",
                STATISTICS,
                "* rollout.mask).sum(dim=1)",
                "* rollout.mask).sum(dim=1) / rollout.mask.sum(dim=1)",
                (CONTROLLER,),
            ),
            Mutant(
                "iterations where the horizon is in episodes",
                "algorithms/on_policy.py",
                '(metrics["objective/kl"]), self.rollout.responses * self.trainer.world_size)',
                '(metrics["objective/kl"]), 1)',
                (CONTROLLER,),
            ),
            Mutant(
                "the controller pushes the wrong way",
                "experience/kl_control.py",
                "(kl - self.target) / self.target",
                "(self.target - kl) / self.target",
                (
                    "algorithms/test_kl_controllers.py::test_the_closed_loop_settles_within_a_tenth_of_the_target[adaptive]",
                ),
            ),
            Mutant(
                "the controller's error is not clipped",
                "experience/kl_control.py",
                "min(max((kl - self.target) / self.target, -0.2), 0.2)",
                "(kl - self.target) / self.target",
                ("algorithms/test_kl_controllers.py::test_adaptive_is_equation_4_of_ziegler",),
            ),
        ),
    ),
)
