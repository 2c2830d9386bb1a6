"""How responses are sampled for people to compare."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_lightning.errors import UserError
from rlhf_lightning.value_types import Dtype


@dataclass(frozen=True)
class Drawing:
    """How responses are sampled.

    Args:
        samples_per_prompt: responses of each policy to each prompt.
        max_new_tokens: most tokens per response.
        temperature: 0 takes the most likely token.
        batch_size: prompts decoded at a time; their responses are stored together.
        max_prompt_length: most tokens of a prompt; longer ones keep their end. A server receives prompts untruncated.
        seed: sampling seed.
        dtype, attn_implementation: of local models, see `load_causal_lm`.
    """

    samples_per_prompt: int = 2
    max_new_tokens: int = 256
    temperature: float = 1.0
    batch_size: int = 32
    max_prompt_length: int | None = 512
    seed: int = 0
    dtype: Dtype = "float32"
    attn_implementation: str | None = None

    def __post_init__(self) -> None:
        if self.temperature == 0 and self.samples_per_prompt > 1:
            raise UserError(
                f"samples_per_prompt: found {self.samples_per_prompt}; at temperature 0 a policy gives the same "
                "response every time; set it to 1, or raise temperature"
            )
