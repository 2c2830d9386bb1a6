"""Bugs of stopping: a signal that is lost, or that loses something."""

from __future__ import annotations

from mutant_catalogue.rows import Mutant, Row

STOPPING = "test_stopping.py"

SIGNALS = (
    Row(
        "a signal is lost, or loses something",
        (
            "Ctrl-C, SIGTERM and SIGHUP print one line and exit with 128 plus their number, whatever a library does "
            "with them; a save in progress is finished, and the line is true of this run"
        ),
        (
            Mutant(
                "a checkpoint that is being saved is cut short",
                "stopping.py",
                "    if _state.held or _state.follows:\n",
                "    if _state.follows:\n",
                (f"{STOPPING}::test_a_file_that_is_written_durably_is_written_whole",),
            ),
            Mutant(
                "a stop that a library catches is lost",
                "stopping.py",
                "    _state.raised = weakref.ref(error, _when_dropped)\n",
                "    _state.raised = None\n",
                (f"{STOPPING}::test_a_stop_that_a_library_catches_is_raised_again",),
            ),
            Mutant(
                "what a library makes of a stop passes for a bug",
                "stopping.py",
                "    if _state.signum is not None and not _state.follows:\n        return _state.signum\n",
                "",
                (f"{STOPPING}::test_after_a_signal_every_exception_is_the_stop",),
            ),
            Mutant(
                "a stop while a model is exported ends with 0",
                "runs/after_training.py",
                "            check()  # else",
                "            pass  # else",
                ("commands/test_after_training.py::test_a_stop_is_not_a_problem_of_a_step",),
            ),
            Mutant(
                "a model's folder is moved away and the new one not put in its place",
                "runs/after_training.py",
                "        with held():\n",
                "        if True:\n",
                ("commands/test_after_training.py::test_a_stop_between_the_renames_leaves_a_whole_model",),
            ),
            Mutant(
                "a second Ctrl-C waits, too",
                "stopping.py",
                "                _leave_at_once()\n",
                "                pass\n",
                (f"{STOPPING}::test_a_second_interrupt_ends_all_at_once[held]",),
            ),
            Mutant(
                "a Ctrl-C that `make` passes on counts twice",
                "stopping.py",
                " and now - _state.first >= REPEAT",
                "",
                (f"{STOPPING}::test_a_second_interrupt_ends_all_at_once[held]",),
            ),
            Mutant(
                "nohup has no effect",
                "stopping.py",
                "        if signal.getsignal(signum) != signal.SIG_IGN:\n",
                "        if True:\n",
                (f"{STOPPING}::test_an_ignored_signal_stays_ignored",),
            ),
            Mutant(
                "a previous run's checkpoint is named to continue from",
                "runs/run.py",
                "        own = self.begun and ",
                "        own = ",
                ("commands/test_going_on.py::test_before_a_run_has_begun_a_former_ones_checkpoint_does_not_count",),
            ),
            Mutant(
                "a folder's name is not quoted in what is pasted",
                "runs/quoting.py",
                "{key}={quoted(str(value))}",
                "{key}={value}",
                ("commands/test_quoting.py::test_a_folders_name_arrives_through_the_shell_and_hydra",),
            ),
        ),
    ),
)
