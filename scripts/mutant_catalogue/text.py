"""Bugs between text and tokens: EOS and BOS, truncation, reward models and functions."""

from __future__ import annotations

from mutant_catalogue.rows import Mutant, Row

COLLATION = "data/collation.py"
TOKENIZATION = "data/tokenization.py"
FORWARD = "models/forward.py"
SCORES = "rewards/scores.py"
PREPARATION = "data/preparation.py"
REWARD = "rewards/model.py"
LAST_TOKEN = "models/test_reward_model.py::test_score_is_read_at_the_last_valid_token_whatever_the_padding"
PAD_FREE = "data/test_collation.py::test_masks_and_labels_do_not_depend_on_the_pad_token"
NOTHING_LEFT = (
    "data/test_datamodules.py::test_rows_truncated_to_nothing_are_dropped_and_counted_and_none_left_is_an_error"
)
FIRST_EOS = "data/test_datamodules.py::test_the_label_at_the_first_eos_is_learned"
ONE_EOS = "data/test_tokenization.py::test_an_ended_answer_has_one_eos_at_its_end"
SEES_ALL = "invariants/test_sampling.py::test_a_reward_reads_every_token_but_the_eos_that_ends_the_response"
CHECKED = "rewards/test_rewards.py::test_a_wrong_answer_of_a_reward_is_never_broadcast"

