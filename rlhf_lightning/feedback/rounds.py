"""The parts of a feedback round besides training, as pipeline stages: functions of a folder that return metrics."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from rlhf_lightning.content_hashes import content_hash
from rlhf_lightning.errors import UserError, WaitingError
from rlhf_lightning.feedback.agreement import AgreementReport
from rlhf_lightning.feedback.drawing import Drawing
from rlhf_lightning.feedback.export import preference_rows, ranked_rows, unpaired_rows, write_splits
from rlhf_lightning.feedback.measuring import measure_agreement, write_agreement
from rlhf_lightning.feedback.progress import progress
from rlhf_lightning.feedback.records import Prompt, Task
from rlhf_lightning.feedback.remaining import is_enough, remaining, what_is_missing
from rlhf_lightning.feedback.store import FeedbackStore
from rlhf_lightning.feedback.tasks import Asking
from rlhf_lightning.judging.settings import JudgeSettings
from rlhf_lightning.value_checks import checked
from rlhf_lightning.value_types import (
    Attention,
    BelowHalf,
    BelowOne,
    Count,
    Dtype,
    Fraction,
    Name,
    Share,
    Temperature,
    Text,
    Whole,
)


@checked("collect")
def collect(
    folder: Text | Path,
    model: Text | Path,
    store: Text,
    prompts: Text,
    limit: Count | None = None,
    choice: Literal["random", "uncertain", "best_worst", "ranking"] = "random",
    samples_per_prompt: Annotated[int, Field(ge=2)] = 4,
    pairs: Count = 1,
    overlap: Count = 1,
    overlap_share: Fraction = 1.0,
    reask: Fraction = 0.1,
    max_new_tokens: Count = 64,
    temperature: Temperature = 1.0,
    batch_size: Count = 64,
    max_prompt_length: Count = 512,
    dtype: Dtype = "float32",
    attn_implementation: Attention | None = None,
    reward_model: Text | Path | list[Text] | None = None,
    seed: Whole = 0,
    baseline: Text | Path | None = None,
) -> dict[str, Any]:
    """Sample a policy's responses to prompts, and add tasks to a store that ask which are better. A pipeline stage.

    Prompts are taken in a random order that depends on the seed and on the name of the policy's folder. Those that the
    store has tasks about, with responses of other policies, come last: each round uses different ones while there are
    any. Called again, it adds no duplicates.

    With a `baseline`, half of the responses to each prompt are its own. A policy that has dropped a kind of answer
    gives labelers nothing to compare the rest with, and the next reward model may prefer whatever is left.

    Args:
        folder: the stage's folder; nothing is written there.
        model: the policy's folder.
        store: the URL of a feedback store.
        prompts: rows with a prompt.
        limit: the most tasks; null: as many as the prompts give.
        choice, pairs, overlap, overlap_share, reask: see `Asking`.
        samples_per_prompt: responses to each prompt; an even number with a baseline.
        max_new_tokens, temperature, batch_size, max_prompt_length, dtype, attn_implementation: see `Drawing`.
        reward_model: scores the responses, for `choice` uncertain or best_worst; several form an ensemble.
        seed: seed of everything random.
        baseline: the folder of a policy to compare with, such as the SFT model; the policy itself counts as none.

    Returns:
        `tasks`: how many tasks the round asks.

    Raises:
        UserError: no responses can be compared, `samples_per_prompt` is odd with a baseline, the baseline is another
            policy of the same name, or a file or model cannot be read.
    """
    from rlhf_lightning.feedback.collecting import collect_tasks
    from rlhf_lightning.feedback.sources import read_prompts
    from rlhf_lightning.rewards import make_reward

    check_baseline(model, baseline, samples_per_prompt, "collect.")
    read, policies = read_prompts(prompts), {Path(each).name: str(each) for each in (model, baseline) if each}
    drawing = Drawing(
        samples_per_prompt // len(policies),
        max_new_tokens,
        temperature,
        batch_size,
        max_prompt_length,
        seed,
        dtype,
        attn_implementation,
    )
    models = reward_model if isinstance(reward_model, list) else [reward_model] if reward_model else []
    rewards = [make_reward(model=str(each), dtype=dtype) for each in models]
    with FeedbackStore(store) as opened:
        order = _order(read.questions, opened, list(policies), seed)
        if limit is not None:
            order = order[: -(-limit // pairs) * 5 // 4]  # a policy gives some prompts the same answer each time
        read = replace(read, rows=[read.rows[i] for i in order], questions=[read.questions[i] for i in order])
        asking = Asking(choice, pairs, limit, overlap, overlap_share, reask, seed)
        made = collect_tasks(opened, read, policies, asking, drawing, rewards=rewards)
    if not made.added + made.there:
        raise UserError(
            f"collect.prompts: the responses to those of {prompts} are all the same or empty: nothing to ask"
        )
    return {"tasks": made.added + made.there}


def check_baseline(model: str | Path, baseline: str | Path | None, samples_per_prompt: int, key: str) -> None:
    """Raise UserError, which names the arguments after `key`, if a baseline cannot answer beside a model."""
    if baseline is None:
        return
    if samples_per_prompt % 2:
        raise UserError(f"{key}samples_per_prompt: {samples_per_prompt}; must be even: half are the baseline's")
    if Path(model).name == Path(baseline).name and os.path.realpath(model) != os.path.realpath(baseline):
        raise UserError(f"{key}baseline: {baseline} has the name of {model}, which tells responses apart; rename it")


def _order(questions: Sequence[Prompt], store: FeedbackStore, policies: Sequence[str], seed: int) -> list[int]:
    """Return the order of the prompts for a policy, and a baseline if there is one."""
    order = list(range(len(questions)))
    random.Random(f"{seed}:{policies[0]}").shuffle(order)
    asked = {content_hash(task.prompt) for task in store.tasks() if not _of_this_call(task, policies)}
    return sorted(order, key=lambda i: content_hash(questions[i]) in asked)


def _of_this_call(task: Task, policies: Sequence[str]) -> bool:
    """Return whether an earlier call with these policies may have made a task."""
    sources = {response.source for response in task.responses}
    return policies[0] in sources and sources.issubset(policies)


@checked("label")
def wait_for_people(
    folder: Text | Path, store: Text, labelers: list[Name] | None = None, share: Share = 1.0
) -> dict[str, Any]:
    """Return once people have answered a store's tasks. A pipeline stage.

    Args:
        folder: the stage's folder; nothing is written there.
        store: the URL of a feedback store, the one that `rlhf-label` serves.
        labelers: who is waited for besides the people in the store.
        share: the share of the requested answers that is enough to continue.

    Returns:
        `answers`: how many judgements the store holds.

    Raises:
        WaitingError: answers are missing; the message says how many, from whom, and what to do about those that none
            of these people can give, because a task asks for more of them, or some have skipped it.
    """
    with FeedbackStore(store) as opened:
        found = progress(opened)
        if not is_enough(found.requested - found.missing, found.requested, share):
            raise WaitingError(what_is_missing(found, remaining(opened, labelers or ()), share, opened.name))
        return {"answers": found.answers}


@checked("label")
def label_by_judge(
    folder: Text | Path,
    store: Text,
    judge: JudgeSettings,
    labeler: Name = "judge",
    tie_below: BelowHalf = 0.0,
    seed: Whole = 0,
) -> dict[str, Any]:
    """Let a model answer a store's tasks, as rlhf-judge does. A pipeline stage.

    Args:
        folder: the stage's folder; nothing is written there.
        store: the URL of a feedback store.
        judge: its settings, as in rlhf-judge.
        labeler: its name in the store.
        tie_below: a probability within this of one half is a tie.
        seed: seed of the principles drawn and of generation.

    Returns:
        `answers`: how many of its judgements the store holds; `refused`: verdicts that could not be read; and its
        position bias.

    Raises:
        UserError: the judge cannot be reached.
    """
    from rlhf_lightning.feedback.judging_tasks import judge_store
    from rlhf_lightning.judging.judge import make_judge

    with FeedbackStore(store) as opened:
        found = judge_store(opened, make_judge(judge, seed, "label.judge."), labeler, tie_below)
        answers = {each.name: each.judged for each in opened.labelers()}
    return {"answers": answers.get(labeler, 0), **found.flat()}


@checked("export")
def export_judgements(
    folder: Text | Path,
    store: Text,
    aggregation: Literal["majority", "dawid_skene", "bradley_terry"] = "dawid_skene",
    margin: bool = False,
    rankings: bool = False,
    held_out: BelowOne = 0.0,
    seed: Whole = 0,
) -> dict[str, Any]:
    """Write all of a store's judgements so far as training rows, and the labelers' agreement. A pipeline stage.

        preferences.jsonl   prompt, chosen, rejected, agreement, task      for reward models, DPO and the like
                            prompt, responses, ranks, task                 with `rankings`
        unpaired.jsonl      prompt, completion, label, task                for KTO
        agreement.json, agreement.html                             as rlhf-agreement writes them

    Args:
        folder: the stage's folder.
        store: the URL of a feedback store.
        aggregation: how several judgements of one pair become one.
        margin: keep how much better the chosen answer is: a reward model must then separate the two by that much.
        rankings: write one row per task, its responses from best to worst, in place of one row per pair. A reward model
            then scores each response once per epoch, and overfits less than on pairs that share responses (Ouyang et
            al. 2022, section 3.5). It must be false with `margin`.
        held_out: share of the prompts whose rows go to `preferences_test.jsonl` and `unpaired_test.jsonl` instead.
        seed: seed of the split, and of the bootstrap of agreement.

    Returns:
        `tasks`, `judgements`, `rows` (to learn from), `alpha` (Krippendorff's) with `alpha_low` and `alpha_high`,
        and `look_at`: labelers worth a look, with reasons.

    Raises:
        UserError: there is no judgement, none that prefers an answer, or both `margin` and `rankings` are true.
    """
    if margin and rankings:
        raise UserError("export.margin: true, but rankings have no margin; set export.rankings=false or this to false")
    root = Path(folder)
    with FeedbackStore(store) as opened:
        judgements = list(opened.judgements())
        if not judgements:
            raise UserError(f"export.store: {opened.name} holds no judgement; label its tasks first")
        make = ranked_rows if rankings else preference_rows
        rows = _kept(make(opened.tasks(), judgements, aggregation), margin)
        counts = write_splits(rows, root, "preferences", held_out, seed)
        write_splits(unpaired_rows(opened.tasks(), judgements, aggregation), root, "unpaired", held_out, seed)
        report = measure_agreement(opened, seed=seed)
        write_agreement(root, report, opened)
    if not counts["train"]:
        raise UserError(f"export.store: none of its {len(judgements)} judgements prefers an answer")
    tasks = len({judgement.task for judgement in judgements})
    return {"tasks": tasks, "judgements": len(judgements), "rows": counts["train"], **_agreement(report)}


def _kept(rows: Iterable[dict[str, Any]], margin: bool) -> Iterator[dict[str, Any]]:
    yield from rows if margin else ({key: row[key] for key in row if key != "margin"} for row in rows)


def _agreement(report: AgreementReport) -> dict[str, Any]:
    alpha, look = report.alpha, {each.name: each.look for each in report.labelers if each.look}
    numbers = {"alpha": alpha.value, "alpha_low": alpha.low, "alpha_high": alpha.high}
    known = {name: value for name, value in numbers.items() if value == value}  # NaN: no task has two answers
    return {**known, "look_at": "; ".join(f"{name}: {', '.join(reasons)}" for name, reasons in look.items()) or None}
