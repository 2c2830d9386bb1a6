"""The typed schema of the configs: their keys, types and ranges.

This module has the commands' top levels. A section of a config names its class as `_target_`, and takes the arguments
of that class's constructor (`rlhf_lightning.source.sections`). There are no defaults here: they are in `conf/`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, with_config
from typing_extensions import Required, TypedDict

from rlhf_lightning.judging.settings import JudgeSettings
from rlhf_lightning.value_types import (
    Attention,
    BelowHalf,
    BelowOne,
    Count,
    Dtype,
    Fraction,
    Mapping,
    Name,
    NonNegative,
    Positive,
    Seconds,
    Text,
    Whole,
)

Port = Annotated[int, Field(ge=0, le=65535)]  # 0: any free port

Samples = Annotated[int, Field(ge=2, le=10_000)]  # of which one is chosen, or that are compared

strict = with_config(ConfigDict(extra="forbid", strict=True, allow_inf_nan=False))


@strict
class Train(TypedDict, total=False):
    """The top level of rlhf-train."""

    name: Name | None
    seed: Required[Annotated[int, Field(ge=0, le=2**32 - 1)]]
    matmul_precision: Literal["highest", "high", "medium"]
    run_dir: Text | None
    ckpt: Text | None
    resume_anyway: bool
    explain: bool
    register: Text | None
    prepare: Mapping | None
    requires: dict[str, str]
    model: Required[Mapping]
    data: Required[Mapping]
    optimizer: Required[Mapping]
    scheduler: Mapping | None
    trainer: Required[Mapping]
    rollout: Mapping | None
    reward: Mapping | None
    cost: Mapping | None
    algorithm: Required[Mapping]
    callbacks: dict[str, Any] | None
    logger: Mapping | None


@strict
class Stage(TypedDict, total=False):
    """One stage of a pipeline: an experiment with what differs from its file, or a call; and what it begins from.

    Attributes:
        experiment: the experiment that the stage runs.
        call: a function to call instead, by `_target_`, with its arguments.
        model_from: the earlier stage whose model it begins from.
        reward_from: the earlier stage whose reward model scores its responses.
        data_from: the earlier stage whose rows it reads.
        overrides: any key of the experiment by its dotted name, with its value.
    """

    experiment: Text | None
    call: Mapping | None
    model_from: Text | None
    reward_from: Text | None
    data_from: Text | None
    overrides: dict[str, Any]


@strict
class Evaluation(TypedDict, total=False):
    """How a pipeline compares its policies."""

    prompts: Text | None
    policies: list[Text] | None
    baseline: Text
    reference: Text | None
    gold: Text | None
    timeout: Seconds | None
    proxy: Text | None
    every_pair: bool
    samples_per_prompt: Count
    max_new_tokens: Count
    temperature: NonNegative
    batch_size: Count
    dtype: Dtype
    attn_implementation: Attention | None


@strict
class Feedback(TypedDict, total=False):
    """Where judgements are kept.

    Attributes:
        store: a URL of SQLAlchemy, such as `sqlite:///outputs/feedback.db`.
    """

    store: Required[Text]


@strict
class Pipeline(TypedDict, total=False):
    """The top level of rlhf-pipeline."""

    name: Name | None
    seed: Required[Annotated[int, Field(ge=0, le=2**32 - 1)]]
    run_dir: Text | None
    explain: bool
    logger: Mapping | None
    prepare: Mapping | None
    stages: Required[dict[Name, Stage]]
    rounds: Whole
    round: dict[Name, Stage]
    go_on: bool
    feedback: Feedback | None
    evaluation: Evaluation


# `from` is a Python keyword, so it cannot be written in the class body.
Pipeline.__annotations__["from"] = "Text | None"


@strict
class Score(TypedDict, total=False):
    """A reward that only measures: a function, a model, or neither.

    Attributes:
        function: a Python function (prompts, responses, **columns) -> scores, by dotted path.
        arguments: passed to the function by name.
        model: a reward model: a run folder, a Hugging Face folder or a hub name.
        dtype: of the reward model.
        attn_implementation: of the reward model; null: what the family has.
        timeout: seconds that a call of the function may take; null: no limit.
    """

    function: Text | None
    arguments: Mapping | None
    model: Text | None
    dtype: Dtype
    attn_implementation: Attention | None
    timeout: Seconds | None


@strict
class Judging(JudgeSettings, total=False):
    """What compares responses in an evaluation: a function, a model, or neither."""

    function: Text | None


@strict
class Embeddings(TypedDict, total=False):
    """What measures how far apart responses are in meaning.

    Attributes:
        model: a Hugging Face encoder: a folder or a hub name; null: left out.
    """

    model: Text | None


@strict
class Evaluate(TypedDict, total=False):
    """The top level of rlhf-evaluate; policies and what they are compared on may be omitted if rewards are given."""

    policies: Required[dict[str, Text] | None]
    prompts: Required[Text | None]
    baseline: Required[Text | None]
    judge: Judging
    refusals: Text | None
    best_of: Samples | None
    reward: Score
    course: Text | None
    self_bleu: Samples | None
    embeddings: Embeddings
    harness: list[Text] | None
    rewards: dict[str, Score] | None
    preferences: Text | None
    category: Text | None
    reference: Text | None
    gold: Score
    proxy: Score
    samples_per_prompt: Count
    max_new_tokens: Count
    temperature: NonNegative
    ilql_beta: NonNegative | None
    batch_size: Count
    seed: Whole
    dtype: Dtype
    attn_implementation: Attention | None
    run_dir: Text | None


@strict
class Export(TypedDict, total=False):
    """The top level of rlhf-export."""

    run: Required[Text | None]
    average: list[Text] | None
    weights: list[Positive] | None
    to: Required[Text]
    form: Literal["merged", "adapter"]
    dtype: Literal["float32", "bfloat16", "float16"] | None
    attn_implementation: Attention | None
    overwrite: bool


@strict
class Track(TypedDict, total=False):
    """The top level of rlhf-track."""

    run: Required[Text]
    tracking_uri: Text | None


@strict
class ImportedNames(TypedDict, total=False):
    """What things are called in a file of another labelling tool.

    Attributes:
        question: the name of the question.
        prompt: the field that holds the prompt.
        responses: the fields that hold the responses.
    """

    question: Text
    prompt: Text
    responses: list[Text] | None


@strict
class Agreement(TypedDict, total=False):
    """The top level of rlhf-agreement."""

    feedback: Required[Feedback]
    labelers: list[Text] | None
    draws: Count
    seed: Whole
    export: Text | None
    format: Literal["rows", "argilla", "label_studio"]
    kind: Literal["preference", "ranked", "unpaired"]
    method: Literal["majority", "dawid_skene", "bradley_terry"]
    held_out: BelowOne
    names: ImportedNames
    run_dir: Text | None


Agreement.__annotations__["import"] = "Text | None"


@strict
class PairScore(TypedDict, total=False):
    """The rewards whose margins, or disagreement, choose pairs.

    Attributes:
        function: a Python function (prompts, responses, **columns) -> scores, by dotted path.
        model: a reward model, or a list of them: an ensemble.
        batch_size: responses that a reward model scores at once.
        dtype: of the reward models.
        attn_implementation: of the reward models; null: what the family has.
        timeout: seconds that a call of the function may take; null: no limit.
    """

    function: Text | None
    model: Text | list[Text] | None
    batch_size: Count
    dtype: Dtype
    attn_implementation: Attention | None
    timeout: Seconds | None


@strict
class Collect(TypedDict, total=False):
    """The top level of rlhf-collect."""

    prompts: Text | None
    responses: Text | None
    policies: dict[str, Text] | None
    feedback: Required[Feedback]
    samples_per_prompt: Count
    max_new_tokens: Count
    max_prompt_length: Count | None
    temperature: NonNegative
    batch_size: Count
    limit: Count | None
    dtype: Dtype
    attn_implementation: Attention | None
    choice: Literal["random", "uncertain", "best_worst", "ranking"]
    pairs: Count
    max_tasks: Count | None
    overlap: Count
    overlap_share: Fraction
    reask: Fraction
    checks: Text | None
    reward: PairScore
    seed: Whole
    explain: bool


@strict
class Label(TypedDict, total=False):
    """The top level of rlhf-label."""

    labelers: list[Name]
    renew: list[Name]
    feedback: Required[Feedback]
    guidelines: Text | None
    criteria: list[Text]
    flags: list[Text]
    host: Text
    port: Port
    url: Annotated[str, Field(pattern="^https?://[^/]+$", description="like https://host")] | None
    returns_after: Seconds
    repeat_gap: Whole


@strict
class Judge(TypedDict, total=False):
    """The top level of rlhf-judge."""

    feedback: Required[Feedback]
    labeler: Text
    data: Text | None
    revise: Text | None
    revisions: Count
    tie_below: BelowHalf
    limit: Count | None
    seed: Whole
    judge: Required[JudgeSettings]
    run_dir: Text | None


@strict
class Chat(TypedDict, total=False):
    """The top level of rlhf-chat."""

    model: Required[Text]
    compare_with: Text | None
    best_of: Samples | None
    reward: Score
    system: Text | None
    temperature: NonNegative
    ilql_beta: NonNegative | None
    max_new_tokens: Count
    seed: Whole
    dtype: Dtype
    attn_implementation: Attention | None
