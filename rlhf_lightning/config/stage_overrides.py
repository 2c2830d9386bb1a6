"""A command line's overrides for a pipeline's stages."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from typing_extensions import get_type_hints

from rlhf_lightning.config.schema import Stage
from rlhf_lightning.config.spelling import did_you_mean, nearest
from rlhf_lightning.errors import UserError

_STAGE_OVERRIDE = re.compile(r"^(\+\+|\+|~)?(stages|round)\.([\w-]+)\.(.+)$", re.DOTALL)


def split_overrides(overrides: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Return the pipeline's own overrides, and those of each stage's training config with the prefix removed.

    >>> split_overrides(["seed=1", "stages.ppo.algorithm.kl.target=3", "stages.ppo.experiment=mine"])
    (['seed=1', '++stages.ppo.experiment=mine'], {'ppo': ['algorithm.kl.target=3']})
    >>> split_overrides(["round.ppo.optimizer.lr=1e-4"])
    ([], {'round.ppo': ['optimizer.lr=1e-4']})
    """
    own: list[str] = []
    of_stages: dict[str, list[str]] = {}
    for override in overrides:
        match = _STAGE_OVERRIDE.match(override)
        if match is None:
            own.append(override)
        elif re.split(r"[.=]", match[4])[0] in get_type_hints(Stage):
            own.append(override if match[1] else f"++{override}")  # the pipeline's file may omit the key
        else:
            name = match[3] if match[2] == "stages" else f"round.{match[3]}"
            of_stages.setdefault(name, []).append(f"{match[1] or ''}{match[4]}")
    return own, of_stages


def check_names(given: Mapping[str, Any], names: Sequence[str], bases: Mapping[str, str]) -> None:
    """Raise UserError for an override of a stage that does not exist."""
    for name in given:
        if name not in names and name not in bases.values():
            written = name if name.startswith("round.") else f"stages.{name}"
            allowed = list(dict.fromkeys(bases.values())) if written == name else names
            match = did_you_mean(nearest(name, allowed))
            raise UserError(f"{written}: no such stage; allowed: {', '.join(allowed) or 'none'}{match}")
