"""Bugs of resuming and of several processes."""

from __future__ import annotations

from mutant_catalogue.rows import Mutant, Row

PPO = "algorithms/ppo.py"
LOADER = "data/loader.py"
RESUME = "algorithms/test_resume.py"
AVERAGE = "callbacks/trainable_average.py"
OF_AVERAGE = "callbacks/test_trainable_average.py"
WINDOW = "data/test_loader.py::test_the_gradient_of_a_window_is_the_mean_over_its_weight"
ONCE = "data/test_loader.py::test_ranks_yield_equally_many_batches_and_every_row_counts_once"
INTERRUPTED = "algorithms/test_interrupted.py"
POINTS = "algorithms/test_resume_points.py"
ANY_POINT = f"{POINTS}::test_a_run_resumed_from_any_of_its_checkpoints_ends_bitwise_the_same"
ANY_KILL = "test_durable.py::test_a_kill_at_any_point_leaves_the_former_or_the_new_checkpoint_whole"
NEXT_BATCH = "data/test_loader.py::test_a_loaded_state_goes_on_with_the_next_batch_then_with_whole_epochs"

STATE = (
    Row(
        "the adaptive coefficient or other state is lost on resume",
        "each declared key is saved and restored; a resumed run ends bitwise like an uninterrupted one",
        (
            Mutant(
                "the KL coefficient is lost",
                "algorithms/on_policy.py",
                '("kl_controller", "reward_moments", "part_moments")',
                '("reward_moments", "part_moments")',
                (f"{RESUME}::test_a_tampered_key_of_a_ppo_checkpoint_is_noticed[kl_controller]",),
            ),
            Mutant(
                "the reward's running moments are lost",
                "algorithms/on_policy.py",
                '("kl_controller", "reward_moments", "part_moments")',
                '("kl_controller", "part_moments")',
                (f"{RESUME}::test_a_tampered_key_of_a_ppo_checkpoint_is_noticed[reward_moments]",),
            ),
            Mutant(
                "torch's random state is not in the checkpoint",
                "callbacks/resume.py",
                '        torch.set_rng_state(state["torch"])\n',
                "",
                (f"{RESUME}::test_a_resumed_run_is_bitwise_the_uninterrupted_one[sft]",),
            ),
            Mutant(
                "NumPy's random state is not in the checkpoint",
                "callbacks/resume.py",
                "        np.random.set_state((",
                "        _ = ((",
                ("invariants/test_state.py::test_a_checkpoint_restores_the_random_numbers_of_every_library[numpy]",),
            ),
            Mutant(
                "Python's random state is not in the checkpoint",
                "callbacks/resume.py",
                "        random.setstate((",
                "        _ = ((",
                ("invariants/test_state.py::test_a_checkpoint_restores_the_random_numbers_of_every_library[python]",),
            ),
            Mutant(
                "the average of the weights is lost",
                AVERAGE,
                "loaded.get(name, parameter.detach())",
                "parameter.detach()",
                (f"{OF_AVERAGE}::test_a_resumed_run_ends_with_the_same_average",),
            ),
            Mutant(
                "a checkpoint has the average of the step before",
                AVERAGE,
                "        callbacks.insert(0, self)",
                "        callbacks.append(self)",
                (f"{OF_AVERAGE}::test_the_average_of_a_step_is_there_for_a_callback_that_saves_after_it",),
            ),
            Mutant(
                "training goes on from the average after a validation",
                AVERAGE,
                "        if self._live is not None and trainer.state.fn == TrainerFn.FITTING:",
                "        if self._live is None and trainer.state.fn == TrainerFn.FITTING:",
                (f"{OF_AVERAGE}::test_a_validation_sees_the_average_and_training_sees_nothing_of_it",),
            ),
            Mutant(
                "a validation rounds the average to the type of the weights",
                AVERAGE,
                "                parameter.copy_(source[name])\n",
                "                source[name] = parameter.copy_(source[name]).detach().float().clone()\n",
                (f"{OF_AVERAGE}::test_rounding_to_the_weights_type_does_not_enter_the_average",),
            ),
            Mutant(
                "a validation asked to use the average uses the live weights",
                AVERAGE,
                "        if self.validate and trainer",
                "        if not self.validate and trainer",
                (f"{OF_AVERAGE}::test_a_validation_sees_the_average_and_training_sees_nothing_of_it",),
            ),
            Mutant(
                "an error in a validation leaves the average where a callback may save it as the live weights",
                AVERAGE,
                'may save them now."""\n        if self._live is not None:',
                'may save them now."""\n        if self._live is None:',
                (f"{OF_AVERAGE}::test_an_error_in_a_validation_leaves_the_live_weights",),
            ),
            Mutant(
                "the data's position is one batch early",
                LOADER,
                "self._position = step + 1",
                "self._position = step",
                (NEXT_BATCH,),
            ),
            Mutant(
                "the data's epoch is lost",
                LOADER,
                'self.epoch = state["epoch"]',
                "self.epoch = 0",
                (NEXT_BATCH,),
            ),
            Mutant(
                "the order of an epoch comes from the global generator",
                LOADER,
                "np.random.default_rng([self.seed, self.epoch])",
                "np.random",
                ("data/test_loader.py::test_the_order_is_a_function_of_seed_and_epoch",),
            ),
            Mutant(
                "every epoch has the same order",
                LOADER,
                "default_rng([self.seed, self.epoch])",
                "default_rng([self.seed])",
                ("data/test_loader.py::test_the_order_is_a_function_of_seed_and_epoch",),
            ),
            Mutant(
                "PPO starts at the first prompt in every iteration",
                "algorithms/iterations.py",
                "self.current_epoch * count, count",
                "0, count",
                ("invariants/test_sampling.py::test_every_prompt_comes_once_a_pass_over_all_ranks_and_iterations",),
            ),
            Mutant(
                "frozen weights fill the checkpoint",
                "algorithms/base.py",
                " if k not in frozen}",
                "}",
                ("algorithms/test_sft.py::test_only_what_is_trained_is_in_the_checkpoint",),
            ),
        ),
    ),
    Row(
        "a kill or a resume loses a part of the run",
        (
            "at every moment of a save there is a complete checkpoint; a run resumed from any checkpoint, also within"
            " an epoch, ends with the weights and log lines of an uninterrupted run"
        ),
        (
            Mutant(
                "the epoch's data starts again where a scheduler has asked for its length",
                "callbacks/resume.py",
                "trainer.train_dataloader.load_state_dict(self._position[0])",
                "pass",
                (f"{ANY_POINT}[every step]",),
            ),
            Mutant(
                "a checkpoint is saved while gradients accumulate",
                "callbacks/resumable_checkpoint.py",
                "return not trainer.is_last_batch and ends_step(trainer, batch_idx)",
                "return not trainer.is_last_batch",
                (f"{POINTS}::test_sigterm_lets_an_accumulation_end",),
            ),
            Mutant(
                "a checkpoint is saved before a validation, which a resumed run leaves out",
                "callbacks/resumable_checkpoint.py",
                "return not validates",
                "return True",
                (f"{ANY_POINT}[not before a validation, but soon after]",),
            ),
            Mutant(
                "the last checkpoint is saved only at the end of training",
                "callbacks/resumable_checkpoint.py",
                "if (self._epoch_due(trainer) or self._due) and",
                "if self._due and",
                (f"{ANY_POINT}[every epoch]",),
            ),
            Mutant(
                "the line of the checkpoint's step is lost",
                "callbacks/metrics_file.py",
                "self._logger.append(pending)",
                "pass",
                (f"{ANY_POINT}[every second step]", f"{POINTS}::test_an_iteration_of_ppo_is_resumed_with_its_line"),
            ),
            Mutant(
                "what was recorded since the last line is lost",
                "training/recording.py",
                "self._metric(name).restore(sums)",
                "pass",
                (f"{ANY_POINT}[every step]",),
            ),
            Mutant(
                "a checkpoint is renamed before its manifest is written",
                "durable.py",
                "        before_rename(hashing)\n        os.replace(beside, path)\n",
                "        os.replace(beside, path)\n        before_rename(hashing)\n",
                (ANY_KILL,),
            ),
            Mutant(
                "the manifest forgets the previous checkpoint",
                "durable.py",
                "[entry, *read_manifest(path)]",
                "[entry]",
                (ANY_KILL,),
            ),
            Mutant(
                "a checkpoint saved within a PPO iteration passes for one saved at its end",
                "algorithms/iterations.py",
                "        self._collected = True\n",
                "",
                (f"{INTERRUPTED}::test_in_every_hook_a_checkpoint_says_whether_a_run_resumes_from_it[ppo]",),
            ),
            Mutant(
                "a checkpoint that says it cannot be resumed from is resumed",
                "algorithms/base.py",
                'if reason := checkpoint.get("cannot_resume"):',
                'if reason := checkpoint.get("cannot_resume_"):',
                (f"{INTERRUPTED}::test_where_it_does_not_the_run_is_refused",),
            ),
            Mutant(
                "an exception replaces the last good checkpoint by one from within a step",
                "callbacks/resumable_checkpoint.py",
                "        if ask() is None:  #",
                "        if True:  #",
                (f"{INTERRUPTED}::test_an_exception_leaves_the_last_good_checkpoint",),
            ),
            Mutant(
                "Lightning queues SLURM jobs again, from wherever they are",
                "commands/build.py",
                "SLURMEnvironment(auto_requeue=False)",
                "SLURMEnvironment()",
                ("commands/test_build.py::test_under_srun_lightning_does_not_queue_jobs_again_itself",),
            ),
            Mutant(
                "a resumed run is a new MLflow run",
                "tracking/run_tracking.py",
                "            former = live_run(run.folder, client, uri)",
                "            former = None",
                ("commands/test_mlflow_runs.py::test_a_resumed_run_goes_on_in_its_own",),
            ),
            Mutant(
                "every node has a first process",
                "runs/ranks.py",
                'return _number("NODE_RANK" if os.environ.get("NODE_RANK") else "GROUP_RANK"), ',
                "return 0, ",
                ("commands/test_ranks.py::test_only_global_rank_0_writes",),
            ),
            Mutant(
                "SIGTERM saves nothing",
                "callbacks/sigterm.py",
                "            self._save(trainer)\n",
                "            pass\n",
                (f"{POINTS}::test_sigterm_saves_after_the_step_and_the_resumed_run_is_the_same[2]",),
            ),
        ),
    ),
    Row(
        "2 processes train differently from 1",
        "the same global batch gives the same gradient; in one process this is checked through the denominators",
        (
            Mutant(
                "the loader leaves the number of processes out",
                LOADER,
                "[total / (self.accumulate * self.world_size)]",
                "[total / self.accumulate]",
                (WINDOW,),
            ),
            Mutant(
                "PPO leaves the number of processes out",
                "rollout/loader.py",
                "parts = self.order(), rollout.mask.device, self.accumulate * self.world_size",
                "parts = self.order(), rollout.mask.device, self.accumulate",
                ("invariants/test_losses.py::test_a_minibatch_is_divided_by_the_tokens_of_all_processes",),
            ),
            Mutant(
                "PPO divides by the tokens of its own process",
                "rollout/loader.py",
                "self.total(float(x[minibatch].sum()))",
                "float(x[minibatch].sum())",
                ("invariants/test_losses.py::test_a_minibatch_is_divided_by_the_tokens_of_all_processes",),
            ),
        ),
    ),
    Row(
        "the last batch is uneven",
        "with 7 rows, batch size 2 and 2 ranks, each rank gets the same number of batches and every row counts once",
        (
            Mutant(
                "the last rows are dropped",
                LOADER,
                "range(0, len(order), size)",
                "range(0, len(order) - size + 1, size)",
                (ONCE,),
            ),
            Mutant(
                "a row is repeated to fill a rank's place",
                LOADER,
                "self.rows[global_batch[0]].emptied()",
                "self.rows[global_batch[0]]",
                (ONCE,),
            ),
            Mutant(
                "a preference that fills a place counts",
                "data/batches.py",
                "-> TokenizedPreference:\n        return replace(self, weight=0.0)",
                "-> TokenizedPreference:\n        return replace(self)",
                ("data/test_loader.py::test_a_rank_without_a_row_gets_a_preference_that_does_not_count",),
            ),
        ),
    ),
)
