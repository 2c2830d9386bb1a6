"""Bugs of algorithms on given answers: KTO's reference point, and the terms of losses without a reference."""

from __future__ import annotations

from mutant_catalogue.rows import Mutant, Row

KTO = "algorithms/test_kto.py"
PAIRS = "data/test_unpaired.py"
EXACT = "exact/test_answer_losses.py::test_a_step_over_all_pairs_has_the_gradient_of_the_objective"
EQUATION_8 = f"{KTO}::test_the_loss_is_equation_8_with_answers_to_other_prompts"
POINT = f"{KTO}::test_no_gradient_flows_into_the_reference_point_and_it_is_never_below_zero"

ANSWERS = (
    Row(
        "KTO's reference point uses answers to their own prompts",
        "z is the mean over prompts paired with the answer to another prompt, for every batch size",
        (
            Mutant(
                "KTO measures every answer against itself",
                "data/unpaired.py",
                "row.answer if other is None else self.rows[other].answer",
                "row.answer",
                (EQUATION_8, f"{KTO}::test_a_batch_of_one_is_not_measured_against_itself"),
            ),
            Mutant(
                "KTO takes an answer to the same prompt for one to another",
                "data/unpaired.py",
                "if place and prompts[place] != prompts[place - 1]:",
                "if place:",
                (f"{PAIRS}::test_answers_to_the_same_prompt_are_passed_over",),
            ),
            Mutant(
                "a pair that fills a place moves KTO's reference point",
                "data/unpaired.py",
                "weight=float(bool(mine) and other is not None)",
                "weight=1.0",
                (f"{PAIRS}::test_ranks_share_the_pairs_of_a_step_and_a_filler_counts_for_none",),
            ),
        ),
    ),
    Row(
        "KTO's reference point covers only a part of the step",
        (
            "z is the same for all micro-batches and processes of an optimiser step; validation has one for all its "
            "answers"
        ),
        (
            Mutant(
                "KTO's reference point is that of the first micro-batch",
                "data/unpaired.py",
                "for i in range(step, window.stop)]",
                "for i in range(step, step + 1)]",
                (f"{PAIRS}::test_ranks_share_the_pairs_of_a_step_and_a_filler_counts_for_none",),
            ),
            Mutant(
                "each micro-batch has a reference point of its own",
                "data/unpaired.py",
                "if step in (start, window.start):",
                "if True:",
                (f"{KTO}::test_every_micro_batch_of_a_step_has_the_same_reference_point",),
            ),
            Mutant(
                "each process has a reference point of its own",
                "algorithms/unpaired.py",
                "total, count = self.gather(sums).sum(dim=0)",
                "total, count = sums",
                ("distributed/test_processes.py::test_weights_metrics_and_controller_equal_those_of_one_process",),
            ),
            Mutant(
                "validation has the reference point of its last batch",
                "algorithms/unpaired.py",
                "torch.stack(self._held_out_sums).sum(dim=0)",
                "self._held_out_sums[-1]",
                (f"{KTO}::test_validation_does_not_depend_on_how_it_is_split",),
            ),
        ),
    ),
    Row(
        "KTO's reference point has a gradient, or is negative",
        "z has no gradient and is at least 0",
        (
            Mutant(
                "KTO's reference point has a gradient",
                "algorithms/unpaired.py",
                "    @torch.no_grad()\n    def log_ratio_sums",
                "    def log_ratio_sums",
                (POINT,),
            ),
            Mutant(
                "KTO's reference point goes below 0",
                "algorithms/unpaired.py",
                "count.clamp(min=1)).clamp(min=0)",
                "count.clamp(min=1))",
                (POINT,),
            ),
        ),
    ),
    Row(
        "a term of a preference loss is missing, or uses the other answer",
        "the gradient of a step over all answers is that of the written-out objective, within 1e-5",
        (
            Mutant(
                "ORPO does not imitate",
                "algorithms/orpo.py",
                "-chosen.mean_logps + self.beta",
                "self.beta",
                (EXACT,),
            ),
            Mutant(
                "CPO imitates the whole answer",
                "algorithms/cpo.py",
                "self.nll_coef * chosen.mean_logps",
                "self.nll_coef * chosen.logps",
                (EXACT,),
            ),
            Mutant(
                "DPO imitates the rejected answer",
                "algorithms/dpo.py",
                "self.nll_coef * chosen.mean_logps",
                "self.nll_coef * rejected.mean_logps",
                (EXACT, "algorithms/test_dpo.py::test_the_nll_term_is_per_token_of_the_chosen_answer_and_is_logged"),
            ),
            Mutant(
                "SimPO logs whole answers",
                "algorithms/simpo.py",
                "    per_token = True\n",
                "",
                ("algorithms/test_declared.py::test_logged_probabilities_are_in_the_unit_of_the_loss",),
            ),
            Mutant(
                "KTO's weights change places",
                "algorithms/kto.py",
                "weights = self.desirable_weight, self.undesirable_weight",
                "weights = self.undesirable_weight, self.desirable_weight",
                (EQUATION_8,),
            ),
        ),
    ),
)
