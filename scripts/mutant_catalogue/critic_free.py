"""Bugs in the losses without a critic that differ from PPO's."""

from __future__ import annotations

from mutant_catalogue.rows import Mutant, Row

LOSSES = "functional/ppo.py"
POLICY_LOSS = "experience/policy_loss.py"
OFF_POLICY = "exact/test_off_policy.py::test_a_clipped_loss_has_the_expectation_of_its_formula_off_policy"
DYNAMIC = "experience/dynamic_sampling.py"
CHOSEN = "algorithms/test_chosen.py"
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
    Row(
        "prompts are sampled again, or not, by the wrong number",
        "groups are kept where some responses are right by the accuracy, and the rest of the batch teaches nothing",
        (
            Mutant(
                "a part of the reward is ignored: the score judges",
                DYNAMIC,
                "if part is None:",
                "if True:",
                (
                    f"{CHOSEN}::test_groups_are_kept_where_some_are_right_and_some_wrong_by_the_accuracy_and_not_by_the_score",
                ),
            ),
            Mutant(
                "groups that are all right are kept",
                DYNAMIC,
                "correct.any(dim=1) & ~correct.all(dim=1)",
                "correct.any(dim=1)",
                (
                    f"{CHOSEN}::test_groups_are_kept_where_some_are_right_and_some_wrong_by_the_accuracy_and_not_by_the_score",
                ),
            ),
            Mutant(
                "what fills the batch at the bound is learned from",
                DYNAMIC,
                "teaches[chosen].float().repeat_interleave",
                "torch.ones_like(teaches[chosen]).float().repeat_interleave",
                (f"{CHOSEN}::test_at_the_bound_the_other_places_get_groups_that_are_not_learned_from",),
            ),
            Mutant(
                "a process that has enough does not wait for the others",
                DYNAMIC,
                "missing = most(groups - int(torch.cat(mixed).sum()))",
                "missing = groups - int(torch.cat(mixed).sum())",
                (f"{CHOSEN}::test_every_process_takes_part_in_every_try",),
            ),
            Mutant(
                "every epoch asks the same further prompts",
                "algorithms/resampling.py",
                "self.seed, self.current_epoch)",
                "self.seed)",
                (f"{CHOSEN}::test_further_prompts_are_a_function_of_seed_and_epoch",),
            ),
            Mutant(
                "responses that are not learned from count in the divisor",
                "rollout/loader.py",
                "rollout.loss_mask.sum(dim=1), rollout.learned]",
                "rollout.mask.sum(dim=1), rollout.learned]",
                (f"{CHOSEN}::test_truncated_responses_are_out_of_the_loss_and_its_divisors_but_in_the_baseline",),
            ),
            Mutant(
                "truncated responses are learned from",
                "experience/sampled.py",
                "learned=sampled.learned * which",
                "learned=sampled.learned",
                (f"{CHOSEN}::test_truncated_responses_are_out_of_the_loss_and_its_divisors_but_in_the_baseline",),
            ),
        ),
    ),
    Row(
        "a tie is given to the first response, or teaches noise",
        "groups whose rewards are all equal are dropped; where all are, loss and update are exactly 0",
        (
            Mutant(
                "ties count",
                "experience/choice.py",
                "(groups.amax(dim=1) != groups.amin(dim=1)).float()",
                "torch.ones(len(groups), device=groups.device)",
                (f"{CHOSEN}::test_choices_of_groups_with_and_without_a_difference",),
            ),
            Mutant(
                "the worst is preferred",
                "experience/choice.py",
                "first + groups.argmax(dim=1), first + groups.argmin(dim=1)",
                "first + groups.argmin(dim=1), first + groups.argmax(dim=1)",
                (f"{CHOSEN}::test_choices_of_groups_with_and_without_a_difference",),
            ),
            Mutant(
                "online DPO divides by all pairs",
                "algorithms/online_dpo.py",
                "(losses * count).sum() / (batch.responses / 2)",
                "(losses * count).sum() / len(count)",
                ("exact/test_chosen.py::test_online_dpo_is_dpo_of_best_and_worst_over_groups_that_differ[2-sigmoid]",),
            ),
            Mutant(
                "pairs are torn apart by the shuffling",
                "algorithms/online_dpo.py",
                "whole_groups: ClassVar[bool] = True",
                "whole_groups: ClassVar[bool] = False",
                (f"{CHOSEN}::test_online_dpo_trains_on_pairs_of_one_prompt_and_counts_ties",),
            ),
            Mutant(
                "RAFT takes the best of all for the best of each",
                "algorithms/raft.py",
                'if self.select == "per_prompt" else',
                'if self.select == "share" else',
                (f"{CHOSEN}::test_raft_trains_on_the_best_and_reports_the_kl_of_choosing[per_prompt]",),
            ),
        ),
    ),
)
