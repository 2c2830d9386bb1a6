"""Bugs of learned values, and of distillation."""

from __future__ import annotations

from mutant_catalogue.rows import Mutant, Row

TERMS = "functional/test_ilql.py::test_the_terms_are_the_literal_formulas"
FLOW = "functional/test_ilql.py::test_gradients_flow_into_q_v_and_the_policy_and_nowhere_else"
ILQL = "algorithms/test_ilql.py"
BY_HAND = "functional/test_distillation.py::test_the_divergence_is_that_by_hand"
GKD = "algorithms/test_gkd.py"
STEP = f"{GKD}::test_a_step_is_the_mean_over_rows_of_the_mean_over_their_tokens"

VALUES = (
    Row(
        "ILQL regresses onto the wrong state, or moves its targets by gradients",
        "each term equals its formula token by token; gradients flow into Q, V and the policy alone",
        (
            Mutant(
                "Q looks at the value of its own state",
                "functional/ilql.py",
                "torch.cat([following[:, 1:], torch.zeros_like(following[:, :1])], dim=1)",
                "following",
                (TERMS, "functional/test_ilql.py::test_the_last_token_is_followed_by_nothing"),
            ),
            Mutant(
                "the next state's value is moved towards Q",
                "functional/ilql.py",
                "blank(values.detach(), valid)",
                "blank(values, valid)",
                (FLOW,),
            ),
            Mutant(
                "V trusts the more optimistic of the target heads",
                "functional/ilql.py",
                ".amin(dim=0) - blank(values, valid)",
                ".amax(dim=0) - blank(values, valid)",
                (TERMS,),
            ),
            Mutant(
                "a reward of a whole answer is at its first token",
                "data/rewarded.py",
                "[0.0] * (kept - 1) + [reward]",
                "[reward] + [0.0] * (kept - 1)",
                ("data/test_rewarded.py::test_a_reward_of_the_whole_answer_is_at_its_last_token_and_others_at_theirs",),
            ),
        ),
    ),
    Row(
        "ILQL's targets do not follow, are not resumed, or are not what decodes",
        "targets are recomputed step by step, resumed weight by weight, and exported",
        (
            Mutant(
                "ILQL's targets stay where they began",
                "algorithms/ilql.py",
                "self.heads.follow(self.target_rate)",
                "pass",
                (f"{ILQL}::test_the_targets_follow_the_heads_every_other_optimiser_step",),
            ),
            Mutant(
                "ILQL's targets begin again on resume",
                "algorithms/ilql.py",
                'resumes: ClassVar[tuple[str, ...]] = ("targets",)',
                "resumes: ClassVar[tuple[str, ...]] = ()",
                (f"{ILQL}::test_every_target_weight_is_resumed",),
            ),
            Mutant(
                "ILQL decodes with the Q heads instead of their targets",
                "models/ilql_heads.py",
                'parts = {"q": self.targets,',
                'parts = {"q": self.q,',
                (f"{ILQL}::test_the_targets_are_what_is_exported",),
            ),
            Mutant(
                "the native engine decodes without ILQL's values",
                "models/forward.py",
                "return head if guidance is None else",
                "return head if True else",
                (f"{ILQL}::test_the_native_engine_samples_from_the_guided_policy",),
            ),
        ),
    ),
    Row(
        "GKD's divergence has its ends or its weights swapped",
        "the divergence equals plain numbers; beta 0 is the forward KL and beta 1 the reverse one",
        (
            Mutant(
                "GKD's forward KL is the reverse one",
                "functional/distillation.py",
                "        return _kl(teacher, student)",
                "        return _kl(student, teacher)",
                (BY_HAND,),
            ),
            Mutant(
                "GKD's mixture weighs the student by beta",
                "functional/distillation.py",
                "(teacher + math.log(beta), student + math.log1p(-beta))",
                "(teacher + math.log1p(-beta), student + math.log(beta))",
                (BY_HAND,),
            ),
        ),
    ),
    Row(
        "GKD counts rows, steps or its teacher wrongly",
        "a step is the mean over rows of means over tokens, of one kind; the teacher never changes",
        (
            Mutant(
                "long answers weigh more in GKD",
                "algorithms/gkd.py",
                "losses.sum() / batch.rows",
                "losses.sum() / batch.denominator",
                (STEP,),
            ),
            Mutant(
                "all steps of GKD are on answers of one kind",
                "algorithms/gkd.py",
                'seeded_generator("cpu", "gkd", seed, self.global_step)',
                'seeded_generator("cpu", "gkd", seed)',
                (f"{GKD}::test_the_share_of_sampled_steps_is_lmbda_and_a_step_is_of_one_kind",),
            ),
            Mutant(
                "GKD resumes with another teacher",
                "training/origin.py",
                '"teacher": module.teacher_hash(),',
                '"teacher": None,',
                (f"{GKD}::test_the_teacher_stays_and_a_run_refuses_another",),
            ),
        ),
    ),
)
