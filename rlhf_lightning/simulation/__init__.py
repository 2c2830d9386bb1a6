"""The embedded default: a small assistant world with prompts, a transparent gold reward and simulated labelers.

`write_world` writes it to a folder that the pipeline reads like any other data.
"""

from typing import TYPE_CHECKING, Any

from rlhf_lightning.simulation.arithmetic import Arithmetic
from rlhf_lightning.simulation.gold import GoldParts, gold_parts, gold_reward, harm
from rlhf_lightning.simulation.labelers import Labeler, mean_certainty, oracle_accuracy
from rlhf_lightning.simulation.prompts import KINDS, Kind, Prompt, find_prompt
from rlhf_lightning.simulation.world import World, build_world
from rlhf_lightning.simulation.writing import write_world

if TYPE_CHECKING:
    from rlhf_lightning.simulation.labelling import label_by_simulation
    from rlhf_lightning.simulation.tiny_models import build_model, build_tokenizer

__all__ = [
    "KINDS",
    "Arithmetic",
    "GoldParts",
    "Kind",
    "Labeler",
    "Prompt",
    "World",
    "build_model",
    "build_tokenizer",
    "build_world",
    "find_prompt",
    "gold_parts",
    "gold_reward",
    "harm",
    "label_by_simulation",
    "mean_certainty",
    "oracle_accuracy",
    "write_world",
]


def __getattr__(name: str) -> Any:
    # The models need torch and transformers; prompts, gold and labelers do not.
    if name in {"build_model", "build_tokenizer"}:
        from rlhf_lightning.simulation import tiny_models

        return getattr(tiny_models, name)
    if name == "label_by_simulation":  # the store needs SQLAlchemy
        from rlhf_lightning.simulation.labelling import label_by_simulation

        return label_by_simulation
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
