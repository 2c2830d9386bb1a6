"""Bugs of the feedback loop: judgements that get lost or count twice, coefficients that are something else."""

from __future__ import annotations

from mutant_catalogue.rows import Mutant, Row

STORE = "feedback/test_store.py"
PAGES = "feedback/test_pages.py"
ACCESS = "feedback/pages/access.py"
ROUNDS = "commands/test_rounds.py"
MEMBERS = "commands/test_members.py"
COLLECTING = "feedback/test_collecting.py"
COEFFICIENTS = "feedback/coefficients.py"
EXAMPLES = "feedback/test_coefficients.py::test_alpha_equals_krippendorffs_worked_examples"

FEEDBACK = (
    Row(
        "a task reaches too many labelers or none; a judgement is lost or counts twice",
        (
            "as many labelers as `overlap` says get a task; a task that was abandoned or skipped comes back; an "
            "acknowledged judgement is synced, once"
        ),
        (
            Mutant(
                "a task that is given to a labeler stays in the queue",
                "feedback/queue.py",
                "    take_slot(connection, row.number)\n    return row.number, False",
                "    return row.number, False",
                (f"{STORE}::test_two_labelers_get_the_same_task_only_where_overlap_asks_for_it",),
            ),
            Mutant(
                "a task that comes back stays where others have passed it",
                "feedback/queue.py",
                "place=last + 1",
                "place=tasks.c.place",
                (f"{STORE}::test_a_skipped_task_goes_to_somebody_else",),
            ),
            Mutant(
                "a commit is not synced",
                "feedback/connection.py",
                'changes="FULL" if durable else "NORMAL"',
                'changes="NORMAL"',
                (f"{STORE}::test_what_is_acknowledged_is_synced",),
            ),
            Mutant(
                "undone judgements hold",
                "feedback/judgement_log.py",
                'judgements.c.verdict != "undo", ~undone',
                'judgements.c.verdict != "undo"',
                (f"{STORE}::test_an_undo_is_a_judgement_and_brings_the_task_back",),
            ),
        ),
    ),
    Row(
        "a collection samples twice, or attributes a response to another policy; a link is kept too long or lost",
        "samples are found again by policy, weights, prompt and settings; a link stays valid until it is renewed",
        (
            Mutant(
                "what was sampled is not looked for",
                "feedback/collecting.py",
                "if key not in known]",
                "if key]",
                (f"{COLLECTING}::test_each_policy_answers_each_prompt_and_a_second_call_samples_nothing",),
            ),
            Mutant(
                "other weights by the same name count as sampled",
                "feedback/collecting.py",
                "how = [policy.name, policy.mark,",
                "how = [policy.name,",
                (f"{COLLECTING}::test_other_weights_another_seed_and_more_prompts_are_sampled",),
            ),
            Mutant(
                "policies draw alike",
                "feedback/policies.py",
                'seeded_generator(device, "collect", drawing.seed, self.name, asked)',
                'seeded_generator(device, "collect", drawing.seed)',
                (f"{COLLECTING}::test_each_policy_answers_each_prompt_and_a_second_call_samples_nothing",),
            ),
            Mutant(
                "each start of the server makes new links",
                "feedback/links.py",
                "elif has_token.get(name) and name not in renew:",
                "elif False:",
                ("feedback/test_serving.py::test_beyond_this_machine_a_link_holds_a_token_and_is_made_once",),
            ),
        ),
    ),
    Row(
        "agreement, aggregation or export differ from their definitions",
        "they reproduce published worked examples and recover a known truth; the chosen answer is the better one",
        (
            Mutant(
                "alpha's pairs are not weighted by the size of their unit",
                COEFFICIENTS,
                "(weights[pairable] / (size[pairable] - 1))",
                "weights[pairable]",
                (EXAMPLES,),
            ),
            Mutant(
                "alpha is not corrected for a finite sample",
                COEFFICIENTS,
                "(float(marginals.sum()) - 1)",
                "float(marginals.sum())",
                (EXAMPLES,),
            ),
            Mutant(
                "answers that were asked again count twice",
                "feedback/aggregation.py",
                "    votes = votes.where(~votes.repeat)\n    rows, unit",
                "    rows, unit",
                ("feedback/test_aggregation.py::test_a_tie_is_half_and_skips_and_repetitions_do_not_count",),
            ),
            Mutant(
                "bradley_terry takes single best scores for the truth, so that all labelers look reliable",
                "feedback/aggregation.py",
                "means[i] - means[j] + node * deviation",
                "means[i] - means[j]",
                ("feedback/test_aggregation.py::test_bradley_terry_finds_who_is_unreliable_in_few_rankings_per_task",),
            ),
            Mutant(
                "a round exports pairs where rankings were asked for",
                "feedback/rounds.py",
                "ranked_rows if rankings else preference_rows",
                "preference_rows",
                ("feedback/test_export.py::test_a_round_exports_rankings_as_one_row_per_task",),
            ),
            Mutant(
                "chosen and rejected are swapped in the export",
                "feedback/export.py",
                "(first, second) if probability > 0.5 else (second, first)",
                "(first, second) if probability < 0.5 else (second, first)",
                ("feedback/test_export.py::test_a_preference_row_has_its_margin_agreement_and_task",),
            ),
            Mutant(
                "the swapped order is averaged without swapping it back",
                "judging/comparing.py",
                "Compared((shown + (1 - swapped)) / 2, shown, 1 - swapped, principle, reasons)",
                "Compared((shown + swapped) / 2, shown, swapped, principle, reasons)",
                ("feedback/test_judge.py::test_the_average_of_both_orders_has_no_position_bias_where_quality_is_even",),
            ),
        ),
    ),
    Row(
        "rounds repeat, skip or mix up their stages after a stop; labelers answer differently the second time",
        "the same command continues to the result of a pipeline that was never stopped",
        (
            Mutant(
                "simulated labelers draw different random numbers each time",
                "simulation/labelling.py",
                'random.Random(f"{seed}:{name}:{task.id}:{asked[name]}")',
                "random.Random()",
                ("simulation/test_labelling.py::test_labelers_that_are_stopped_go_on_to_the_same_judgements",),
            ),
            Mutant(
                "every round learns from the labels of the first",
                "runs/rounds.py",
                'stage[key] = f"{stage[key]}_{number}"',
                'stage[key] = f"{stage[key]}_1"',
                (f"{ROUNDS}::test_every_round_collects_from_the_policy_before_it_and_learns_from_its_own_labels",),
            ),
            Mutant(
                "a round asks about the policy's answers alone, without its baseline's",
                "feedback/rounds.py",
                "for each in (model, baseline) if each}",
                "for each in (model,) if each}",
                (f"{COLLECTING}::test_half_of_the_responses_are_the_baselines_unless_it_is_the_policy_itself",),
            ),
            Mutant(
                "a round that is called again takes its tasks with a baseline for another round's",
                "feedback/rounds.py",
                "return policies[0] in sources and sources.issubset(policies)",
                "return sources == {policies[0]}",
                (f"{COLLECTING}::test_half_of_the_responses_are_the_baselines_unless_it_is_the_policy_itself",),
            ),
            Mutant(
                "a finished stage is reused although its config has changed",
                "runs/pipeline.py",
                "in changed_since(stage.folder, stage.config):",
                "in ():",
                (f"{ROUNDS}::test_a_stage_that_ended_with_another_config_is_refused",),
            ),
            Mutant(
                "what later stages have left of an earlier pass counts as theirs",
                "runs/pipeline.py",
                "for stage in self.ahead[1:]:",
                "for stage in ():",
                (f"{ROUNDS}::test_a_stage_that_runs_again_takes_those_after_it_along",),
            ),
        ),
    ),
    Row(
        "the members of an ensemble are one model; fewer of them score than were trained",
        "each member has a seed of its own, and whatever takes its reward from the stage gets them all",
        (
            Mutant(
                "all members are trained from one seed",
                "commands/stages.py",
                '"seed": pipeline["seed"] + number}',
                '"seed": pipeline["seed"]}',
                (f"{MEMBERS}::test_a_stage_with_members_trains_each_from_a_seed_of_its_own",),
            ),
            Mutant(
                "a seed for all members is accepted, and makes them the same",
                "commands/stages.py",
                'if "seed" in _set_in(stage, given):',
                "if False:",
                (f"{MEMBERS}::test_what_is_wrong_with_an_ensemble_is_said_before_the_first_stage",),
            ),
            Mutant(
                "PPO's reward is the first member alone",
                "commands/stages.py",
                'several if key == "reward_from" else several[0]',
                "several[0]",
                (f"{MEMBERS}::test_the_stage_that_takes_its_reward_from_them_gets_them_all",),
            ),
            Mutant(
                "the proxy is the members that have ended",
                "commands/pipeline_evaluation.py",
                "any(stage not in pipeline.ended for stage in stages)",
                "all(stage not in pipeline.ended for stage in stages)",
                (f"{MEMBERS}::test_the_proxy_is_the_ensemble_once_all_members_have_ended",),
            ),
            Mutant(
                "an ensemble's figures are sums",
                "runs/members.py",
                "(1 if key.endswith(_ADDED_UP) else len(each))",
                "1",
                (f"{MEMBERS}::test_the_summary_has_the_mean_of_the_members_and_the_sum_of_their_times",),
            ),
        ),
    ),
    Row(
        "a judge reports numbers that are not its own; labels from another tool land on the other answer",
        (
            "log-probabilities are those of a plain forward pass; nothing is asked twice; answers are read in the "
            "order in which the store shows them"
        ),
        (
            Mutant(
                "verdicts are read where the padding is",
                "judging/local.py",
                "wanted[torch.arange(len(rows), device=self.device), lengths - 1] = True",
                "wanted[:, -1] = True",
                ("judging/test_local.py::test_log_probabilities_are_those_of_a_plain_forward_pass",),
            ),
            Mutant(
                "what a judge has answered is not kept",
                "judging/cache.py",
                "if self._path is not None and answers:",
                "if False:",
                ("judging/test_local.py::test_what_was_asked_is_known_to_the_next_judge_of_the_same_model",),
            ),
            Mutant(
                "a rating is the most likely one's place, not the mean",
                "judging/rating.py",
                "return float((ratings @ weights / weights.sum() - MIDDLE) / REACH)",
                "return float((values.argmax() - MIDDLE) / REACH)",
                ("judging/test_rating.py::test_a_score_is_the_mean_rating_scaled",),
            ),
            Mutant(
                "an imported choice keeps its place where the store shows the answers the other way round",
                "feedback/interchange.py",
                'return Answer("choice", places.index(answer.choice), answer.strength)',
                "return answer",
                (
                    "feedback/test_interchange.py::test_an_answer_is_read_in_the_order_in_which_the_store_shows_the_task",
                ),
            ),
            Mutant(
                "a test file of an earlier export stays beside rows that hold its prompts",
                "feedback/export.py",
                '(root / f"{name}_test.jsonl").unlink(missing_ok=True)',
                "pass",
                ("feedback/test_export.py::test_without_held_out_rows_no_test_file_is_left_to_learn_from",),
            ),
        ),
    ),
    Row(
        "a response or another site can act through the labelling page",
        (
            "HTML is shown as text, and links lead only to the web; forms carry the session's token and come from "
            "this server"
        ),
        (
            Mutant(
                "HTML in a response is HTML on the page",
                "feedback/pages/markdown.py",
                '.disable(["image", "html_inline", "html_block"])',
                '.disable(["image"])\n        self.options["html"] = True',
                (f"{PAGES}::test_what_a_response_contains_does_nothing",),
            ),
            Mutant(
                "any link is a link",
                "feedback/pages/markdown.py",
                'parts.scheme in ("http", "https") and bool(parts.netloc)',
                "True",
                (f"{PAGES}::test_what_a_response_contains_does_nothing",),
            ),
            Mutant(
                "the token of a form is not compared",
                ACCESS,
                "bool(request.cookies.get(LABELER)) and _same(token, form_token(request))",
                "bool(request.cookies.get(LABELER))",
                (f"{PAGES}::test_what_another_page_sends_or_what_cannot_be_is_refused",),
            ),
            Mutant(
                "a server for the network needs no tokens",
                ACCESS,
                "if not self.tokens and not is_local(self.host, self.url):",
                "if False:",
                (f"{PAGES}::test_beyond_this_machine_tokens_are_needed",),
            ),
        ),
    ),
)
