"""Turning prompts x policies x samples into tasks in the store; what was sampled once is not sampled again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlhf_lightning.content_hashes import content_hash
from rlhf_lightning.data.files import Row
from rlhf_lightning.errors import UserError
from rlhf_lightning.feedback.connection import is_there
from rlhf_lightning.feedback.drawing import Drawing
from rlhf_lightning.feedback.policies import Policy, make_policy
from rlhf_lightning.feedback.records import Response, Task
from rlhf_lightning.feedback.samples import keep_samples, known_samples, read_samples
from rlhf_lightning.feedback.scoring import Answered, Watch, scored, watched
from rlhf_lightning.feedback.sources import Prompts, read_prompts
from rlhf_lightning.feedback.store import FeedbackStore, find_task
from rlhf_lightning.feedback.tasks import Asking, Sample, check_asking, make_tasks, spread
from rlhf_lightning.rewards import RewardFunction

_AT_ONCE = 100  # prompts whose responses are read, scored or looked up together


@dataclass(frozen=True)
class Collected:
    """The counts of a collection.

    Args:
        prompts: prompts asked about.
        sampled: newly sampled responses.
        known: responses that an earlier collection had sampled.
        added: new tasks in the store, including check tasks.
        there: tasks that were already in the store.
    """

    prompts: int
    sampled: int
    known: int
    added: int
    there: int


def collect_tasks(
    store: FeedbackStore,
    prompts: str | Path | Sequence[Row] | Prompts,
    policies: Mapping[str, str | Path],
    asking: Asking | None = None,
    drawing: Drawing | None = None,
    *,
    rewards: Sequence[RewardFunction] = (),
    checks: Sequence[Task] = (),
    limit: int | None = None,
    watch: Watch = lambda what, done, of: None,
) -> Collected:
    """Sample responses of policies to prompts, and add tasks that ask about them.

    A second call with the same settings samples nothing and adds nothing; after an interruption it continues, and
    yields the same tasks as without one. The draws depend on the seed, the policy's name and weights and the prompts.

    Args:
        store: stores the samples and the tasks.
        prompts: an argument or a result of `read_prompts`.
        policies: name (hidden from labelers) -> run folder, Hugging Face folder, hub name, or a server's address.
        asking: what is asked (default: one random pair per prompt).
        drawing: how responses are sampled.
        rewards: score the responses if `asking.choice` needs it; several form an ensemble.
        checks: tasks with a known answer, spread among the others.
        limit: use at most this many rows of the file.
        watch: called with the progress.

    Raises:
        UserError: no pair can result, or a file, policy or reward cannot be used.
    """
    asking, drawing = asking or Asking(), drawing or Drawing()
    _refuse_known(store, checks)
    check_asking(asking, len(policies) * drawing.samples_per_prompt, bool(rewards))
    read = prompts if isinstance(prompts, Prompts) else read_prompts(prompts, limit)
    makers = [make_policy(name, place, drawing) for name, place in policies.items()]
    keys = {policy.name: sample_keys(policy, read, drawing) for policy in makers}
    missing = {name: _missing(store, of_policy) for name, of_policy in keys.items()}
    for policy in makers:
        if missing[policy.name]:
            policy.prepare(read)
    sampled = 0
    for policy in makers:
        sampled += _sample(store, policy, keys[policy.name], missing[policy.name], drawing, watch)
    count = sum(len(of_policy) - len(missing[name]) for name, of_policy in keys.items())
    answered = _answered(store, read, keys)
    samples = scored(answered, rewards) if rewards else (each.sample for each in answered)
    added, there = add_tasks(store, watched(samples, len(read), watch), asking, checks)
    return Collected(len(read), sampled, count * drawing.samples_per_prompt, added, there)


def add_tasks(
    store: FeedbackStore, samples: Iterable[Sample], asking: Asking, checks: Sequence[Task] = ()
) -> tuple[int, int]:
    """Make tasks from samples; return how many are new in the store and how many were already there.

    Args:
        store: stores the tasks.
        samples: prompts with responses, with scores if `asking.choice` needs them.
        asking: what is asked.
        checks: tasks with a known answer, spread among the others, of which none stays the same task.

    Raises:
        UserError: the store has the task of a check without its answer.
    """
    _refuse_known(store, checks)
    made: Iterable[Task] = make_tasks(samples, asking)
    if checks:
        known = {check.id for check in checks}
        made = spread([task for task in made if task.id not in known], checks)
    seen = 0

    def counted() -> Iterator[Task]:
        nonlocal seen
        for task in made:
            seen += 1
            yield task

    added = store.add_tasks(counted())
    return added, seen - added


def outlook(url: str, prompts: Prompts, policies: Mapping[str, str | Path], drawing: Drawing) -> list[str]:
    """Return a description of what a collection would sample. It loads no model and creates no store."""
    lines = [
        f"{len(prompts)} prompts of {prompts.source}" + (f", {prompts.repeated} repeated" * bool(prompts.repeated))
    ]
    makers = [make_policy(name, place, drawing) for name, place in policies.items()]
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(FeedbackStore(url)) if is_there(url) else None
        for policy in makers:
            keys = sample_keys(policy, prompts, drawing)
            missing = len(keys) if store is None else len(_missing(store, keys))
            count = drawing.samples_per_prompt
            lines.append(f"{policy.name}: {missing * count} responses to sample, {(len(keys) - missing) * count} there")
    return lines


def sample_keys(policy: Policy, prompts: Prompts, drawing: Drawing) -> list[str]:
    """Return the store's key of the policy's responses to each prompt."""
    how = [policy.name, policy.mark, drawing.samples_per_prompt, drawing.max_new_tokens, drawing.temperature]
    how += [drawing.max_prompt_length, drawing.seed, drawing.dtype]
    return [
        content_hash([*how, question, row.get("tools"), row.get("chat_template_kwargs")])
        for question, (_, row) in zip(prompts.questions, prompts.rows, strict=True)
    ]


def _refuse_known(store: FeedbackStore, checks: Sequence[Task]) -> None:
    """Raise UserError for a check whose task the store has as an ordinary one, or with another answer."""
    for check in checks:
        there = find_task(store, check.id)
        if there is None or _right(there) == _right(check):
            continue
        has = "as an ordinary task" if there.check is None else "with the other answer"
        raise UserError(
            f"checks: {store.name} already has the pair of the prompt {str(check.prompt)!r:.60}, {has}; leave it out, "
            "or give another store"
        )


def _right(task: Task) -> str | None:
    return None if task.check is None else task.responses[task.check].text


def _missing(store: FeedbackStore, keys: Sequence[str]) -> list[int]:
    known = known_samples(store, keys)
    return [position for position, key in enumerate(keys) if key not in known]


def _sample(
    store: FeedbackStore, policy: Policy, keys: Sequence[str], missing: Sequence[int], drawing: Drawing, watch: Watch
) -> int:
    """Sample what is missing and store it batch by batch: an interrupted collection continues with the next batch."""
    done, drawn = len(keys) - len(missing), 0
    try:
        for start in range(0, len(missing), drawing.batch_size):
            part = missing[start : start + drawing.batch_size]
            watch(policy.name, done + start, len(keys))
            said = policy.answers(part)
            keep_samples(store, {keys[position]: each for position, each in zip(part, said, strict=True)})
            drawn += sum(map(len, said))
    finally:
        policy.close()
    watch(policy.name, len(keys), len(keys))
    return drawn


def _answered(store: FeedbackStore, prompts: Prompts, keys: Mapping[str, Sequence[str]]) -> Iterator[Answered]:
    """Yield prompts with all policies' responses, from the store."""
    for start in range(0, len(prompts), _AT_ONCE):
        stop = min(start + _AT_ONCE, len(prompts))
        said = {name: read_samples(store, of_policy[start:stop]) for name, of_policy in keys.items()}
        for position in range(start, stop):
            given = [(name, each) for name, of_policy in keys.items() for each in said[name][of_policy[position]]]
            responses = tuple(Response(each.text, name) for name, each in given)
            sample = Sample(prompts.questions[position], responses)
            yield Answered(sample, tuple(each.ended for _, each in given), prompts.rows[position][1])
