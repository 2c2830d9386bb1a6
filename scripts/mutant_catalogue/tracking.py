"""Bugs of what goes to a tracking store: a run that it holds up, points that it never gets, or gets twice."""

from __future__ import annotations

from mutant_catalogue.rows import Mutant, Row

TRACKER = "callbacks/tracker.py"
STORE = "callbacks/mlflow_store.py"
COMMANDS = "tracking/run_tracking.py"
TESTS = "callbacks/test_tracker.py::test_"
RUNS = "commands/test_mlflow_runs.py::test_"

TRACKING = (
    Row(
        "a tracking store that is slow, down or wrong delays a run, misses a part of it, or holds a part twice",
        (
            "the end of a run waits for a limited time; only what failed is tried again; the store has each point of "
            "`metrics.jsonl` once"
        ),
        (
            Mutant(
                "the run waits for a slow store without a limit",
                TRACKER,
                "now - began >= seconds or stuck",
                "stuck",
                (f"{TESTS}the_end_waits_for_a_slow_store_only_so_long_in_all",),
            ),
            Mutant(
                "the run waits for a call that hangs",
                TRACKER,
                " >= LONGEST_CALL",
                " >= 100 * LONGEST_CALL",
                (f"{TESTS}the_end_waits_for_a_call_that_hangs_only_so_long",),
            ),
            Mutant(
                "the run waits for a dead store for the whole time limit",
                TRACKER,
                "now - max(began, failing) >= patience",
                "False",
                (f"{TESTS}the_end_waits_for_a_dead_store_only_so_long_and_says_what_is_left",),
            ),
            Mutant(
                "memory grows while a store is away",
                TRACKER,
                "len(self._points) + len(points) > MOST_POINTS",
                "False",
                (f"{TESTS}queueing_never_waits_and_its_memory_is_bounded",),
            ),
            Mutant(
                "a refused point takes its whole batch with it",
                TRACKER,
                "if len(batch) == 1:",
                "if batch:",
                (f"{TESTS}what_is_refused_for_good_is_left_out_alone_with_one_line",),
            ),
            Mutant(
                "a call that fails keeps the end waiting for ever",
                TRACKER,
                "all(work.failures > 0 or work.last for work in free)",
                "all(work.last for work in free)",
                (f"{TESTS}what_fails_does_not_keep_the_rest_waiting_nor_the_end",),
            ),
            Mutant(
                "every failure prints a line",
                "callbacks/notice.py",
                "        if not self.said_outage:\n",
                "        if True:\n",
                (f"{TESTS}an_outage_loses_nothing_repeats_nothing_and_is_one_line",),
            ),
            Mutant(
                "the reason shows a password",
                "callbacks/notice.py",
                "on_one_line(self._clean(reason(error, _LONGEST)))",
                "on_one_line(reason(error, _LONGEST))",
                (f"{TESTS}no_password_is_in_a_line",),
            ),
            Mutant(
                "an attempt whose answer was lost is made again",
                STORE,
                "self.attempts > 1 and (made := self._made(client, experiment))",
                "(made := [])",
                ("callbacks/test_mlflow_store.py::test_a_run_whose_making_was_not_answered_is_not_made_twice",),
            ),
            Mutant(
                "an unreachable server ends the run before it begins",
                "tracking/store_check.py",
                "        return  # the run goes on, and says so\n",
                "        raise UserError(f'logger.tracking_uri: {uri} does not answer')\n",
                ("commands/test_store_check.py::test_a_dead_server_is_no_reason_not_to_train",),
            ),
            Mutant(
                "steps that are done again are logged again",
                COMMANDS,
                "logger.known = known_points(client, former, names, run.steps_before or 0)",
                "logger.known = {}",
                (f"{RUNS}steps_that_are_done_again_are_not_logged_again",),
            ),
            Mutant(
                "what a killed run had not sent is never sent",
                COMMANDS,
                "logger.outbox.troubled |= run.resumes",
                "logger.outbox.troubled |= False",
                (f"{RUNS}what_a_killed_run_had_not_sent_is_sent_at_the_end_of_the_resumed_one",),
            ),
            Mutant(
                "a run that was stopped goes on for ever in its store",
                COMMANDS,
                '"FAILED" if signal_of(error) is None else "KILLED"',
                '"RUNNING"',
                (f"{RUNS}a_run_that_fails_or_is_stopped_ends_in_its_store",),
            ),
            Mutant(
                "rlhf-track forgets whose stages they are",
                "tracking/sending.py",
                '{} if parent_id is None else {"mlflow.parentRunId": parent_id}',
                "{}",
                ("commands/test_track.py::test_a_pipeline_is_sent_with_its_stages_under_it",),
            ),
        ),
    ),
)
