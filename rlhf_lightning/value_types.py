"""The types of settings: annotations of constructors, with ranges, from which configs are checked.

Nothing here imports torch.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

LARGEST_WHOLE = 2**63 - 1  # the largest integer of torch and the operating system
LARGEST = 1e12  # its square, which losses use, is far below the largest float32
LARGEST_SECONDS = 1e9  # thirty years; the operating system does not wait longer than some 290

LEAST_TEMPERATURE = 1e-5  # logits are divided by it, and float32 would not hold the quotients of a much smaller one


def _zero_or_enough(temperature: float) -> float:
    if temperature != 0 and temperature < LEAST_TEMPERATURE:
        raise ValueError
    return temperature


Count = Annotated[int, Field(ge=1, le=LARGEST_WHOLE)]
Whole = Annotated[int, Field(ge=0, le=LARGEST_WHOLE)]
Limited = Annotated[int, Field(ge=-1, le=LARGEST_WHOLE)]  # -1: no limit
Number = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]
Positive = Annotated[float, Field(gt=0, le=LARGEST)]
NonNegative = Annotated[float, Field(ge=0, le=LARGEST)]
Seconds = Annotated[float, Field(gt=0, le=LARGEST_SECONDS)]
Temperature = Annotated[float, Field(ge=LEAST_TEMPERATURE, le=LARGEST)]
Greedily = Annotated[  # a temperature, 0 for the most likely token
    float,
    AfterValidator(_zero_or_enough),
    Field(le=LARGEST, description=f"that is 0, or at least {LEAST_TEMPERATURE:g}"),
]
Fraction = Annotated[float, Field(ge=0, le=1)]
Between = Annotated[float, Field(gt=0, lt=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
BelowHalf = Annotated[float, Field(ge=0, lt=0.5)]
UpToHalf = Annotated[float, Field(ge=0, le=0.5)]
Share = Annotated[float, Field(gt=0, le=1)]
Text = Annotated[str, Field(min_length=1)]
Texts = Annotated[list[Text], Field(min_length=1, description="(at least one)")]
Name = Annotated[  # of a folder: no slash, no leading dot
    str,
    Field(
        pattern=r"^\w[\w .+=@-]*$", max_length=200, description="of letters, digits, spaces and . + = @ -, at most 200"
    ),
]
LABELER_RULE = "1 to 64 letters, digits and . @ + - _"
MOST_FLAGS = 10  # on one answer


def labeler_name(name: str) -> str:
    """Return the name of a labeler.

    Raises:
        ValueError: it does not follow `LABELER_RULE`.
    """
    if not re.fullmatch(r"[\w.@+-]{1,64}", name):
        raise ValueError(f"a name has {LABELER_RULE}")
    return name


LabelerName = Annotated[str, AfterValidator(labeler_name), Field(description=f"of {LABELER_RULE}")]
Mapping = dict[str, Any]  # of names that are the user's own
A_SECTION = "section"
Section = Annotated[dict[str, Any], A_SECTION]  # of names that a class, or the project's configs, know
Dtype = Literal["float32", "bfloat16", "float16", "auto"]
Attention = (
    Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3", "flash_attention_4", "flex_attention"]
    | Annotated[str, Field(pattern="^[^/]+/[^/]+$", description="like owner/kernel from the hub")]
)
Kernels = Text | list[Text]  # auto | none | names, see `rlhf_lightning.kernels`
