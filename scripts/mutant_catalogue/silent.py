"""Bugs that nobody reports: runs that end well without a model, or with one that is worth nothing."""

from __future__ import annotations

from mutant_catalogue.rows import Mutant, Row

LAST = "callbacks/test_last_loss.py"
ORIGIN = "algorithms/test_origin.py"

SILENT = (
    Row(
        "the last step makes the weights diverge, and they are saved and exported",
        "the loss of the last batch is computed once more before a checkpoint, without changing any number",
        (
            Mutant(
                "the last loss is never too large",
                "callbacks/last_loss.py",
                "        bad = not (math.isfinite(loss) and loss <= limit)\n",
                "        bad = not math.isfinite(loss)\n",
                (f"{LAST}::test_a_last_step_that_blows_up_leaves_the_former_checkpoint",),
            ),
            Mutant(
                "looking again records metrics",
                "algorithms/base.py",
                "        self._records = False\n        try:",
                "        self._records = True\n        try:",
                (f"{LAST}::test_looking_changes_no_number",),
            ),
        ),
    ),
    Row(
        "a resumed run continues with another reward, or with other columns for it",
        "a checkpoint is resumed only with the same rows, reward and reference",
        (
            Mutant(
                "the columns that rewards read are not in the hash",
                "data/batches.py",
                "json.dumps([self.text, self.columns], sort_keys=True, default=_spelled)",
                "json.dumps([self.text], sort_keys=True, default=_spelled)",
                (f"{ORIGIN}::test_changed_columns_that_only_the_reward_reads_are_refused",),
            ),
            Mutant(
                "margins are not in the hash",
                "data/batches.py",
                "repr((len(self.prompt_ids), self.pairs, self.margin,",
                "repr((len(self.prompt_ids), self.pairs,",
                (f"{ORIGIN}::test_changed_held_out_rows_margins_and_text_are_refused",),
            ),
        ),
    ),
    Row(
        "user code exits with sys.exit(0), or hangs",
        "a command ends with 0 only if it is done, and a call ends at its time limit",
        (
            Mutant(
                "an interrupt that is raised by hand counts as Ctrl-C",
                "errors.py",
                'dis.opmap["RAISE_VARARGS"]',
                'dis.opmap["NOP"]',
                ("test_errors.py::test_whatever_a_call_of_the_users_raises_names_the_key",),
            ),
            Mutant(
                "the alarm rings once only",
                "rewards/deadline.py",
                "signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN)",
                "signal.setitimer(signal.ITIMER_REAL, seconds)",
                ("rewards/test_deadline.py::test_a_function_that_hangs_is_broken_off",),
            ),
        ),
    ),
)
