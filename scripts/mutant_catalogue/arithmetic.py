"""Bugs at the edges of training's arithmetic: controllers, schedules, windows of metrics, ends within an iteration."""

from __future__ import annotations

from mutant_catalogue.rows import Mutant, Row

KL = "experience/kl_control.py"
CONTROLLERS = "algorithms/test_kl_controllers.py"
LOOPS = "exact/test_controller.py"
PPO = "algorithms/ppo.py"
POINTS = "algorithms/test_resume_points.py"
CUT = f"{POINTS}::test_a_run_that_ended_within_an_epoch_goes_on_there"
PARTS = "algorithms/test_microbatches.py::test_values_gradients_and_metrics_do_not_depend_on_the_budget"
SCHEDULE = "algorithms/test_schedule.py"

ARITHMETIC = (
    Row(
        "a KL coefficient stops being a penalty",
        "it stays above 0, changes by at most a fifth per iteration, recovers from any extreme, and is never NaN",
        (
            Mutant(
                "more than five horizons in an iteration turn the coefficient negative",
                KL,
                "min(n_episodes, self.horizon) / self.horizon",
                "n_episodes / self.horizon",
                (
                    f"{CONTROLLERS}::test_an_adaptive_coefficient_is_positive_and_moves_by_at_most_a_fifth",
                    f"{CONTROLLERS}::test_a_horizon_shorter_than_an_iteration_settles",
                ),
            ),
            Mutant(
                "the coefficient falls to where nothing raises it again",
                KL,
                "min(max(self.moved(kl, n_episodes), lowest), highest)",
                "self.moved(kl, n_episodes)",
                (f"{CONTROLLERS}::test_a_coefficient_comes_back_from_where_ten_thousand_iterations_have_driven_it",),
            ),
            Mutant(
                "a first coefficient of 0 is taken",
                KL,
                "if not 0 < value < math.inf:",
                "if not 0 <= value < math.inf:",
                (f"{CONTROLLERS}::test_what_no_controller_can_work_with_is_refused",),
            ),
            Mutant(
                "the integral of the errors is lost on resume",
                KL,
                'self.integral, self.error = state["integral"], state["error"]',
                'self.error = state["error"]',
                (f"{CONTROLLERS}::test_a_resumed_pid_goes_on_where_it_was",),
            ),
            Mutant(
                "a PID controller without its exponential",
                KL,
                "self.init_coef * math.exp(min(max(exponent, -math.log(FARTHEST)), math.log(FARTHEST)))",
                "self.init_coef * (1 + exponent)",
                (
                    f"{CONTROLLERS}::test_pid_is_the_literal_formula_on_the_logarithm",
                    f"{LOOPS}::test_pid_holds_the_target_over_the_last_ten_iterations",
                ),
            ),
            Mutant(
                "a PID controller without its integral stops short of the target",
                KL,
                "self.ki * integral + self.kd",
                "self.kd",
                (f"{LOOPS}::test_pid_holds_the_target_over_the_last_ten_iterations",),
            ),
            Mutant(
                "the last error is lost on resume",
                KL,
                'self.integral, self.error = state["integral"], state["error"]',
                'self.integral = state["integral"]',
                (f"{LOOPS}::test_a_loop_that_is_cut_goes_on_bitwise",),
            ),
            Mutant(
                "the integral of the errors winds up without end",
                KL,
                "if abs(self.ki * integral) <= math.log(FARTHEST):",
                "if True:",
                (f"{CONTROLLERS}::test_a_coefficient_comes_back_from_where_ten_thousand_iterations_have_driven_it",),
            ),
        ),
    ),
    Row(
        "the schedule counts other steps than the run",
        "the learning rate decays fully even when `target_kl` skips steps, and it never rises again",
        (
            Mutant(
                "the schedule counts only the steps that were done",
                "experience/schedule.py",
                "min(max(done * int(span) // planned, by_steps), int(span))",
                "trainer.global_step",
                (f"{SCHEDULE}::test_a_schedule_comes_down_although_target_kl_leaves_out_steps",),
            ),
            Mutant(
                "the schedule runs beyond its end",
                "experience/schedule.py",
                "min(max(done * int(span) // planned, by_steps), int(span))",
                "max(done, by_steps)",
                (f"{SCHEDULE}::test_whichever_ends_the_run_ends_the_schedule_which_never_turns",),
            ),
        ),
    ),
    Row(
        "a setting is accepted by a loss that does not have it",
        "it is refused by name, in the function, in the module and before torch is imported",
        (
            Mutant(
                "label smoothing passes with every loss",
                "functional/preference.py",
                "if loss_type not in SMOOTHED and",
                "if False and",
                ("functional/test_preference.py::test_label_smoothing_is_refused_by_losses_without_it",),
            ),
        ),
    ),
    Row(
        "a token budget does not bound memory",
        "only one part's graph is alive at a time, and loss, gradients and metrics are those of the whole minibatch",
        (
            Mutant(
                "the graphs of all parts are kept",
                "experience/part_gradients.py",
                "whole = isinstance(trainer.strategy, DeepSpeedStrategy)",
                "whole = True",
                ("algorithms/test_microbatches.py::test_the_graph_of_one_part_is_alive_at_a_time[plain]",),
            ),
            Mutant(
                "the parts' gradients are thrown away before the last one's",
                "algorithms/iterations.py",
                "if not self._part_gradients.keep_gradients():",
                "if True:",
                (PARTS,),
            ),
            Mutant(
                "parts are not scaled with accumulated batches",
                "experience/part_gradients.py",
                "loss = loss / trainer.accumulate_grad_batches",
                "loss = loss + 0.0",
                ("algorithms/test_microbatches.py::test_the_budget_and_accumulated_batches_go_together",),
            ),
        ),
    ),
    Row(
        "an interrupted epoch counts as finished",
        (
            "a run that `max_steps`, `max_time` or a stop ended within an epoch continues there; PPO repeats the "
            "iteration"
        ),
        (
            Mutant(
                "a checkpoint counts an iteration that was cut as done",
                "callbacks/resumable_checkpoint.py",
                "        if self._cut:\n            return\n",
                "",
                (f"{CUT}[max_steps within an iteration]",),
            ),
            Mutant(
                "an interrupted epoch is saved only at its end",
                "callbacks/resumable_checkpoint.py",
                "if due and within_epoch(trainer, batch_idx) and",
                "if False and",
                (f"{CUT}[max_steps within an epoch]",),
            ),
            Mutant(
                "a run with a limit on steps leaves an epoch out when it is resumed",
                "callbacks/resume.py",
                "self._max_steps, trainer.fit_loop.epoch_loop.max_steps = trainer.max_steps, -1",
                "pass",
                (f"{POINTS}::test_a_run_with_a_limit_on_steps_is_resumed_from_the_end_of_an_epoch",),
            ),
        ),
    ),
    Row(
        "resuming within a logging window changes the row of metrics",
        "sums and maxima since the last row are in the checkpoint of every module",
        (
            Mutant(
                "an algorithm's own hook hides the base's",
                "training/resumed_state.py",
                "        of_base(self, checkpoint)\n",
                "",
                ("algorithms/test_resumed_state.py::test_hooks_of_its_own_cannot_hide_those_of_the_base",),
            ),
            Mutant(
                "maxima are forgotten",
                "training/recording.py",
                "            self.record_max(name, value.to(self.device))\n",
                "            pass\n",
                ("algorithms/test_resume_points.py::test_a_row_does_not_depend_on_a_resume_within_its_window[sft]",),
            ),
        ),
    ),
)
