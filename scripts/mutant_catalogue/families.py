"""Bugs of families off the beaten path: what is loaded is right, or refused."""

from __future__ import annotations

from mutant_catalogue.rows import Mutant, Row

SELF_CHECK = "models/self_check.py"
CHECKED = "models/test_self_check.py::"

FAMILIES = (
    Row(
        "a model family computes something other than this library assumes",
        (
            "a difference from the model's own forward pass beyond rounding is refused; outputs that only the model's"
            " own head produces come from that head; models without a suitable cache are sampled without one"
        ),
        (
            Mutant(
                "no difference is large enough to refuse a model",
                "models/rounding.py",
                "return self.nats <= self.allowed",
                "return True",
                (f"{CHECKED}test_an_encoder_is_refused_with_the_family_and_the_number[bert]",),
            ),
            Mutant(
                "the model's own head is never used",
                SELF_CHECK,
                "for own in (False, True):\n        use_own_head(network, own)",
                "for own in (False, False):\n        use_own_head(network, own)",
                (f"{CHECKED}test_an_output_layer_that_does_more_is_the_models_own",),
            ),
            Mutant(
                "the output layer may differ as much as all layers together",
                "models/rounding.py",
                "OF_HEAD = 1",
                "OF_HEAD = 16",
                (f"{CHECKED}test_a_slight_fault_of_the_output_layer_is_seen_in_16_bits_too",),
            ),
            Mutant(
                "every family is sampled with the cache",
                "rollout/uncached.py",
                "bare.decodes_with_cache = gap <= allowed",
                "bare.decodes_with_cache = True",
                ("rollout/test_uncached.py::test_sampled_log_probabilities_are_those_of_plain_forward_passes[mamba]",),
            ),
            Mutant(
                "rows may be longer than angles allow",
                "models/limits.py",
                "if limit is not None and tokens > limit:",
                "if False:",
                ("models/test_row_limit.py::test_longer_rows_are_refused_where_they_would_change_shorter_ones",),
            ),
            Mutant(
                "the check of a loaded model begins the run's random numbers again",
                SELF_CHECK,
                'generator=torch.Generator("cpu").manual_seed(0), device="cpu"',
                'generator=torch.manual_seed(0), device="cpu"',
                ("invariants/test_checks.py::test_a_run_of_a_seed_is_bitwise_the_same_without_the_checks[llama-dpo]",),
            ),
            Mutant(
                "dropout under another name stays on",
                "models/dropout.py",
                'DROPOUT, NOISE = ("drop",)',
                'DROPOUT, NOISE = ("attention_dropout",)',
                ("models/test_dropout.py::test_two_passes_in_training_mode_are_equal_and_those_of_evaluation",),
            ),
        ),
    ),
)
