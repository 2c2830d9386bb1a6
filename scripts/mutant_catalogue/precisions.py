"""Half precision where float32 is meant."""

from __future__ import annotations

from mutant_catalogue.rows import Mutant, Row

PRECISION, TYPES, MATRIX = "models/precision.py", "precision/test_types.py", "precision/test_matrix.py"
STARTS = f"{MATRIX}::test_a_run_starts_where_its_reference_is_and_counts_in_float32"

PRECISIONS = (
    Row(
        "half precision reaches something that is summed, compared or read as a number",
        (
            "under every precision the first KL is 0, the first DPO loss is log 2, sums are as in float64 and heads "
            "are in float32"
        ),
        (
            Mutant(
                "a cast reaches the frequencies of rotary positions",
                PRECISION,
                "            return before.to(after.device)\n\n        return keep\n\n\ndef _wider",
                "            return after\n\n        return keep\n\n\ndef _wider",
                (f"{TYPES}::test_a_cast_reaches_the_weights_alone",),
            ),
            Mutant(
                "a cast reaches the adapters",
                PRECISION,
                "id(p) not in kept and not is_adapter(name)]",
                "id(p) not in kept]",
                (f"{TYPES}::test_a_cast_reaches_the_weights_alone",),
            ),
            Mutant(
                "heads are computed under autocast",
                PRECISION,
                "        with without_autocast(x.device):\n            return F.linear",
                "        with contextlib.nullcontext():\n            return F.linear",
                (f"{TYPES}::test_heads_are_computed_in_float32_whatever_surrounds_them",),
            ),
            Mutant(
                "sums of metrics have the default type",
                "training/weighted_mean.py",
                "add_state(name, torch.zeros((), dtype=torch.float32)",
                "add_state(name, torch.zeros(())",
                (f"{TYPES}::test_sums_of_thousands_of_values_are_those_of_float64",),
            ),
            Mutant(
                "scores of a reward have the default type",
                "experience/scorer.py",
                "return to_device(scores, device, torch.float32)",
                "return to_device(scores, device)",
                (f"{STARTS}[bf16-true-full-ppo shared-llama]",),
            ),
            Mutant(
                "the reference is precomputed outside the trainer's precision",
                "training/reference_table.py",
                "with module.trainer.precision_plugin.forward_context():",
                "if True:",
                (f"{TYPES}::test_a_precomputed_reference_is_that_of_the_first_epoch",),
            ),
            Mutant(
                "the reference is precomputed in other batches than the first epoch's",
                "data/datamodules.py",
                "yield from self.train_dataloader().of_every_rank()",
                'yield from (collate_preferences([row], pad_id=0) for row in self._rows["train"])',
                (f"{TYPES}::test_a_precomputed_reference_is_that_of_the_first_epoch",),
            ),
            Mutant(
                "a stored reference of another precision is taken",
                "training/reference_table.py",
                ' + f" {module.precision}"',
                "",
                (f"{TYPES}::test_a_stored_reference_is_of_one_precision",),
            ),
            Mutant(
                "long rows on a CPU mix types under autocast",
                "kernels/row_attention.py",
                ' or torch.is_autocast_enabled("cpu")',
                "",
                (f"{TYPES}::test_autocast_leaves_long_rows_to_torch",),
            ),
            Mutant(
                "every token casts every weight",
                "rollout/native.py",
                ", held_casts(model):",
                ":",
                (f"{TYPES}::test_decoding_casts_every_weight_once_and_draws_the_same[full]",),
            ),
        ),
    ),
)
