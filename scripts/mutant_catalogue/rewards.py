"""Bugs in rewards: numbers at the wrong token, parts and members that are combined wrongly."""

from __future__ import annotations

from mutant_catalogue.rows import Mutant, Row

OF_TOKENS = "algorithms/test_token_scores.py"

REWARDS = (
    Row(
        "numbers per token are moved, counted twice or broadcast",
        "token rewards are the numbers minus the KL penalty, and add up to the shaped score minus the penalty",
        (
            Mutant(
                "a list of another length than its response passes",
                "rewards/scores.py",
                "if length is not None and len(row) != length:",
                "if length is not None and len(row) > length:",
                ("rewards/test_scores.py::test_wrong_numbers_per_token_are_refused_in_one_line",),
            ),
            Mutant(
                "the sum is added at the last token again",
                "experience/token_scores.py",
                "token_rewards(rollout.scores - own.sum(dim=1), kl",
                "token_rewards(rollout.scores, kl",
                (f"{OF_TOKENS}::test_each_number_is_the_reward_of_its_token",),
            ),
            Mutant(
                "normalisation leaves numbers per token as they are",
                "experience/scorer.py",
                "rollout.token_scores = scaled / (self.moments.std if self.shaping.normalize else 1.0)",
                "rollout.token_scores = scaled",
                (f"{OF_TOKENS}::test_shaping_scales_every_token_and_the_rest_is_at_the_last",),
            ),
            Mutant(
                "whole scores of a sum are on every token",
                "rewards/scores.py",
                "[*[0.0] * (len(row) - 1), float(score)]",
                "[float(score)] * len(row)",
                ("rewards/test_scores.py::test_a_sum_places_whole_scores_on_the_last_token_beside_numbers_per_token",),
            ),
        ),
    ),
)
