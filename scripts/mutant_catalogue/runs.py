"""Bugs of run folders: whose a checkpoint is, and what a disk that fails leaves."""

from __future__ import annotations

from mutant_catalogue.rows import Mutant, Row

DISK = "test_disk.py"
IDENTITY = "run_identity.py"
TIMES = "test_run_identity.py::test_the_times_of_files_do_not_matter"
CLOCK = "test_run_identity.py::test_a_clock_that_is_set_in_the_middle_of_a_run_does_not_change_the_order"

RUNS = (
    Row(
        "a copy, a restored backup or a changed clock makes another checkpoint the last one",
        "the newest checkpoint is the one this run saved last, whatever the timestamps of the files say",
        (
            Mutant(
                "the newest checkpoint is the one with the newest time",
                IDENTITY,
                "int(saved > 0), saved, _time_of(checkpoint)",
                "int(saved > 0), _time_of(checkpoint), saved",
                (TIMES,),
            ),
            Mutant(
                "a checkpoint older than the start of its run counts as an earlier run's",
                IDENTITY,
                "        return bool(run_id != started.run_id)\n",
                "        return _time_of(checkpoint) < _began(started, started_in)\n",
                (TIMES,),
            ),
            Mutant(
                "the order of saving is the clock's",
                IDENTITY,
                "max(self._last + 1, time.time_ns())",
                "time.time_ns()",
                (CLOCK,),
            ),
            Mutant(
                "the numbering of saves starts over when a run is resumed",
                IDENTITY,
                "max(self._last, latest(folder), started.since if started else 0)",
                "self._last",
                (CLOCK,),
            ),
            Mutant(
                "a new run begins under the previous one's id",
                IDENTITY,
                "Started(uuid.uuid4().hex, latest(folder, *others), job)",
                'Started("0", latest(folder, *others), job)',
                ("test_run_identity.py::test_a_second_run_in_a_folder_is_another_one_however_the_clock_is_set",),
            ),
            Mutant(
                "the best checkpoints are looked for where the run began",
                "callbacks/resumable_checkpoint.py",
                "self._found_here(state_dict, Path(here)) or state_dict",
                "state_dict",
                ("commands/test_moved_runs.py::test_the_best_checkpoints_of_a_copy_are_its_own",),
            ),
            Mutant(
                "a job that is queued again resumes what was there before it",
                "run_identity.py",
                "saved > started.since if saved",
                "True if saved",
                ("commands/test_launching.py::test_a_job_that_is_queued_again_resumes_what_it_has_saved_itself",),
            ),
        ),
    ),
    Row(
        "a full disk destroys existing files, or ends in a traceback",
        (
            "a file that cannot be written completely leaves the previous file intact and nothing beside it; one line"
            " says what to do"
        ),
        (
            Mutant(
                "half a line stays at the end of metrics.jsonl",
                "durable.py",
                "                os.truncate(path, length)\n",
                "                pass\n",
                (f"{DISK}::test_lines_that_do_not_go_in_whole_leave_the_file_as_it_was",),
            ),
            Mutant(
                "a partly written file stays beside the previous one",
                "durable.py",
                "            beside.unlink(missing_ok=True)  # a full disk needs the room\n",
                "            pass\n",
                (f"{DISK}::test_a_limit_of_size_leaves_the_former_checkpoint_and_no_temporary_file",),
            ),
            Mutant(
                "a run takes its folder over before there is room for its config",
                "runs/run_folder.py",
                "        first()\n        forget_hashes(folder)\n",
                '        (folder / "summary.json").unlink(missing_ok=True)\n        first()\n',
                (f"{DISK}::test_a_run_that_cannot_take_its_folder_over_leaves_it_to_the_earlier_one",),
            ),
            Mutant(
                "a disk's error is lost behind the one that it led to",
                "disk.py",
                "following.__cause__ or (None if following.__suppress_context__ else following.__context__)",
                "None",
                (f"{DISK}::test_an_error_of_the_disk_is_found_behind_those_that_it_led_to",),
            ),
            Mutant(
                "a log on a full disk stops the run",
                "guarded_streams.py",
                "            if disk_error(error) is None:\n                raise\n",
                "            raise\n",
                (f"{DISK}::test_a_log_on_a_full_disk_does_not_stop_a_command_and_is_said_at_its_end",),
            ),
            Mutant(
                "the table of samples is sent from its first row on, every time",
                "callbacks/sample_table.py",
                "            if number < first * ROWS_PER_TABLE:\n",
                "            if number < 0:\n",
                ("callbacks/test_sample_table.py::test_a_table_that_has_grown_long_is_followed_by_another",),
            ),
        ),
    ),
)
