"""Bugs of sampling and of the forward pass: log-probabilities, padding, reference."""

from __future__ import annotations

from mutant_catalogue.rows import Mutant, Row

PPO = "algorithms/ppo.py"
OLD_POLICY = "experience/old_policy.py"
ROLES = "models/roles.py"
ADAPTERS = "models/adapters.py"
NATIVE = "rollout/native.py"
FORWARD = "models/forward.py"
RATIO = "algorithms/test_ppo.py::test_at_learning_rate_zero_every_ratio_is_one"
SLOTS = "rollout/slots.py"
DECODED = "rollout/test_native.py::test_log_probabilities_kept_while_decoding_equal_a_forward_pass"
GREEDY = "rollout/test_native.py::test_greedy_tokens_equal_hugging_face_generate_row_by_row"
USED_SLOT = "rollout/test_native.py::test_a_row_in_a_used_slot_reads_nothing_of_the_former_one"
READ_ONCE = "rollout/test_native.py::test_a_prompt_is_read_once_for_the_samples_that_start_together"
READ_ONCE_EACH = "rollout/test_groups.py::test_a_prompt_is_read_once_for_all_its_samples_whatever_the_slots"
WHOLE = "rollout/test_groups.py::test_minibatches_and_microbatches_keep_groups_whole_and_in_order"
OWN_DRAWS = "rollout/test_groups.py::test_the_samples_of_a_prompt_have_draws_of_their_own"
NEIGHBOURS = "algorithms/test_groups.py::test_responses_to_a_prompt_are_neighbours_and_counted"
IDLE = "rollout/test_native.py::test_free_slots_are_filled_so_that_a_long_response_does_not_idle_the_others"
LOGPROBS = "functional/logprobs.py"
PACKING = "kernels/packing.py"
ROW_ATTENTION = "kernels/row_attention.py"
BY_TORCH = "kernels/test_row_attention.py::test_values_and_gradients_are_those_of_torch"
PACKED = "kernels/test_packing.py::test_values_entropies_and_gradients_are_those_of_padded_rows"
CHUNKED = "functional/test_logprobs.py::TestChunked::test_values_and_gradients_equal_the_plain_form"

UNDISTURBED = "algorithms/test_held_out.py::test_training_is_bitwise_that_without_a_validation"
ANSWERED = "algorithms/test_held_out.py::test_every_held_out_prompt_is_answered_once_and_its_figures_are_logged"
ON_POLICY = "algorithms/on_policy.py"

FALLS = "evaluation/test_overoptimization.py::"
COURSE = "evaluation/overoptimization.py"
EMBEDDINGS = "evaluation/test_embeddings.py"
BEST = "exact/test_best_of_n.py"

