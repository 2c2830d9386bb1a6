"""Bugs of engines that hold a copy of the policy: stale copies, other distributions, shared seeds."""

from __future__ import annotations

from mutant_catalogue.rows import Mutant, Row

ENGINE = "rollout/vllm_engine.py"
SERVER = "rollout/vllm_server.py"
RESPONSES = "rollout/responses.py"
GAP = "experience/engine_gap.py"
IN_PROCESS = "rollout/test_vllm_engine.py"
SERVED = "rollout/test_vllm_server.py"
FOLLOWS = "test_after_every_sync_it_answers_as_the_policy_and_before_it_as_the_former_one"
SEEDS = "test_every_row_has_a_seed_of_its_own_that_follows_from_the_generator"
TEMPERED = "test_log_probabilities_are_those_of_the_tempered_policy"
FORGOTTEN = "test_cached_prompts_are_forgotten_after_all_weights_have_changed"

ENGINES = (
    Row(
        "the engine samples from a different policy than the one being trained",
        (
            "after every sync its greedy tokens are those of the policy; nothing cached under the previous weights is"
            " used again; its log-probabilities are those of the tempered policy, and the gap to the trainer's is "
            "logged"
        ),
        (
            Mutant(
                "a server keeps prompts cached under the previous weights",
                SERVER,
                'forgotten = self.client.post("/reset_prefix_cache")',
                "forgotten = None",
                (f"{SERVED}::{FORGOTTEN}",),
            ),
            Mutant(
                "the engine keeps prompts cached under the previous weights",
                ENGINE,
                "                self.llm.reset_prefix_cache()\n",
                "",
                (f"{IN_PROCESS}::{FORGOTTEN}",),
            ),
            Mutant(
                "every adapter has the same name, and so the previous one's cached prompts",
                SERVER,
                'return f"policy-{self._run}-{sync}"',
                'return f"policy-{self._run}"',
                (f"{SERVED}::test_an_adapter_gets_a_new_name_and_the_former_one_goes_with_its_files",),
            ),
            Mutant(
                "every adapter has the same number",
                ENGINE,
                'LoRARequest(f"policy-{self._syncs}", self._syncs, str(folder))',
                'LoRARequest(f"policy-{self._syncs}", 1, str(folder))',
                (f"{IN_PROCESS}::test_an_adapter_gets_a_new_number_and_the_former_one_goes_with_its_files",),
            ),
            Mutant(
                "a server samples from its base",
                SERVER,
                '{"model": self.name, "prompt": ids',
                '{"model": "base", "prompt": ids',
                (f"{SERVED}::{FOLLOWS}[adapter]",),
            ),
            Mutant(
                "the engine samples from its base",
                ENGINE,
                "lora_request=self._adapter,",
                "lora_request=None,",
                (f"{IN_PROCESS}::{FOLLOWS}[adapter]",),
            ),
            Mutant(
                "an output layer that the base's config ties to the embedding is skipped",
                ENGINE,
                "                check_output_layer(model)\n",
                "",
                (f"{IN_PROCESS}::test_an_output_layer_that_the_folder_ties_to_the_embedding_is_refused",),
            ),
            Mutant(
                "responses are sampled at temperature 1",
                RESPONSES,
                '"temperature": settings.temperature,',
                '"temperature": 1.0 if settings.temperature else 0.0,',
                (f"{SERVED}::{TEMPERED}[0.7]", f"{IN_PROCESS}::{TEMPERED}[0.7]"),
            ),
            Mutant(
                "log-probabilities before the temperature are believed",
                ENGINE,
                '"logprobs_mode": "processed_logprobs",',
                '"logprobs_mode": "raw_logprobs",',
                (f"{IN_PROCESS}::{TEMPERED}[0.7]",),
            ),
            Mutant(
                "a response that the engine cut short is believed",
                RESPONSES,
                "if tokens[-1] not in ends and len(tokens) < longest:",
                "if False:",
                (
                    "rollout/test_responses.py::test_a_row_that_sampling_cannot_give_is_an_error_that_says_which_and_why",
                ),
            ),
            Mutant(
                "the EOS is left to the engine's own idea of it",
                RESPONSES,
                '"stop_token_ids": list(eos_ids),',
                '"stop_token_ids": [],',
                (f"{SERVED}::test_only_our_eos_ids_end_a_response_and_no_default_of_the_server_filters",),
            ),
            Mutant(
                "the gap is averaged over padding",
                "experience/engine_gap.py",
                '"rollout/logprob_gap": (gap.sum() / tokens, tokens)',
                '"rollout/logprob_gap": (gap.mean(), tokens)',
                ("algorithms/test_engine_gap.py::test_mean_and_largest_difference_per_token_are_logged",),
            ),
        ),
    ),
    Row(
        "the engine's requests share a seed, or its seeds change the trainer's random numbers",
        (
            "the seed of every row is a function of (seed, epoch, rank, row); afterwards the trainer draws what it "
            "would have drawn without the engine"
        ),
        (
            Mutant(
                "one seed for all rows",
                RESPONSES,
                "torch.randint(2**62, (rows,), generator=generator, device=device).tolist()",
                "torch.randint(2**62, (1,), generator=generator, device=device).tolist() * rows",
                (f"{SERVED}::{SEEDS}", f"{IN_PROCESS}::{SEEDS}"),
            ),
            Mutant(
                "seeds from the global generator",
                RESPONSES,
                "torch.randint(2**62, (rows,), generator=generator, device=device)",
                "torch.randint(2**62, (rows,), device=device)",
                ("rollout/test_responses.py::test_seeds_are_a_function_of_the_generators_key_and_the_row",),
            ),
            Mutant(
                "the engine's seed is the trainer's from then on",
                "rollout/isolation.py",
                "torch.random.fork_rng(devices)",
                "contextlib.nullcontext()",
                (f"{IN_PROCESS}::test_the_trainers_random_numbers_and_threads_are_left_alone",),
            ),
            Mutant(
                "the engine computes in the trainer's autocast",
                "rollout/isolation.py",
                ', torch.autocast(kind, enabled=False), torch.autocast("cpu", enabled=False):',
                ":",
                (f"{IN_PROCESS}::test_it_computes_in_the_trainers_type_but_not_in_its_context",),
            ),
        ),
    ),
    Row(
        "importance weights do not correct",
        (
            "a weighted mean under the engine's probabilities is the mean under the trainer's, up to the cap; the "
            "weights of the advantages are the weights of the loss"
        ),
        (
            Mutant(
                "the ratio is upside down",
                "functional/importance.py",
                "blank(logprobs.detach(), valid) - blank(sampling_logprobs.detach(), valid)",
                "blank(sampling_logprobs.detach(), valid) - blank(logprobs.detach(), valid)",
                (
                    "functional/test_importance.py::"
                    "test_without_a_binding_cap_weighted_means_are_those_of_the_other_distribution",
                ),
            ),
            Mutant(
                "nothing is capped",
                "functional/importance.py",
                "ratio.clamp(max=cap)",
                "ratio",
                ("functional/test_importance.py::test_a_weight_is_the_ratio_of_the_probabilities_up_to_the_cap",),
            ),
            Mutant(
                "the weights are logged and not used",
                "experience/engine_gap.py",
                "rollout.advantages * weights, rollout",
                "rollout.advantages + 0 * weights, rollout",
                ("algorithms/test_engine_gap.py::test_a_token_counts_by_its_ratio_up_to_the_cap",),
            ),
        ),
    ),
)
