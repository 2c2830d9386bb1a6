"""Tokenising rows once, before training. What was shortened or left out is counted, never silent."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rlhf_lightning.data.batches import IGNORED, PromptRow, TokenizedPreference, TokenizedSequence
from rlhf_lightning.data.decoding import decode_exactly
from rlhf_lightning.data.messages import Options, Text, template_options
from rlhf_lightning.data.report import CUT_AWAY, CUT_EQUAL, Report, blamed_on
from rlhf_lightning.data.row_values import (
    checked_answers,
    checked_row,
    checked_texts,
    finite_number,
    is_true,
    ranked_pairs,
)
from rlhf_lightning.data.rows import row_format, row_prompt, split_messages, split_preference
from rlhf_lightning.data.templates import (
    assistant_tokens,
    is_conversational,
    render_completion,
    render_conversation,
    render_prompt,
)
from rlhf_lightning.data.tokenization import (
    Rendered,
    tokenize_prompts,
    tokenize_rendered,
    truncate,
    truncate_prompt,
)
from rlhf_lightning.errors import UserError

LOSS_ON = ("completion", "all", "assistant")
_DEMONSTRATIONS = ("supervised fine-tuning", ("prompt_completion", "labelled", "rewarded", "messages", "text"))
SAFE = " safe"  # a key of rows that `safety` has read: whether each answer is safe. No column has this name
Numbered = Sequence[tuple[int, dict[str, Any]]]  # (index in the source, row)


def sequences(
    rows: Numbered, tokenizer: Any, source: str, max_length: int | None, loss_on: str = "completion"
) -> tuple[list[TokenizedSequence], Report]:
    """Return rows for supervised fine-tuning: `text`, `messages`, `prompt` + `completion`, or true labelled rows.

    The loss is on the completion (of `messages`: the last assistant turn; of `text`: all of it), on everything, or on
    what the assistant wrote. The EOS that ends a row is trained on too.
    """
    report = Report(source, read=len(rows))
    encoded = _assistant_rows(rows, tokenizer, report) if loss_on == "assistant" else None
    if encoded is None:
        texts = []
        for index, row in rows:
            with blamed_on(source, index):
                text = _demonstration(tokenizer, row, loss_on)
            if text is None:
                report.dropped["label is false"] += 1
            else:
                texts.append(text)
        encoded = [
            (prompt, answer, [int(loss_on == "all")] * len(prompt) + [1] * len(answer))
            for prompt, answer in tokenize_rendered(tokenizer, texts)
        ]
    prepared = []
    for prompt, answer, mask in encoded:
        short, (cut,) = truncate(prompt, [answer], max_length, bos_id=tokenizer.bos_token_id)
        report.truncated += len(short) + len(cut) < len(prompt) + len(answer)
        start = len(prompt) - len(short)
        ids, mask = short + cut, mask[start : start + len(short) + len(cut)]
        labels = [
            token if flag and place else IGNORED for place, (token, flag) in enumerate(zip(ids, mask, strict=True))
        ]
        sequence = TokenizedSequence(ids, labels)
        if sequence.weight:
            prepared.append(sequence)
        else:
            whole = len(ids) == len(prompt) + len(answer)
            report.dropped["nothing to learn" if whole else CUT_AWAY] += 1
    report.kept = len(prepared)
    report.check(max_length)
    return prepared, report


def preferences(
    rows: Numbered,
    tokenizer: Any,
    source: str,
    max_length: int | None,
    max_prompt_length: int | None = None,
    first_id: int = 0,
) -> tuple[list[TokenizedPreference], Report]:
    """Return rows for reward models and DPO: chosen and rejected, ranked, or true and false answers to one prompt.

    Answers are numbered from `first_id`: row * K + k for the k-th answer, where K is the most answers of any row.
    """
    report = Report(source, read=len(rows))
    ranked = _ranked_rows(rows, source, report)
    most = max((len(row.answers) for row in ranked), default=1)
    texts: list[Rendered] = []
    for row in ranked:
        with blamed_on(source, row.index):
            prompt, templated = render_prompt(tokenizer, row.prompt, row.options), is_conversational(row.prompt)
            answers = [
                render_completion(tokenizer, row.prompt, answer, before=prompt, options=row.options)
                for answer in row.answers
            ]
            texts += [Rendered(prompt, answer, templated) for answer in answers]
    encoded = iter(tokenize_rendered(tokenizer, texts))
    prepared = []
    for row in ranked:
        prompts, answers_ids = zip(*(next(encoded) for _ in row.answers), strict=True)
        prompt_ids = prompts[0]
        short, cut = truncate(prompt_ids, list(answers_ids), max_length, max_prompt_length, tokenizer.bos_token_id)
        report.truncated += len(short) < len(prompt_ids) or any(
            len(a) < len(b) for a, b in zip(cut, answers_ids, strict=True)
        )
        pairs = [(better, worse) for better, worse in row.pairs if cut[better] != cut[worse]]
        if not pairs:
            differ = any(answers_ids[better] != answers_ids[worse] for better, worse in row.pairs)
            report.dropped[CUT_EQUAL if differ else "no two answers differ"] += 1
            continue
        if not short:
            report.without_prompt.append(row.index + 1)
        row_ids = [first_id + row.index * most + k for k in range(len(cut))]
        prepared.append(TokenizedPreference(short, cut, pairs, row_ids, row.margin, safe=row.safe))
    report.kept = len(prepared)
    report.check(max_length)
    return prepared, report


def prompts(rows: Numbered, tokenizer: Any, source: str, max_length: int | None) -> tuple[list[PromptRow], Report]:
    """Return prompts, from rows of any format that has one. The row's other columns go to the reward functions."""
    report = Report(source, read=len(rows))
    questions: list[Text] = []
    texts: list[str] = []
    for index, row in rows:
        with blamed_on(source, index):
            questions.append(question_of(row))
            options = template_options(row, is_conversational(questions[-1]))
            texts.append(render_prompt(tokenizer, questions[-1], options))
    encoded = tokenize_prompts(tokenizer, texts, [is_conversational(question) for question in questions])
    prepared = []
    for (index, row), question, text, ids in zip(rows, questions, texts, encoded, strict=True):
        short = truncate_prompt(ids, max_length, tokenizer.bos_token_id)
        report.truncated += len(short) < len(ids)
        if not short:
            report.dropped["empty prompt"] += 1
            continue
        # Reward functions receive prompts and responses anyway, and TRL's call the latter completions.
        taken = ("prompt", "messages", "responses", "completions")
        columns = {name: value for name, value in row.items() if name not in taken and value is not None}
        if is_conversational(question):
            columns["messages"] = question
        if len(short) < len(ids):  # the policy answers what is left
            text = decode_exactly(tokenizer, short[1:] if short[0] == tokenizer.bos_token_id else short)
        prepared.append(PromptRow(short, text, columns, source, index + 1))
    report.kept = len(prepared)
    report.check()
    return prepared, report


