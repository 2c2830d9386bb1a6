"""Bugs at the edges of training's arithmetic: controllers, schedules, windows of metrics, ends within an iteration."""

from __future__ import annotations

from mutant_catalogue.rows import Mutant, Row

KL = "algorithms/kl_controllers.py"
CONTROLLERS = "algorithms/test_kl_controllers.py"
SCHEDULE = "algorithms/test_schedule.py"

ARITHMETIC = (
    Row(
        "a KL coefficient that is not a penalty",
        "it stays above 0, moves by at most a fifth per iteration, comes back from any extreme, and is never NaN",
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
        ),
    ),
    Row(
        "a schedule of other steps than the run's",
        "where `target_kl` leaves out steps the learning rate comes down all the same, and it never turns",
        (
            Mutant(
                "the schedule counts only the steps that were done",
                "algorithms/schedule.py",
                "min(max(done * int(span) // planned, by_steps), int(span))",
                "trainer.global_step",
                (f"{SCHEDULE}::test_a_schedule_comes_down_although_target_kl_leaves_out_steps",),
            ),
            Mutant(
                "the schedule runs beyond its end",
                "algorithms/schedule.py",
                "min(max(done * int(span) // planned, by_steps), int(span))",
                "max(done, by_steps)",
                (f"{SCHEDULE}::test_whichever_ends_the_run_ends_the_schedule_which_never_turns",),
            ),
        ),
    ),
    Row(
        "a setting that a loss does not have",
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
        "a resume within a window of metrics changes its row",
        "sums and maxima since the last row are in the checkpoint of every module",
        (
            Mutant(
                "the reward model forgets its sums",
                "algorithms/reward.py",
                "        super().on_load_checkpoint(checkpoint)\n",
                "",
                ("algorithms/test_resume_points.py::test_a_row_does_not_depend_on_a_resume_within_its_window[reward]",),
            ),
            Mutant(
                "maxima are forgotten",
                "algorithms/base.py",
                "            self.record_max(name, value.to(self.device))\n",
                "            pass\n",
                ("algorithms/test_resume_points.py::test_a_row_does_not_depend_on_a_resume_within_its_window[sft]",),
            ),
        ),
    ),
)
