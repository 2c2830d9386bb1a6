"""The typed schema of the configs: their keys, types and ranges.

This module has the commands' top levels, except those of human feedback (`feedback_schema`). A section of a config
names its class as `_target_`, and takes the arguments of that class's constructor (`rlhf_lightning.source.sections`).
There are no defaults here: they are in `conf/`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field
from typing_extensions import Required, TypedDict

from rlhf_lightning.config.feedback_schema import Agreement, Collect, Feedback, Judge, Label
from rlhf_lightning.judging.settings import JudgeSettings
from rlhf_lightning.source.annotations import strict
from rlhf_lightning.value_types import (
    Attention,
    Count,
    Dtype,
    Greedily,
    Mapping,
    Name,
    NonNegative,
    Positive,
    Seconds,
    Section,
    Text,
    Whole,
)

Samples = Annotated[int, Field(ge=2, le=10_000)]  # of which one is chosen, or that are compared


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
    prepare: Section | None
    requires: dict[str, str]
    model: Required[Section]
    data: Required[Section]
    optimizer: Required[Section]
    scheduler: Section | None
    trainer: Required[Section]
    rollout: Section | None
    reward: Section | None
    cost: Section | None
    algorithm: Required[Section]
    callbacks: Section | None
    logger: Section | None


@strict
class Stage(TypedDict, total=False):
    """One stage of a pipeline: an experiment with what differs from its file, or a call; and what it begins from.

    Attributes:
        experiment: the experiment that the stage runs.
        call: a function to call instead, by `_target_`, with its arguments.
        model_from: the earlier stage whose model it begins from.
        reward_from: the earlier stage whose reward model scores its responses.
        data_from: the earlier stage whose rows it reads.
        members: how many reward models it trains, from different seeds; later stages take them as an ensemble.
        overrides: any key of the experiment by its dotted name, with its value.
    """

    experiment: Text | None
    call: Section | None
    model_from: Text | None
    reward_from: Text | None
    data_from: Text | None
    members: Annotated[int, Field(ge=1, le=26)]
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
    temperature: Greedily
    batch_size: Count
    dtype: Dtype
    attn_implementation: Attention | None


@strict
class Pipeline(TypedDict, total=False):
    """The top level of rlhf-pipeline."""

    name: Name | None
    seed: Required[Annotated[int, Field(ge=0, le=2**32 - 1)]]
    run_dir: Text | None
    explain: bool
    logger: Section | None
    prepare: Section | None
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
    refusal_detector: Literal["rule", "judge"]
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
    temperature: Greedily
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
class Chat(TypedDict, total=False):
    """The top level of rlhf-chat."""

    model: Required[Text]
    compare_with: Text | None
    best_of: Samples | None
    reward: Score
    system: Text | None
    temperature: Greedily
    ilql_beta: NonNegative | None
    max_new_tokens: Count
    seed: Whole
    dtype: Dtype
    attn_implementation: Attention | None


# The commands that have a config of their own, and its top level.
TOP_LEVELS: dict[str, Any] = {
    "train": Train,
    "pipeline": Pipeline,
    "evaluate": Evaluate,
    "export": Export,
    "track": Track,
    "agreement": Agreement,
    "collect": Collect,
    "label": Label,
    "judge": Judge,
    "chat": Chat,
}
