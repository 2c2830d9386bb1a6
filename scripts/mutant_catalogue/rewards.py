"""Bugs in rewards: numbers at the wrong token, parts and members that are combined wrongly."""

from __future__ import annotations

from mutant_catalogue.rows import Mutant, Row

ENSEMBLE = "rewards/test_ensemble.py"
PARTS = "algorithms/test_part_moments.py"
PROCESS = "algorithms/test_process_reward.py"
STEPS = "data/test_steps.py"
OF_TOKENS = "algorithms/test_token_scores.py"
OF_VERIFIERS = "rewards/test_verifiers.py"
OF_SERVERS = "rewards/test_remote.py"
OF_TRL, OF_CALLS = "rewards/test_trl_functions.py", "rewards/test_async_functions.py"

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
    Row(
        "parts and members are combined in different units, or not as asked",
        "an ensemble is the stated function of its members' own scores; a part counts by its own moments",
        (
            Mutant(
                "the minimum is the mean",
                "rewards/ensemble.py",
                "return scores.amin(dim=0)",
                "return scores.mean(dim=0)",
                (f"{ENSEMBLE}::test_scores_are_the_mean_the_minimum_or_the_mean_minus_the_spread",),
            ),
            Mutant(
                "the spread is added",
                "rewards/ensemble.py",
                "mean - std_coef * scores.std(dim=0, correction=0)",
                "mean + std_coef * scores.std(dim=0, correction=0)",
                (f"{ENSEMBLE}::test_scores_are_the_mean_the_minimum_or_the_mean_minus_the_spread",),
            ),
            Mutant(
                "all parts are divided by the same spread",
                "experience/part_moments.py",
                "moments = self.of.setdefault(name, RunningMoments())",
                'moments = self.of.setdefault("all", RunningMoments())',
                (f"{PARTS}::test_each_part_is_divided_by_its_own_spread_before_its_weight",),
            ),
            Mutant(
                "each process has its own moments",
                "experience/part_moments.py",
                "moments.update(everywhere(found).flatten())",
                "moments.update(found)",
                (f"{PARTS}::test_the_moments_are_those_of_all_processes",),
            ),
            Mutant(
                "the parts' moments are lost on resume",
                "algorithms/on_policy.py",
                '("kl_controller", "reward_moments", "part_moments")',
                '("kl_controller", "reward_moments")',
                (f"{PARTS}::test_a_run_learns_from_normalised_parts_logs_raw_ones_and_resumes",),
            ),
            Mutant(
                "a member is left out of the run's marks",
                "rewards/ensemble.py",
                "for member in self.members for key, mark in member.origin().items()}",
                "for member in self.members[:1] for key, mark in member.origin().items()}",
                (f"{ENSEMBLE}::test_a_run_names_every_member_and_how_they_are_combined_in_its_checkpoints",),
            ),
        ),
    ),
    Row(
        "a TRL function's None, weight or column is taken for something else",
        "TRL's documented examples give TRL's numbers: None leaves a function out of a response's sum",
        (
            Mutant(
                "weights are divided by the number of functions that apply",
                "rewards/weighted.py",
                "sum(self.weights[name] * (part[i] or 0.0) for",
                "sum(self.weights[name] * (part[i] or 0.0) / 2 for",
                (f"{OF_TRL}::test_functions_for_several_tasks_with_weights",),
            ),
            Mutant(
                "conversations are given as text",
                "rewards/keywords.py",
                'text if asked is None else [{"role": "assistant", "content": text}]',
                "text",
                (f"{OF_TRL}::test_a_format_of_conversations",),
            ),
            Mutant(
                "our own signature may return None",
                "rewards/function.py",
                'if self.call.style == "responses" and not self.call.waits:',
                "if False:",
                (f"{OF_TRL}::test_none_of_our_own_signature_stays_a_mistake",),
            ),
            Mutant(
                "a call that failed is not repeated",
                "rewards/concurrent.py",
                "if attempt == self.attempts:",
                "if True:",
                (f"{OF_CALLS}::test_64_calls_keep_to_the_limit_and_one_in_ten_that_fails_is_repeated",),
            ),
            Mutant(
                "async functions are not limited",
                "rewards/concurrent.py",
                "asyncio.Semaphore(self.concurrency)",
                "asyncio.Semaphore(len(calls))",
                (f"{OF_CALLS}::test_64_calls_keep_to_the_limit_and_one_in_ten_that_fails_is_repeated",),
            ),
        ),
    ),
    Row(
        "a server's answer is taken for other responses, or its error for a score",
        "scores keep the order of the responses, and a bad answer is one line",
        (
            Mutant(
                "a request's first responses are sent again",
                "rewards/remote.py",
                "x[i : i + self.batch_size]",
                "x[: self.batch_size]",
                (f"{OF_SERVERS}::test_requests_carry_texts_messages_and_columns_and_scores_keep_their_order",),
            ),
            Mutant(
                "redirects are followed without the responses",
                "judging/posting.py",
                "build_opener(_NoRedirects)",
                "build_opener()",
                (f"{OF_SERVERS}::test_a_bad_answer_is_one_line_at_once",),
            ),
        ),
    ),
    Row(
        "a verifier is satisfied by what is not an answer",
        "hand-derived scores, also for code that leaves before its tests and for patterns that explode",
        (
            Mutant(
                "code that ends early has passed",
                "rewards/code_runner.py",
                'return os.read(reader, 1) == b"1"',
                'return os.read(reader, 1) != b"0"',
                (f"{OF_VERIFIERS}::test_evil_code_scores_0",),
            ),
            Mutant(
                "code sees the environment",
                "rewards/child_programs.py",
                'return {"PATH": os.defpath, ',
                'return {**os.environ, "PATH": os.defpath, ',
                (f"{OF_VERIFIERS}::test_output_is_dropped_and_nothing_of_the_environment_is_seen",),
            ),
            Mutant(
                "a format is looked for anywhere",
                "rewards/verifiers.py",
                "pattern.search if anywhere else pattern.fullmatch",
                "pattern.search if True else pattern.fullmatch",
                (f"{OF_VERIFIERS}::test_format_match_is_about_the_whole_completion_unless_a_part_is_enough",),
            ),
            Mutant(
                "the first answer counts",
                "rewards/verifiers.py",
                "return matches[-1] if matches",
                "return matches[0] if matches",
                (f"{OF_VERIFIERS}::test_exact_match_takes_the_last_place_that_its_pattern_finds",),
            ),
        ),
    ),
    Row(
        "steps are labelled, read or credited at other tokens than their last ones",
        "a step counts once, at its last token, in the data, the loss and the token rewards; what is cut is counted",
        (
            Mutant(
                "a step ends one token early",
                "data/steps.py",
                "ends.append(len(ids) - 1)",
                "ends.append(len(ids) - 2)",
                (f"{STEPS}::test_labels_are_at_the_last_token_of_each_step_and_nowhere_else",),
            ),
            Mutant(
                "steps that are cut away are not counted",
                "data/steps.py",
                "report.steps_dropped += len(ends) - len(kept)",
                "report.steps_dropped += 0",
                (f"{STEPS}::test_truncation_counts_the_steps_that_it_drops",),
            ),
            Mutant(
                "a step that is cut in half keeps its label",
                "data/steps.py",
                "kept = [end for end in ends if end < len(cut)]",
                "kept = [min(end, len(cut) - 1) for end in ends]",
                (f"{STEPS}::test_truncation_counts_the_steps_that_it_drops",),
            ),
            Mutant(
                "right and wrong are exchanged in the reward",
                "rewards/process.py",
                "logits.softmax(dim=1)[:, 1]",
                "logits.softmax(dim=1)[:, 0]",
                (f"{PROCESS}::test_as_a_reward_it_is_the_worst_step_the_product_or_the_last",),
            ),
            Mutant(
                "a step's number is at the token before its separator",
                "rewards/steps.py",
                "ends.append(high - 1)",
                "ends.append(high - 2)",
                (f"{PROCESS}::test_a_function_gives_one_number_per_step",),
            ),
            Mutant(
                "the worst step is the mean of the steps",
                "functional/process.py",
                'scores.masked_fill(~valid, float("inf")).amin(dim=1)',
                "scores.masked_fill(~valid, 0.0).mean(dim=1)",
                ("functional/test_process.py::test_a_response_is_as_good_as_its_worst_step_the_product_or_the_last",),
            ),
            Mutant(
                "rows that only pad a process are trained on",
                "data/steps.py",
                "return replace(self, right=[IGNORED] * len(self.right))",
                "return self",
                (f"{STEPS}::test_a_row_that_only_pads_a_process_has_its_steps_but_no_labels",),
            ),
        ),
    ),
)
