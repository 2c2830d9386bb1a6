"""The nearest match for a key, an option or a value that does not exist."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rlhf_lightning.errors import UserError
from rlhf_lightning.value_checks import did_you_mean as did_you_mean
from rlhf_lightning.value_checks import nearest as nearest

# Other libraries' names for the same thing.
OTHER_NAMES = {
    "learning_rate": "optimizer.lr",
    "num_train_epochs": "trainer.max_epochs",
    "gradient_accumulation_steps": "trainer.accumulate_grad_batches",
    "max_grad_norm": "trainer.gradient_clip_val",
    "per_device_train_batch_size": "data.batch_size",
    "model_name_or_path": "model.path",
    "output_dir": "run_dir",
    "init_kl_coef": "algorithm.kl.coef",
    "kl_coef": "algorithm.kl.coef",
    "cliprange": "algorithm.clip_range",
    "vf_coef": "algorithm.value_coef",
    "num_ppo_epochs": "algorithm.ppo_epochs",
}


def dotted_keys(config: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return every key of a nested mapping, sections too: `algorithm`, `algorithm.kl`, `algorithm.kl.target`, ..."""
    keys = []
    for name, value in config.items():
        if not str(name).startswith("_"):
            keys.append(f"{prefix}{name}")
            if isinstance(value, Mapping):
                keys += dotted_keys(value, f"{prefix}{name}.")
    return keys


def nearest_key(key: str, keys: Iterable[str]) -> str | None:
    """Return the key that was probably meant: a sibling of similar name, the same leaf elsewhere, or a similar path."""
    known = [other for other in keys if not key.startswith(f"{other}.")]
    parent, _, leaf = key.rpartition(".")
    siblings = {other.rpartition(".")[2]: other for other in known if other.rpartition(".")[0] == parent}
    if match := nearest(leaf, siblings):
        return siblings[match]
    if (meant := OTHER_NAMES.get(leaf)) in known:
        return meant
    same_leaf = [other for other in known if other == key or other.endswith(f".{key}") or other.endswith(f".{leaf}")]
    if len(same_leaf) == 1:
        return same_leaf[0]
    return nearest(key, same_leaf or known, cutoff=0.8)


@contextmanager
def keys_under(prefix: str) -> Iterator[None]:
    """Spell the keys in errors raised inside as the user wrote them, for example under `stages.ppo.`."""
    try:
        yield
    except UserError as error:
        text = re.sub(r"did you mean (?=\w)", f"did you mean {prefix}", str(error))
        raise UserError(f"{prefix}{text}") from error
