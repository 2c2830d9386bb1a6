"""The typed schema of the commands of human feedback: rlhf-collect, rlhf-label, rlhf-judge, rlhf-agreement."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field
from typing_extensions import Required, TypedDict

from rlhf_lightning.judging.settings import JudgeSettings
from rlhf_lightning.source.annotations import strict
from rlhf_lightning.value_types import (
    Attention,
    BelowHalf,
    BelowOne,
    Count,
    Dtype,
    Fraction,
    Greedily,
    LabelerName,
    Seconds,
    Text,
    Whole,
)

Port = Annotated[int, Field(ge=0, le=65535)]  # 0: any free port
LARGEST_COUNT = 1_000_000  # of labelers of a task, or of answers between two
Several = Annotated[int, Field(ge=1, le=10_000)]  # kept in memory together


def _page_address(address: str) -> str:
    """Return an address that a browser understands, and that nothing can hide in: a scheme, a host, perhaps a port.

    Raises:
        ValueError: it is anything else.
    """
    parts = urlsplit(address)
    if (host := address.partition("://")[2]).startswith("["):
        ipaddress.IPv6Address(host[1:].partition("]")[0])
    if parts.port == 0:
        raise ValueError("port 0")
    return address


PageAddress = Annotated[
    str,
    Field(
        pattern=r"^https?://([\p{L}\p{N}][\p{L}\p{N}._-]*|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?$",
        description="like https://host",
    ),
    AfterValidator(_page_address),
]


@strict
class Feedback(TypedDict, total=False):
    """Where judgements are kept.

    Attributes:
        store: a URL of SQLAlchemy, such as `sqlite:///outputs/feedback.db`.
    """

    store: Required[Text]


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
    draws: Annotated[int, Field(ge=1, le=100_000)]
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
    samples_per_prompt: Several
    max_new_tokens: Count
    max_prompt_length: Count | None
    temperature: Greedily
    batch_size: Count
    limit: Count | None
    dtype: Dtype
    attn_implementation: Attention | None
    choice: Literal["random", "uncertain", "best_worst", "ranking"]
    pairs: Count
    max_tasks: Count | None
    overlap: Annotated[int, Field(ge=1, le=LARGEST_COUNT)]
    overlap_share: Fraction
    reask: Fraction
    checks: Text | None
    reward: PairScore
    seed: Whole
    explain: bool


@strict
class Label(TypedDict, total=False):
    """The top level of rlhf-label."""

    labelers: list[LabelerName]
    renew: list[LabelerName]
    feedback: Required[Feedback]
    guidelines: Text | None
    criteria: list[Text]
    flags: list[Text]
    host: Text
    port: Port
    url: PageAddress | None
    returns_after: Seconds
    repeat_gap: Annotated[int, Field(ge=0, le=LARGEST_COUNT)]


@strict
class Judge(TypedDict, total=False):
    """The top level of rlhf-judge."""

    feedback: Required[Feedback]
    labeler: Text
    data: Text | None
    revise: Text | None
    revisions: Annotated[int, Field(ge=1, le=100)]  # each asks the judge twice per answer
    tie_below: BelowHalf
    limit: Count | None
    seed: Whole
    judge: Required[JudgeSettings]
    run_dir: Text | None
