"""Bugs of the losses: normalisation, signs, settings that are not read."""

from __future__ import annotations

from mutant_catalogue.rows import Mutant, Row

PPO = "algorithms/ppo.py"
LOADER = "data/loader.py"
SPLIT = "test_gradients_do_not_depend_on_how_a_step_is_split"
PPO_SPLIT = "algorithms/test_ppo.py::test_gradients_do_not_depend_on_how_a_minibatch_is_split"
PARTS = "algorithms/test_microbatches.py::test_values_gradients_and_metrics_do_not_depend_on_the_budget"
WINDOW = "data/test_loader.py::test_the_gradient_of_a_window_is_the_mean_over_its_weight"

LOSSES = (
    Row(
        "gradient accumulation normalises per micro-batch",
        "1 x 8 equals 8 x 1 with uneven lengths and a partial last window, within 1e-6",
        (
            Mutant(
                "SFT divides by its micro-batch",
                "algorithms/sft.py",
                "return total / batch.denominator",
                "return total / max(tokens, 1)",
                (f"algorithms/test_sft.py::{SPLIT}",),
            ),
            Mutant(
                "DPO divides by its micro-batch",
                "algorithms/preference.py",
                "batch.pair_weights).sum() / batch.denominator",
                "batch.pair_weights).sum() / batch.pair_weights.sum()",
                (f"algorithms/test_dpo.py::{SPLIT}",),
            ),
            Mutant(
                "the reward model divides by its micro-batch",
                "algorithms/reward.py",
                "batch.margin, denominator=batch.denominator",
                "batch.margin",
                (f"algorithms/test_reward.py::{SPLIT}",),
            ),
            Mutant(
                "PPO's policy loss divides by its micro-batch",
                PPO,
                "self.clip_range, denominator=batch.denominator",
                "self.clip_range",
                (PPO_SPLIT,),
            ),
            Mutant(
                "a part of a token budget divides by its own tokens",
                "algorithms/iterations.py",
                "batch.select(rows, batch.denominator, more)",
                "batch.select(rows, float(batch.mask[rows].sum()), more)",
                (PARTS,),
            ),
            Mutant(
                "every part of a token budget adds the pretraining loss",
                "algorithms/iterations.py",
                "*[None] * (len(parts) - 1)]",
                "*[batch.pretraining] * (len(parts) - 1)]",
                (PARTS,),
            ),
            Mutant(
                "PPO's value loss divides by its micro-batch",
                PPO,
                "self.value_clip_range, denominator=batch.denominator",
                "self.value_clip_range",
                (PPO_SPLIT,),
            ),
            Mutant(
                "the entropy bonus divides by its micro-batch",
                "algorithms/on_policy.py",
                "weight * x.sum() / batch.denominator",
                "weight * x.sum() / batch.mask.sum()",
                (PPO_SPLIT,),
            ),
            Mutant(
                "the KL in the loss divides by its micro-batch",
                "algorithms/on_policy.py",
                "self.average(kl, batch, self.kl_controller.value)",
                "self.kl_controller.value * kl.sum() / batch.mask.sum()",
                (
                    "invariants/test_losses.py::"
                    "test_a_kl_penalty_in_the_loss_does_not_depend_on_how_a_minibatch_is_split",
                ),
            ),
            Mutant(
                "a short last window is divided by its length twice",
                LOADER,
                "[total / (self.accumulate * self.world_size)]",
                "[total / (len(window) * self.world_size)]",
                (WINDOW,),
            ),
            Mutant(
                "metrics are means of batch means",
                "training/recording.py",
                "value.detach() if isinstance(value, Tensor) else value, weight)",
                "value.detach() if isinstance(value, Tensor) else value)",
                ("algorithms/test_sft.py::test_validation_loss_is_per_token_over_the_whole_set",),
            ),
            Mutant(
                "a prompt with many answers counts more than once",
                "data/collation.py",
                "weights += [row.weight / len(row.pairs)] * len(row.pairs)",
                "weights += [row.weight] * len(row.pairs)",
                ("data/test_collation.py::test_all_answers_of_a_prompt_are_in_one_batch_and_the_prompt_counts_once",),
            ),
        ),
    ),
    Row(
        "a loss differs from its paper, or a setting is ignored",
        "each loss equals its equation written out in plain Python",
        (
            Mutant(
                "clipping is optimistic",
                "functional/ppo.py",
                "_aggregate(torch.maximum(unclipped, clipped)",
                "_aggregate(torch.minimum(unclipped, clipped)",
                ("functional/test_ppo.py::TestPolicyLoss::test_loss_and_stats_equal_python",),
            ),
            Mutant(
                "the entropy bonus is a penalty",
                "algorithms/on_policy.py",
                "loss = loss - self.average",
                "loss = loss + self.average",
                ("algorithms/test_ppo.py::test_entropy_bonus_keeps_the_policy_more_random",),
            ),
            Mutant(
                "target_kl is ignored",
                "algorithms/iterations.py",
                "self._stop_updates or approx_kl > 1.5 * self.target_kl",
                "False",
                ("algorithms/test_ppo.py::test_target_kl_ends_the_iterations_updates_and_not_the_run",),
            ),
            Mutant(
                "the penalty is in the reward and in the loss",
                "algorithms/on_policy.py",
                'self.kl_controller.value if self.kl.placement == "reward" else 0.0',
                "self.kl_controller.value",
                (
                    "algorithms/test_ppo.py::test_the_penalty_in_the_loss_leaves_the_rewards_alone_and_pulls_all_the_same",
                ),
            ),
            Mutant(
                "IPO sums over tokens",
                "algorithms/dpo.py",
                "loss_type in PER_TOKEN if per_token is None else per_token",
                "bool(per_token)",
                ("invariants/test_losses.py::test_ipo_compares_means_over_tokens",),
            ),
            Mutant(
                "DPO without its reference",
                "algorithms/dpo.py",
                "            better.reference,\n            worse.reference,",
                "            better.reference * 0,\n            worse.reference * 0,",
                ("algorithms/test_dpo.py::test_the_loss_is_equation_7_of_the_paper",),
            ),
            Mutant(
                "the sign of the margin",
                "functional/reward.py",
                "difference = difference - blank(margin, valid)",
                "difference = difference + blank(margin, valid)",
                ("algorithms/test_reward.py::test_margin_and_centring_enter_the_loss",),
            ),
        ),
    ),
    Row(
        "a group without spread divides rounding noise by rounding noise",
        "its advantages are exactly 0, whatever the score, the baseline and the scale",
        (
            Mutant(
                "groups without spread are not detected",
                "functional/advantages.py",
                "return advantages.masked_fill(equal, 0.0).view(-1)",
                "return advantages.view(-1)",
                ("functional/test_advantages.py::test_a_group_without_spread_is_exactly_zero",),
            ),
            Mutant(
                "one response is left out of its own mean without stretching it",
                "functional/advantages.py",
                "advantages = advantages * (group_size / (group_size - 1))",
                "advantages = advantages * 1",
                ("functional/test_advantages.py::test_group_advantages_equal_python",),
            ),
        ),
    ),
    Row(
        "losses of single answers and of mean log-probabilities are wrong at the edges",
        "KTO, ORPO, SimPO and sequence ratios equal plain Python and are finite at probability 1",
        (
            Mutant(
                "a gradient flows into KTO's estimate of the KL",
                "functional/answers.py",
                "device=log_ratios.device).detach()",
                "device=log_ratios.device)",
                ("functional/test_answers.py::test_no_gradient_flows_into_ktos_kl_and_each_answer_is_pushed_its_way",),
            ),
            Mutant(
                "KTO's KL may be negative",
                "functional/answers.py",
                "(log_ratios - z.clamp(min=0))",
                "(log_ratios - z)",
                ("functional/test_answers.py::test_kto_is_the_literal_formula",),
            ),
            Mutant(
                "odds are taken at probability 1",
                "functional/answers.py",
                "logps = logps.clamp(max=-torch.finfo(logps.dtype).eps)",
                "logps = logps.clamp(max=0.0)",
                ("functional/test_answers.py::test_odds_ratios_and_gradients_are_finite_at_the_edges",),
            ),
            Mutant(
                "SimPO's margin is not a share of beta",
                "functional/answers.py",
                "beta * (difference - gamma_beta_ratio)",
                "(beta * difference - gamma_beta_ratio)",
                ("functional/test_answers.py::test_simpo_is_the_literal_formula_and_its_margin_a_share_of_beta",),
            ),
            Mutant(
                "the mean over responses counts those without tokens",
                "functional/ppo.py",
                "default=valid.any(1).sum())",
                "default=torch.tensor(len(valid)))",
                ("functional/test_ppo.py::TestVariants::test_a_response_without_tokens_is_not_counted",),
            ),
        ),
    ),
)