def check_sequences(rows: Numbered, source: str) -> None:
    """Raise UserError for the first row whose format does not fit supervised fine-tuning."""
    for index, row in rows:
        with blamed_on(source, index):
            checked_row(row, *_DEMONSTRATIONS)


def check_preferences(rows: Numbered, source: str) -> None:
    """Raise UserError for the first row whose format does not fit preferences."""
    _ranked_rows(rows, source, Report(source))


def check_prompts(rows: Numbered, source: str) -> None:
    """Raise UserError for the first row without a prompt."""
    for index, row in rows:
        with blamed_on(source, index):
            question_of(row)


@dataclass(frozen=True)
class _Ranked:
    index: int
    prompt: Text
    answers: list[Text]
    pairs: list[tuple[int, int]]
    margin: float | None = None
    options: Options = field(default_factory=dict)
    safe: list[bool] | None = None


def _demonstration(tokenizer: Any, row: dict[str, Any], loss_on: str) -> Rendered | None:
    kind, row = checked_row(row, *_DEMONSTRATIONS)
    if kind == "text":
        return Rendered("", row["text"])
    options = template_options(row, kind == "messages" or is_conversational(row["prompt"]))
    if kind == "messages" and loss_on == "all":
        return Rendered("", render_conversation(tokenizer, row["messages"], options), templated=True)
    if kind == "messages":
        prompt, completion = split_messages(row["messages"])
        if not completion:
            raise UserError(
                "the last message is not the assistant's, so there is no completion; data.loss_on=all needs none"
            )
    else:
        prompt, completion = row["prompt"], row["completion"]
        if kind == "labelled" and not is_true(row["label"]):
            return None
    before = render_prompt(tokenizer, prompt, options)
    after = render_completion(tokenizer, prompt, completion, before=before, options=options)
    return Rendered(before, after, is_conversational(prompt))