ROLLOUTS = (
    Row(
        "over-optimisation goes unnoticed, or chance is reported as over-optimisation",
        (
            "the held-out score counts as falling only when a validation, or the mean of a few, is below the best by "
            "more than the tolerance and by more than chance, given how many were compared; a resumed run stops where "
            "the uninterrupted run does"
        ),
        (
            Mutant(
                "only single validations are compared",
                COURSE,
                "range(1, min(window, len(course)) + 1)",
                "range(1, 2)",
                (f"{FALLS}test_a_small_fall_is_seen_once_it_has_lasted_and_a_steep_one_at_once",),
            ),
            Mutant(
                "the best of many validations is taken for one that was chosen before",
                COURSE,
                "1 - _CHANCE / pairs",
                "1 - _CHANCE",
                (f"{FALLS}test_a_run_that_stays_where_it_is_rarely_falls",),
            ),
            Mutant(
                "chance is a fall",
                COURSE,
                "max(tolerance * gained, chance)",
                "tolerance * gained",
                (f"{FALLS}test_what_chance_explains_is_no_fall",),
            ),
            Mutant(
                "what a run has seen is lost when it is resumed",
                "callbacks/overoptimization.py",
                '[Validation(*each) for each in state_dict["course"]]',
                "[]",
                ("callbacks/test_overoptimization.py::test_a_resumed_run_stops_where_the_uninterrupted_one_does",),
            ),
        ),
    ),
    Row(
        "a group of responses is split or mixed with another, or one response is counted as a whole group",
        (
            "micro-batches hold whole groups in order; neighbours answer the same prompt with independent draws; a "
            "prompt is read once, however many slots there are"
        ),
        (
            Mutant(
                "groups split over minibatches",
                "rollout/loader.py",
                "self.group_size = samples_per_prompt if whole_groups else 1",
                "self.group_size = 1",
                (WHOLE,),
            ),
            Mutant(
                "groups split over the parts of a micro-batch",
                "rollout/microbatches.py",
                "return [rows_of_groups(part, group_size) for part in parts]",
                "return [part + len(lengths) // group_size * i for part in parts for i in range(group_size)]",
                ("rollout/test_groups.py::test_parts_by_tokens_keep_groups_whole",),
            ),
            Mutant(
                "neighbours in a rollout answer different prompts",
                "algorithms/on_policy.py",
                "[row for row in prompts for _ in range(self.rollout.samples_per_prompt)]",
                "prompts * self.rollout.samples_per_prompt",
                (NEIGHBOURS,),
            ),
            Mutant(
                "the same sample for the whole group",
                NATIVE,
                "        self.drawn.put(rows, put, chosen, logprobs, values)",
                "        chosen = chosen[: 1] if self.samples_per_prompt > 1 else chosen\n"
                "        chosen = chosen.expand(len(rows)).contiguous()\n"
                "        self.drawn.put(rows, put, chosen, logprobs, values)",
                (f"{OWN_DRAWS}[None]",),
            ),
            Mutant(
                "a group begins in parts, and its prompt is read again",
                NATIVE,
                "whole = self._free() - self._free() % self.samples_per_prompt",
                "whole = self._free()",
                (f"{READ_ONCE_EACH}[llama-4]",),
            ),
            Mutant(
                "episodes are prompts",
                "algorithms/on_policy.py",
                "self.rollout.responses * self.trainer.world_size",
                "self.rollout.batch_size * self.trainer.world_size",
                (NEIGHBOURS,),
            ),
        ),
    ),
    Row(
        "a validation changes the training, or reports on the weights from before the update",
        (
            "weights, reward moments and the KL controller are bitwise identical to those of a run without "
            "validation; the updated policy answers every held-out prompt once; the best checkpoint is one that was "
            "validated"
        ),
        (
            Mutant(
                "a validation updates the reward's moments",
                ON_POLICY,
                "        self.record_all(held_out_statistics(rollout, raw, self.scorer.parts))",
                "        self.scorer.shape(raw, rollout, self.gather)\n"
                "        self.record_all(held_out_statistics(rollout, raw, self.scorer.parts))",
                (f"{UNDISTURBED}[tiny_model]",),
            ),
            Mutant(
                "held-out responses count in the objective that the KL controller reads",
                ON_POLICY,
                "        self.record_all(held_out_statistics(rollout, raw, self.scorer.parts))",
                "        self.record_all(held_out_statistics(rollout, raw, self.scorer.parts))\n"
                "        self.record_all({'objective/kl': held_out_statistics(rollout, raw, {})['val/kl']})",
                (f"{UNDISTURBED}[tiny_model]",),
            ),
            Mutant(
                "an iteration that target_kl cuts short is not validated",
                "algorithms/iterations.py",
                "        validate_if_due(self.trainer)\n",
                "",
                (
                    "algorithms/test_held_out.py::"
                    "test_it_is_done_every_n_iterations_and_after_one_that_target_kl_cuts_short",
                ),
            ),
            Mutant(
                "a batch of held-out prompts counts like any other, however short",
                "experience/statistics.py",
                "    return {name: (value.mean(), n) for name, value in per_response.items()} | of_parts\n\n\n"
                "def time_statistics",
                "    return {name: (value.mean(), 1) for name, value in per_response.items()} | of_parts\n\n\n"
                "def time_statistics",
                (ANSWERED,),
            ),
            Mutant(
                "the best checkpoint is chosen by the figure of the previous weights",
                "callbacks/resumable_checkpoint.py",
                "        return self._validated == trainer.current_epoch",
                "        return True",
                ("algorithms/test_held_out.py::test_the_best_checkpoint_is_one_of_an_iteration_that_was_validated",),
            ),
        ),
    ),
    Row(
        "log-probabilities differ between the rollout and the update",
        "at learning rate 0 every ratio is 1 within 1e-4, also at temperatures 0.7 and 1.3 and with dropout 0.5",
        (
            Mutant(
                "temperature dropped in the update",
                "algorithms/on_policy.py",
                "(*tokens, self.rollout.temperature, self.entropy_coef",
                "(*tokens, 1.0, self.entropy_coef",
                (f"{RATIO}[0.7-llama]",),
            ),
            Mutant(
                "temperature dropped in the rollout's log-probabilities",
                "experience/old_policy.py",
                "self.actor_critic(*tokens, self.temperature, allowed=allowed)",
                "self.actor_critic(*tokens, allowed=allowed)",
                (f"{RATIO}[0.7-llama]",),
            ),
            Mutant(
                "temperature dropped by the engine's log-probabilities",
                NATIVE,
                "(scaled.gather(1, drawn) - log_sum)",
                "(logits.gather(1, drawn) - logits.logsumexp(dim=-1, keepdim=True))",
                (f"{DECODED}[0.7-llama]",),
            ),
            Mutant(
                "the engine's log-probabilities are those after top-k and top-p",
                NATIVE,
                "if settings.filters else",
                "if False else",
                ("rollout/test_native.py::test_log_probabilities_are_those_before_top_k_and_top_p",),
            ),
            Mutant(
                "dropout left on in the policy",
                ROLES,
                "for model in self.networks():\n            disable_dropout(model)",
                "for model in self.networks():\n            model.train()",
                (f"{RATIO}[1.0-gpt2]",),
            ),
            Mutant(
                "dropout left on in DPO",
                "algorithms/offline.py",
                "            disable_dropout(self.model)\n",
                "",
                ("algorithms/test_dpo.py::test_dropout_is_off",),
            ),
            Mutant(
                "log-probabilities in half precision",
                "functional/logprobs.py",
                "logits = at_least_float32(logits)\n    return",
                "logits = logits + 0\n    return",
                ("functional/test_logprobs.py::test_half_precision_is_computed_in_float32",),
            ),
            Mutant(
                "the ratio is averaged over padding",
                "functional/ppo.py",
                '"ratio_mean": masked_mean(ratios, valid)',
                '"ratio_mean": ratios.mean()',
                (
                    "functional/test_ppo.py::TestPolicyLoss::"
                    "test_largest_ratio_ignores_padding_also_when_all_are_below_1",
                ),
            ),
        ),
    ),
    Row(
        "padding or position ids are wrong",
        (
            "1 to 16 pad tokens on either side change log-probabilities, values and rewards by at most 1e-5, on GPT-2"
            " and Llama"
        ),
        (
            Mutant(
                "positions do not restart at each prompt while decoding",
                NATIVE,
                "(attention.cumsum(dim=1) - 1).clamp(min=0)",
                "torch.arange(attention.shape[1], device=self.device).expand_as(attention)",
                (f"{DECODED}[1.0-gpt2]",),
            ),
            Mutant(
                "padding is attended to while decoding",
                NATIVE,
                "attention_mask=attention,",
                "attention_mask=torch.ones_like(attention),",
                (f"{DECODED}[1.0-llama]",),
            ),
            Mutant(
                "the padding on the left stays in the forward pass",
                FORWARD,
                "prompt_mask.shape[1] - prompt_mask.sum(dim=1, keepdim=True).long()",
                "torch.zeros_like(prompt_mask[:, :1])",
                ("models/test_forward.py::test_padding_on_either_side_does_not_change_log_probabilities[4-gpt2]",),
            ),
            Mutant(
                "a short row's last token is flagged again beside a long row",
                FORWARD,
                "flags.gather(1, index) * inside",
                "flags.gather(1, index)",
                ("invariants/test_token_values.py::test_a_short_row_beside_a_long_one_keeps_its_own_tokens",),
            ),
        ),
    ),
    Row(
        "a row that takes over a used slot gets another row's tokens, keys, position or draws",
        (
            "its log-probabilities are those of a forward pass over that row alone, and its greedy tokens are those "
            "of Hugging Face; responses come in the order of the prompts; a free slot does not wait for the longest "
            "response"
        ),
        (
            Mutant(
                "a row that started later is at the position of the longest",
                NATIVE,
                "place.end - 1 - starts)",
                "place.end - 1 - starts.clamp(max=place.begin))",
                (f"{USED_SLOT}[5-llama]", f"{USED_SLOT}[5-gpt2]"),
            ),
            Mutant(
                "a row reads what the previous one left in its slot",
                NATIVE,
                "torch.arange(place.begin, place.end, device=self.device) >= starts",
                "torch.arange(place.begin, place.end, device=self.device) >= starts.clamp(max=place.begin)",
                (f"{USED_SLOT}[5-llama]",),
            ),
            Mutant(
                "a row changes its slot without its keys",
                SLOTS,
                "layer.move(targets, sources)",
                "layer.move(targets, targets)",
                (f"{USED_SLOT}[5-llama]",),
            ),
            Mutant(
                "a row changes its slot without its newest token",
                NATIVE,
                "self.last[kept], self.places[kept]",
                "self.last[: len(order)], self.places[kept]",
                (f"{USED_SLOT}[5-llama]",),
            ),
            Mutant(
                "columns begin again and the keys stay where they were",
                SLOTS,
                "layer.to_front()",
                "pass",
                (f"{USED_SLOT}[5-llama]",),
            ),
            Mutant(
                "all prompts that are read together get the first one's keys",
                SLOTS,
                "states[source]",
                "states[torch.zeros_like(source)]",
                (f"{USED_SLOT}[5-llama]",),
            ),
            Mutant(
                "all prompts that are read together get the first one's next token",
                NATIVE,
                "self._draw(states, new, begin, places)",
                "self._draw(states, new, begin, torch.zeros_like(places))",
                (f"{USED_SLOT}[5-llama]",),
            ),
            Mutant(
                "responses are in the order in which prompts were started",
                NATIVE,
                "self._collect(rows,",
                "self._collect(sorted(rows, key=lambda row: -len(row.prompt)),",
                (f"{GREEDY}[llama-5]",),
            ),
            Mutant(
                "all rows of a step share a random number",
                NATIVE,
                "torch.rand(len(logits), 1,",
                "torch.rand(1, 1,",
                (f"{READ_ONCE}[None-llama]",),
            ),
            Mutant(
                "slots are filled only when all are free",
                NATIVE,
                "self._free() >= max(group, REFILL_AT * self.slots)",
                "self._free() >= self.slots",
                (IDLE,),
            ),
        ),
    ),
    Row(
        "the reference policy is not the reference",
        (
            "the first KL is exactly 0 from a base model, a LoRA adapter and a merged model, at any temperature and "
            "with dropout; the hash of the reference stays constant to the end of the run and across a resume"
        ),
        (
            Mutant(
                "adapters left on",
                ROLES,
                "self._model.disable_adapter() if self.adapters_off",
                "contextlib.nullcontext() if self.adapters_off",
                ("models/test_roles.py::test_a_trained_adapter_switched_off_is_the_base_exactly",),
            ),
            Mutant(
                "the reference is the live policy",
                ROLES,
                "policy if self.shared else freeze(load_copy())",
                "policy",
                ("models/test_roles.py::test_the_reference_hash_ignores_training_and_sees_tampering",),
            ),
            Mutant(
                "a trained adapter's start is forgotten",
                ADAPTERS,
                "parameter.copy_(parameters[key.replace(",
                "parameter.add_(0 * parameters[key.replace(",
                (
                    "models/test_adapters.py::test_the_reference_of_a_trained_start_is_a_frozen_copy_of_its_adapter[llama]",
                ),
            ),
            Mutant(
                "the copy of a trained adapter has other kernels than the adapter",
                "models/beside.py",
                "module.__class__ = type(like)",
                "pass",
                ("models/test_adapters.py::test_the_copy_of_an_adapter_computes_as_the_adapter_to_the_bit[llama]",),
            ),
            Mutant(
                "an adapter beside the trained one has dropout",
                "models/beside.py",
                "config.lora_dropout = 0.0",
                "pass",
                ("models/test_adapters.py::test_an_adapter_beside_the_trained_one_has_no_dropout[llama]",),
            ),
            Mutant(
                "the frozen copy keeps its dropout",
                ROLES,
                "freeze(load_copy())",
                "load_copy().train().requires_grad_(False)",
                (
                    "invariants/test_reference.py::test_the_first_kl_is_zero_at_any_temperature_and_with_dropout[0.7-model0]",
                ),
            ),
            Mutant(
                "temperature dropped for the reference",
                "experience/old_policy.py",
                "response_logprobs(model, *tokens, self.temperature, allowed)",
                "response_logprobs(model, *tokens, 1.0, allowed)",
                (
                    "invariants/test_reference.py::test_the_first_kl_is_zero_at_any_temperature_and_with_dropout[0.7-model0]",
                ),
            ),
            Mutant(
                "a reference that has moved keeps the hash it had",
                "models/remembered_hash.py",
                "_of_any_process(network, marks != self._marks)",
                "_of_any_process(network, not self._hash)",
                (
                    "models/test_roles.py::test_the_reference_hash_ignores_training_and_sees_tampering",
                    "models/test_remembered_hash.py::test_one_number_written_in_place_is_seen",
                ),
            ),
            Mutant(
                "a resume accepts another reference",
                "algorithms/on_policy.py",
                "return self.reference.fingerprint() if self.reference is not None else None",
                "return None",
                ("algorithms/test_resume.py::test_a_tampered_key_of_a_ppo_checkpoint_is_noticed[reference]",),
            ),
            Mutant(
                "DPO reads another reference's cached log-probabilities",
                "training/reference_table.py",
                "fingerprint + tokens.hexdigest()",
                "tokens.hexdigest()",
                ("algorithms/test_dpo.py::test_a_precomputed_table_of_another_reference_is_not_used",),
            ),
            Mutant(
                "DPO reads log-probabilities that were cached for other answers",
                "training/reference_table.py",
                "fingerprint + tokens.hexdigest()",
                "fingerprint",
                ("invariants/test_reference.py::test_cached_log_probabilities_of_other_answers_are_not_used",),
            ),
        ),
    ),
    Row(
        "fused log-probabilities are wrong",
        "values and gradients equal those of the plain computation",
        (
            Mutant(
                "temperature dropped in the chunks",
                LOGPROBS,
                "logprobs = _chosen(logits, labels, ignored, temperature)",
                "logprobs = _chosen(logits, labels, ignored, 1.0)",
                (f"{CHUNKED}[0.7-4]",),
            ),
            Mutant(
                "temperature dropped in the chunks' entropy",
                LOGPROBS,
                "entropy(logits, temperature).masked_fill",
                "entropy(logits).masked_fill",
                (f"{CHUNKED}[0.7-4]",),
            ),
            Mutant(
                "chunks of labels begin one token late",
                LOGPROBS,
                "flat = [hidden.flatten(0, -2), labels.flatten(),",
                "flat = [hidden.flatten(0, -2), labels.flatten().roll(-1),",
                (f"{CHUNKED}[1.0-4]",),
            ),
            Mutant(
                "no gradient reaches the hidden states",
                LOGPROBS,
                "checkpoint(of_chunk, *chunk,",
                "checkpoint(of_chunk, chunk[0].detach(), chunk[1],",
                (f"{CHUNKED}[1.0-4]",),
            ),
            Mutant(
                "a token is predicted from itself",
                "models/forward.py",
                "hidden_at(model, input_ids, previous,",
                "hidden_at(model, input_ids, flags,",
                (
                    "models/test_forward.py::"
                    "test_response_logprobs_equal_those_of_each_row_alone_through_hugging_face[llama]",
                ),
            ),
            Mutant(
                "packed rows read each other",
                PACKING,
                "if packed is None:",
                "if True:",
                (f"{PACKED}[llama]",),
            ),
            Mutant(
                "packed tokens read those after them",
                PACKING,
                '"is_causal": True',
                '"is_causal": False',
                (f"{PACKED}[llama]",),
            ),
            Mutant(
                "positions of packed rows do not restart",
                PACKING,
                "[sources], sources % size,",
                "[sources], torch.arange(len(sources)),",
                (f"{PACKED}[gpt2]",),
            ),
            Mutant(
                "rows share a prompt of the same length that is not the same",
                PACKING,
                "first.setdefault(tuple(rows[row][:start]), row)",
                "first.setdefault((start,), row)",
                ("kernels/test_packing.py::test_every_token_is_found_where_it_was_put",),
            ),
            Mutant(
                "the gradient of a chosen token's own logit is forgotten",
                LOGPROBS,
                ".scatter_add_(-1, labels, gradient), None",
                ", None",
                ("functional/test_logprobs.py::test_the_gradient_is_that_of_finite_differences",),
            ),
            Mutant(
                "long rows read the tokens after them",
                ROW_ATTENTION,
                "+= _causal(width)",
                "+= 0.0",
                (f"{BY_TORCH}[3-3]",),
            ),
            Mutant(
                "no gradient reaches a prompt from the long rows that borrow it",
                ROW_ATTENTION,
                "total[self.shared_start : self.shared_stop] +=",
                "_ =",
                (f"{BY_TORCH}[6-2]",),
            ),
            Mutant(
                "a long row that borrows a prompt reads it at the wrong place",
                PACKING,
                "rows.append(Row(start, stop, starts[lender], starts[lender] + borrowed))",
                "rows.append(Row(start, stop, 0, borrowed))",
                ("kernels/test_row_attention.py::test_rows_know_where_their_tokens_and_those_they_borrow_are",),
            ),
            Mutant(
                "the last layer leaves its attention out",
                "kernels/last_layer.py",
                "(hidden_states + attended).index_select",
                "hidden_states.index_select",
                ("kernels/test_last_layer.py::test_values_and_gradients_are_those_of_padded_rows[Llama-False]",),
            ),
            Mutant(
                "model.kernels=none still packs rows",
                "models/forward.py",
                'if "packing" in kernels and packable(',
                "if packable(",
                ("kernels/test_use.py::test_auto_is_all_that_fit_and_none_leaves_every_part_as_it_was",),
            ),
            Mutant(
                "on a GPU auto takes kernels that were measured on a CPU alone",
                "kernels/registry.py",
                "given.device in (None, *kernel.auto) and ",
                "",
                ("kernels/test_registry.py::test_auto_takes_all_on_a_cpu_and_packing_alone_elsewhere",),
            ),
            Mutant(
                "a pickled model comes back without its kernels",
                "kernels/families.py",
                "made = _mixed(mixin, kind)",
                "made = kind",
                ("kernels/test_use.py::test_a_loaded_model_is_pickled_and_copied[llama-load_causal_lm-whole]",),
            ),
            Mutant(
                "a gated block makes the product again without its gate",
                "kernels/gated_blocks.py",
                "again[:] = [act(of_gate)]",
                "again[:] = [of_gate]",
                ("kernels/test_gated_blocks.py::test_values_and_gradients_are_the_same_bits[Llama]",),
            ),
            Mutant(
                "a norm's gradient leaves out that its scale depends on the input",
                "kernels/norms.py",
                "of_normed.addcmul_(normed, along).mul_(scale)",
                "of_normed.mul_(scale)",
                ("kernels/test_norms.py::test_gradients_are_those_of_differences",),
            ),
            Mutant(
                "the gradient of a wide layer's weight has the other shape",
                "kernels/fast_products.py",
                "return _linear(x.T, gradient.T).T",
                "return _linear(x.T, gradient.T).view(gradient.shape[1], -1)",
                ("kernels/test_fast_products.py::test_values_and_gradients_are_those_of_double_precision",),
            ),
            Mutant(
                "a family's soft-capping is left out",
                "models/forward.py",
                "cap * torch.tanh(logits / cap) if cap else logits",
                "logits",
                ("models/test_forward.py::test_soft_capped_logits_equal_hugging_faces",),
            ),
        ),
    ),
    Row(
        "ranks generate the same text",
        (
            "with the same prompt on 2 ranks, none of 64 samples are equal; over all ranks, every prompt comes once "
            "per pass"
        ),
        (
            Mutant(
                "the rank is not in the rollout's seed",
                "algorithms/on_policy.py",
                '"rollout", self.seed, self.current_epoch, self.global_rank, *stream)',
                '"rollout", self.seed, self.current_epoch, *stream)',
                ("invariants/test_sampling.py::test_two_ranks_answer_the_same_prompt_differently",),
            ),
            Mutant(
                "every rank has the same prompts",
                "algorithms/iterations.py",
                "self.prompt_order(len(rows))[self.global_rank :: self.trainer.world_size]",
                "self.prompt_order(len(rows))[: self.rollout.batch_size]",
                ("invariants/test_sampling.py::test_every_prompt_comes_once_a_pass_over_all_ranks_and_iterations",),
            ),
        ),
    ),
    Row(
        "best-of-n is not the best, or further from the policy than is said",
        "chosen answers have the enumerated distribution, KL and score; one choice per prompt, from its own samples",
        (
            Mutant(
                "the worst is chosen",
                "evaluation/best_of_n.py",
                "[max(range(start, start + n)",
                "[min(range(start, start + n)",
                (f"{BEST}::test_the_choice_has_the_exact_distribution_and_a_kl_below_the_bound",),
            ),
            Mutant(
                "the last sample of a prompt is never chosen",
                "evaluation/best_of_n.py",
                "[max(range(start, start + n)",
                "[max(range(start, start + n - 1)",
                (f"{BEST}::test_the_choice_has_the_exact_distribution_and_a_kl_below_the_bound",),
            ),
            Mutant(
                "the chosen answers belong to other prompts",
                "evaluation/sampling.py",
                "asked = [row for row in prompts for _ in range(best.n if best is not None else 1)]",
                "asked = list(prompts) * (best.n if best is not None else 1)",
                (f"{BEST}::test_what_is_sampled_scores_as_enumerated",),
            ),
            Mutant(
                "the KL of the chosen samples is taken for that of the choice",
                "evaluation/sampling.py",
                'metrics["kl"] + best_of_n_kl(self.n)',
                'metrics["kl"]',
                ("commands/test_evaluate.py::test_the_best_of_n_is_a_policy_beside_the_one_that_it_samples",),
            ),
            Mutant(
                "padding after an answer in a chat is scored with it",
                "commands/conversation.py",
                "return tokens[: end + 1]",
                "return tokens",
                ("commands/test_chat.py::test_the_best_of_n_answers_is_shown_and_remembered",),
            ),
        ),
    ),
    Row(
        "a distance of embeddings depends on padding, or has an interval that is too narrow",
        "an embedding does not depend on its neighbours; distances are means over pairs, with the jackknife's interval",
        (
            Mutant(
                "padding is averaged into an embedding",
                "evaluation/embeddings.py",
                "mask[:, :, None].expand_as(hidden).float()",
                "torch.ones_like(hidden)",
                (f"{EMBEDDINGS}::test_an_embedding_depends_on_no_padding_and_no_neighbour",),
            ),
            Mutant(
                "a response is compared with those to its own prompt",
                "evaluation/embeddings.py",
                "((means @ total) - means.square().sum(dim=1)) / (prompts - 1)",
                "(means @ total) / prompts",
                (f"{EMBEDDINGS}::test_the_distances_are_the_means_over_pairs",),
            ),
            Mutant(
                "the pairs of a prompt count as independent",
                "evaluation/embeddings.py",
                "error = 2 / (prompts - 2)",
                "error = 1 / (prompts - 2)",
                (f"{EMBEDDINGS}::test_the_interval_is_the_jackknifes_and_covers_the_mean_of_many_sets",),
            ),
        ),
    ),
)