TEXT = (
    Row(
        "the reward model reads a pad token as the last token when pad and EOS are the same",
        "padding does not change rewards; whole runs with pad == eos and pad != eos are equal",
        (
            Mutant(
                "the last token is found by the pad id",
                FORWARD,
                "attention_mask.sum(dim=1, keepdim=True)",
                "(input_ids != bare_model(model).config.pad_token_id).sum(dim=1, keepdim=True)",
                (LAST_TOKEN,),
            ),
            Mutant(
                "the last token is the last column",
                FORWARD,
                "attention_mask.sum(dim=1, keepdim=True)",
                "torch.full_like(attention_mask[:, :1], input_ids.shape[1])",
                (LAST_TOKEN,),
            ),
            Mutant(
                "padding counts when responses are scored",
                REWARD,
                "[1] * len(row) + [0] * (length - len(row)) for row",
                "[1] * length for row",
                ("rewards/test_rewards.py::test_scores_do_not_depend_on_batch_size_or_order",),
            ),
            Mutant(
                "the mask of demonstrations comes from the pad id",
                COLLATION,
                "attention_mask=right_pad(ones(ids), 0),\n        labels",
                "attention_mask=(right_pad(ids, pad_id) != pad_id).long(),\n        labels",
                (PAD_FREE,),
            ),
            Mutant(
                "the mask of answers comes from the pad id",
                COLLATION,
                "attention_mask=right_pad(ones(ids), 0),\n        completion_mask=right_pad(completion",
                "attention_mask=(right_pad(ids, pad_id) != pad_id).long(),\n"
                "        completion_mask=right_pad(completion",
                (PAD_FREE,),
            ),
            Mutant(
                "the mask of prompts comes from the pad id",
                COLLATION,
                "mask = [[*[0] * (longest - len(s)), *[1] * len(s)] for s in sequences]",
                "mask = [[int(token != pad_id) for token in row] for row in ids]",
                ("data/test_collation.py::test_prompts_are_padded_on_the_left_by_length",),
            ),
            Mutant(
                "the mask of responses comes from the pad id",
                "rollout/native.py",
                "valid.float(),",
                "(valid & (drawn.valid(drawn.tokens, valid, self.pad_id) != self.pad_id)).float(),",
                ("invariants/test_padding_token.py::test_a_run_with_pad_as_eos_equals_one_without[ppo]",),
            ),
        ),
    ),
    Row(
        "the EOS is never learned",
        "the label at the first EOS is not -100 when pad == eos; a truncated answer has no EOS",
        (
            Mutant(
                "the EOS label is masked with the padding",
                COLLATION,
                "right_pad([row.labels for row in rows], IGNORED)",
                "right_pad([[IGNORED if t == pad_id else t for t in row.labels] for row in rows], IGNORED)",
                (f"{FIRST_EOS}[True]",),
            ),
            Mutant(
                "answers get no EOS",
                TOKENIZATION,
                "end = [eos_id] if ended else []",
                "end = []",
                (f"{FIRST_EOS}[False]",),
            ),
            Mutant(
                "the EOS of an assistant's turn is not learned",
                "data/templates.py",
                "            mask[position] = 1\n",
                "            mask[position] = 0\n",
                ("data/test_templates.py::test_assistant_tokens_are_the_assistants_and_their_eos",),
            ),
            Mutant(
                "a cut answer learns to stop where it was cut",
                TOKENIZATION,
                "[answer[: max_length - len(prompt)] for answer in answers]",
                "[answer[: max_length - len(prompt) - 1] + answer[-1:] for answer in answers]",
                ("data/test_tokenization.py::test_truncation_keeps_the_end_of_the_prompt_and_the_start_of_the_answer",),
            ),
        ),
    ),
    Row(
        "BOS or EOS is doubled",
        "tokenising a template's text gives the template's own tokens; there is at most one BOS and exactly one EOS",
        (
            Mutant(
                "a BOS before a text that has one",
                TOKENIZATION,
                "ids if done or ids[: len(prefix)] == prefix else prefix + ids",
                "ids if done else prefix + ids",
                ("data/test_tokenization.py::test_a_prompt_has_at_most_one_bos",),
            ),
            Mutant(
                "a BOS before a template's text",
                TOKENIZATION,
                "ids if done or ids[: len(prefix)] == prefix else prefix + ids",
                "ids if ids[: len(prefix)] == prefix else prefix + ids",
                ("data/test_tokenization.py::test_template_text_is_tokenised_as_the_template_would",),
            ),
            Mutant(
                "an EOS after a text that has one",
                TOKENIZATION,
                "completions = [_without_eos(text.completion, eos) for text in texts]",
                "completions = [text.completion for text in texts]",
                (ONE_EOS,),
            ),
        ),
    ),
    Row(
        "the reward model's tokenizer differs from the policy's",
        "responses are tokenised again from their text: permuting the reward model's ids does not change a score",
        (
            Mutant(
                "one tokenizer serves every model",
                REWARD,
                "self.tokenizer = load_tokenizer(path)",
                "self.tokenizer = ModelReward.shared = getattr(ModelReward, 'shared', None) or load_tokenizer(path)",
                ("rewards/test_rewards.py::test_permuting_the_reward_models_ids_does_not_change_the_reward",),
            ),
            Mutant(
                "the reward model reads the policy's chat template",
                REWARD,
                "[text if said is None else said for text, said in zip(prompts, messages, strict=True)]",
                "list(prompts)",
                (
                    "invariants/test_reward_text.py::"
                    "test_a_conversation_is_rendered_by_the_reward_models_template_not_by_the_policys",
                ),
            ),
            Mutant(
                "a response that was cut off is scored with an EOS",
                REWARD,
                "rows = text_rows(self.tokenizer, prompts, responses, ended, options)",
                "rows = text_rows(self.tokenizer, prompts, responses, [True] * len(prompts), options)",
                ("rewards/test_rewards.py::test_a_response_that_was_cut_off_is_scored_without_an_eos",),
            ),
            Mutant(
                "unknown tokens of a reward model's tokenizer are not reported",
                "rewards/lost_text.py",
                "if read.startswith(written):",
                "if True:",
                ("rewards/test_lost_text.py::test_unknown_tokens_are_counted_and_said_once",),
            ),
            Mutant(
                "rewards do not see special tokens",
                "data/decoding.py",
                "skip_special_tokens=False",
                "skip_special_tokens=True",
                (SEES_ALL,),
            ),
            Mutant(
                "responses are decoded without their prompt",
                "data/decoding.py",
                "_text_after(tokenizer, before, heads[before], response[:-1]",
                '_text_after(tokenizer, (), "", response[:-1]',
                ("data/test_decoding.py::test_a_response_continues_the_text_of_its_prompt",),
            ),
            Mutant(
                "equal tokenizers are not noticed",
                "rewards/reading.py",
                "first is not None and first == second",
                "False",
                ("rewards/test_reading.py::test_sampled_ids_are_scored_where_the_tokenizers_are_equal",),
            ),
            Mutant(
                "tokenizers with other merges pass for equal",
                "rewards/reading.py",
                'parts = ("model", "normalizer"',
                'parts = ("normalizer"',
                ("rewards/test_reading.py::test_tokenizers_are_compared_by_all_that_makes_ids",),
            ),
        ),
    ),
    Row(
        "rows are truncated to nothing and give NaN",
        "dropped rows are counted and reported; it is an error if none are left",
        (
            Mutant(
                "rows without a label are kept",
                PREPARATION,
                "        if sequence.weight:\n",
                "        if sequence:\n",
                (NOTHING_LEFT,),
            ),
            Mutant(
                "answers that were cut alike are compared",
                PREPARATION,
                "if cut[better] != cut[worse]]",
                "]",
                ("data/test_datamodules.py::test_answers_that_do_not_differ_are_dropped_and_counted",),
            ),
            Mutant(
                "dropped rows are not counted",
                PREPARATION,
                'report.dropped["nothing to learn" if whole else CUT_AWAY] += 1',
                "pass",
                (NOTHING_LEFT,),
            ),
            Mutant(
                "it is not an error when no rows are left",
                "data/report.py",
                "if self.kept == 0:",
                "if self.kept < 0:",
                (NOTHING_LEFT,),
            ),
        ),
    ),
    Row(
        "a reward function returns the wrong length and is broadcast",
        "length, finiteness and type of what a reward returns are checked",
        (
            Mutant(
                "the length is not checked",
                SCORES,
                "if len(found) != n:",
                "if len(found) > n:",
                (CHECKED,),
            ),
            Mutant(
                "NaN and infinity pass",
                SCORES,
                "if not abs(value) <= LARGEST:",
                "if value is None:",
                (CHECKED,),
            ),
            Mutant(
                "PPO broadcasts what the reward returned",
                "experience/scorer.py",
                "result = sample_scores(self.reward, self.tokenizer, prompts, generation.responses(), ended, "
                "state=state)",
                "result = [self.reward([r.text for r in prompts], ended)[0]] * len(prompts)",
                ("algorithms/test_ppo.py::test_a_reward_of_the_wrong_length_stops_the_run",),
            ),
        ),
    ),
)
