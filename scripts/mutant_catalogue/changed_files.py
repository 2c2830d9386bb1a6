"""Bugs of files that have changed on the disk: what is read is not what was written."""

from __future__ import annotations

from mutant_catalogue.rows import Mutant, Row

HASHES = "test_hashes.py"
FOLDERS = "models/test_changed_folders.py"
RUNS = "commands/test_changed_runs.py"
FLIPPED = f"{FOLDERS}::test_a_flipped_bit_is_refused_by_whoever_reads_the_file"
MANIFEST = f"{HASHES}::test_every_byte_of_a_manifest_counts"

CHANGED_FILES = (
    Row(
        "a file that has changed on disk is read as if it had not",
        (
            "every bit of every file that is read later counts: in model folders, manifests, tables and the log lines"
            " of a run"
        ),
        (
            Mutant(
                "weights are not hashed",
                "models/loading.py",
                "        with checking_weights(base):\n",
                "        if True:\n",
                (FLIPPED,),
            ),
            Mutant(
                "what the weights' hash has found is dropped",
                "hashes.py",
                "            pending.result()\n",
                "            pass\n",
                (FLIPPED,),
            ),
            Mutant(
                "an adapter's weights are not hashed",
                "models/adapters.py",
                "    check_model_files(folder, weights=True)\n",
                "",
                (f"{FOLDERS}::test_an_adapter_and_its_base_are_as_they_were_written",),
            ),
            Mutant(
                "the small files of a run's model are not hashed",
                "models/loading.py",
                '        check_model_files(folder / "model")\n',
                "",
                (FLIPPED,),
            ),
            Mutant(
                "sizes alone are looked at",
                "hashes.py",
                '            same = sha256_of(path) == entry["sha256"]\n',
                "            pass\n",
                (f"{HASHES}::test_every_byte_of_every_file_counts",),
            ),
            Mutant(
                "a damaged list counts as none",
                "hashes.py",
                "    if not whole:\n",
                "    if not whole:\n        return None\n    if False:\n",
                (f"{HASHES}::test_every_byte_of_the_list_itself_counts",),
            ),
            Mutant(
                "files that are not listed are read",
                "hashes.py",
                "    for path in _extra(root, listed):\n",
                "    for path in ():\n",
                (f"{HASHES}::test_a_missing_and_a_new_file_are_refused",),
            ),
            Mutant(
                "a list names files outside its folder",
                "hashes.py",
                "    return inside and isinstance(",
                "    return isinstance(",
                (f"{HASHES}::test_a_list_cannot_name_files_outside_its_folder",),
            ),
            Mutant(
                "a folder that is saved over keeps its hashes",
                "models/saving.py",
                "    forget_hashes(folder)\n",
                "",
                (f"{FOLDERS}::test_what_is_saved_over_a_folder_makes_its_hashes_void",),
            ),
            Mutant(
                "a trained model has no hashes",
                "models/saving.py",
                "        write_hashes(folder)\n",
                "        pass\n",
                (f"{FOLDERS}::test_a_module_exports_a_folder_with_hashes",),
            ),
            Mutant(
                "an adapter is exported without checking its hashes",
                "commands/export.py",
                "    check_model_files(run.model_folder, weights=True)\n",
                "",
                (f"{RUNS}::test_an_adapter_is_copied_only_as_it_was_written",),
            ),
            Mutant(
                "a run's summary is read without checking its hash",
                "runs/run.py",
                '    check_files(folder, ("config.yaml", "summary.json"))\n',
                "",
                (f"{RUNS}::test_what_a_card_tells_of_a_run_is_what_the_run_has_written",),
            ),
            Mutant(
                "a new run keeps the hashes of the one before",
                "runs/run_folder.py",
                "        first()\n        forget_hashes(folder)\n",
                "        first()\n",
                (f"{RUNS}::test_a_new_run_that_is_killed_early_leaves_no_hashes_of_the_former_one",),
            ),
            Mutant(
                "any entry of a manifest may have changed",
                "durable.py",
                "        whole = text in (",
                "        whole = True or text in (",
                (MANIFEST,),
            ),
            Mutant(
                "a checkpoint is loaded whatever its manifest says",
                "callbacks/checkpoint_io.py",
                "        _check_manifest(path)\n",
                "",
                ("test_hashes.py::test_a_checkpoint_is_loaded_as_its_manifest_says",),
            ),
            Mutant(
                "a table of log-probabilities is used without checking its hash",
                "training/reference_table.py",
                '        whole = saved.pop("sha256") == _digest(saved)\n',
                "        whole = True\n",
                ("algorithms/test_dpo.py::test_a_table_that_has_changed_on_the_disk_is_computed_again",),
            ),
            Mutant(
                "a resumed run goes on with other lines",
                "callbacks/metrics_file.py",
                "            self._logger.lines.check(self._saved)\n",
                "            pass\n",
                ("callbacks/test_metrics_file.py::test_lines_that_have_changed_since_the_checkpoint_are_refused",),
            ),
            Mutant(
                "a resumed run goes on with other samples",
                "callbacks/sample_table.py",
                '        Lines(self._file(trainer)).check(checkpoint.get("sample_table", {}))\n',
                "        pass\n",
                ("callbacks/test_sample_table.py::test_rows_that_have_changed_since_the_checkpoint_are_refused",),
            ),
            Mutant(
                "a simulated world is used without checking its hashes",
                "simulation/writing.py",
                "    check_files(target)\n",
                "",
                ("simulation/test_writing.py::test_a_world_that_has_changed_on_the_disk_is_refused_and_left_alone",),
            ),
        ),
    ),
)