def _assistant_rows(rows: Numbered, tokenizer: Any, report: Report) -> list[tuple[list[int], list[int], list[int]]]:
    encoded = []
    for index, row in rows:
        with blamed_on(report.source, index):
            kind, row = checked_row(row, "supervised fine-tuning", _DEMONSTRATIONS[1][:-1])
            if kind == "labelled" and not is_true(row["label"]):
                report.dropped["label is false"] += 1
                continue
            messages = row["messages"] if kind == "messages" else row["prompt"]
            if not is_conversational(messages):
                raise UserError(
                    "data.loss_on=assistant: the row holds plain strings, not messages; use data.loss_on=completion"
                )
            answer = [] if kind == "messages" else row["completion"]
            answer = [{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer
            ids, mask = assistant_tokens(tokenizer, [*messages, *answer], template_options(row, templated=True))
        turn = len(mask) - 1  # the last assistant turn is the answer, which keeps its start if the row is truncated
        while turn and mask[turn - 1]:
            turn -= 1
        encoded.append((ids[:turn], ids[turn:], mask))
    return encoded


def _ranked_rows(rows: Numbered, source: str, report: Report) -> list[_Ranked]:
    ranked: list[_Ranked] = []
    labelled: dict[str, list[tuple[int, dict[str, Any]]]] = {}
    for index, row in rows:
        with blamed_on(source, index):
            kind, row = checked_row(row, "preferences", ("preference", "ranked", "labelled"))
            if kind == "preference":
                prompt, chosen, rejected = split_preference(row)
                margin = None if row.get("margin") is None else finite_number("margin", row["margin"])
                options = template_options(row, is_conversational(prompt))
                ranked.append(_Ranked(index, prompt, [chosen, rejected], [(0, 1)], margin, options, row.get(SAFE)))
            elif kind == "ranked":
                answers = checked_answers(row)
                options = template_options(row, is_conversational(row["prompt"]))
                ranked.append(_Ranked(index, row["prompt"], answers, ranked_pairs(row), None, options))
            else:
                row["label"] = is_true(row["label"])
                options = template_options(row, is_conversational(row["prompt"]))
                asked = json.dumps([row["prompt"], options], sort_keys=True, default=repr)
                labelled.setdefault(asked, []).append((index, {**row, "options": options}))
    for group in labelled.values():
        good = [row["completion"] for _, row in group if row["label"]]
        bad = [row["completion"] for _, row in group if not row["label"]]
        pairs = [(i, len(good) + j) for i in range(len(good)) for j in range(len(bad))]
        if pairs:
            first = group[0][1]
            ranked.append(_Ranked(group[0][0], first["prompt"], good + bad, pairs, None, first["options"]))
        else:
            report.dropped["prompt without both a true and a false answer"] += len(group)
    return [row for row in ranked if row.pairs or report.dropped.update(["no two answers differ"])]


def question_of(row: dict[str, Any]) -> Text:
    """Return the prompt of a row, checked.

    Raises:
        UserError: it has none, or one that cannot be read.
    """
    row = row | checked_texts(row)
    prompt = row_prompt(row)
    if row.get("prompt") is None and row_format(row) == "text":
        raise UserError("columns hold no prompt to answer; rename `text` to `prompt`, if that is what it is")
    if "prompts" in row:
        raise UserError("column prompts: reward functions are given the prompts by that name; rename the column")
    return prompt
