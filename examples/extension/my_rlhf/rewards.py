"""(b) A reward function: prompts and responses in, one number per response out."""

from typing import Any


def short_and_polite(prompts: list[str], responses: list[str], **columns: Any) -> list[float]:
    """1 for a response that says please or sorry, less 0.05 for each word.

    `columns` carries the data row's other columns as lists, and `ended`: whether each response produced an EOS.
    """
    polite = [any(word in response.split() for word in ("please", "sorry")) for response in responses]
    return [float(p) - 0.05 * len(response.split()) for p, response in zip(polite, responses, strict=True)]
