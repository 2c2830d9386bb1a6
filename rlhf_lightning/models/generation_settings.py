"""Making generation configs savable: transformers reads some that it refuses to write."""

from __future__ import annotations

from typing import Any

from transformers import GenerationConfig


def make_savable(settings: GenerationConfig) -> None:
    """Correct what transformers refuses to write, so that a trained model is never lost over it.

    Chat models ship sampling settings, such as a temperature, without `do_sample`, although they are meant for
    sampling. A temperature of 0 means the most probable token, which `generate` takes without a temperature. If neither
    helps, only the ids of the special tokens are kept.
    """
    if not settings.do_sample and settings.temperature == 0:
        settings.temperature = None
    if _can_be_saved(settings):
        return
    former = settings.do_sample
    settings.do_sample = True
    if _can_be_saved(settings):
        return
    settings.do_sample = former
    kept: dict[str, Any] = {name: getattr(settings, name) for name in vars(settings) if name.endswith("_token_id")}
    for name, value in vars(GenerationConfig(**kept)).items():
        setattr(settings, name, value)


def _can_be_saved(settings: GenerationConfig) -> bool:
    try:
        settings.validate(strict=True)
    except ValueError:
        return False
    return True
