"""Whose checkpoint it is: one of another algorithm, network, data or reward would otherwise be loaded silently.

Parameters are found by name, so a DPO run's fit an SFT run; missing or new ones are left as they are.
"""

from __future__ import annotations

from typing import Any

from rlhf_lightning.errors import UserError
from rlhf_lightning.models.adapters import has_adapter
from rlhf_lightning.models.remembered_hash import frozen_mark
from rlhf_lightning.rewards import as_reward


def origin(module: Any) -> dict[str, Any]:
    """Return what a checkpoint records about its run: the algorithm's name, and hashes of its other inputs.

    Those are hashes of the rows, of PPO-ptx's text, of the reward (source files of functions, files of models,
    weights), of DPO's reference, of a teacher and of the frozen weights under an adapter.
    """
    return {"algorithm": type(module).__name__, **_hashes(module)}


def check_origin(module: Any, checkpoint: dict[str, Any]) -> None:
    """Check that a checkpoint belongs to this algorithm, a network of this shape, and these training rows.

    Raises:
        UserError: it does not.
    """
    kept = checkpoint.get("origin", {})
    name = type(module).__name__
    if kept.get("algorithm", name) != name:
        raise UserError(
            f"ckpt: it is a checkpoint of {kept['algorithm']}, and this run trains with {name}; begin from that run's "
            "model instead: model.path=<its run folder>"
        )
    if checkpoint.get("state_dict"):  # sharded strategies load the weights themselves
        _check_weights(module, checkpoint["state_dict"])
    if module.accepts_other_rows:
        return
    now = _hashes(module)
    for name, key, what in _WATCHED:
        if None not in (now[name], kept.get(name)) and now[name] != kept[name]:
            raise UserError(f"{key}: {what} changed since the run began; {_WAY_OUT}")
    for key, mark in (kept.get("reward") or {}).items():
        if now["reward"].get(key, mark) != mark:
            raise UserError(f"{key}: the reward has changed since the run began ({_parts(key)}); {_WAY_OUT}")


_WAY_OUT = "restore it, start a new run (another run_dir, without ckpt), or set resume_anyway=true"
_WATCHED = (
    ("rows", "data.train", "the rows, or the tokens that they become, have"),
    ("val_rows", "data.val", "the held-out rows, or the tokens that they become, have"),
    ("ptx", "algorithm.ptx.data", "the pretraining text, or the tokens that it becomes, have"),
    ("reference", "model.path", "the reference has"),
    ("frozen", "model.path", "the weights under the adapter have"),
    ("teacher", "algorithm.teacher", "the teacher has"),
)


def _parts(key: str) -> str:
    kind = key.rpartition(".")[2]
    return {"function": "its source file", "weight": "its weight"}.get(kind, "the files of its model")


def _check_weights(module: Any, saved: dict[str, Any]) -> None:
    trained = {name: p for name, p in module.named_parameters(remove_duplicate=False) if p.requires_grad}
    for name, parameter in trained.items():
        if name not in saved:
            raise UserError(f"ckpt: it has no {name}, which this run trains; it is a checkpoint of another network")
        found, wanted = tuple(saved[name].shape), tuple(getattr(parameter, "ds_shape", parameter.shape))
        if found != wanted:
            raise UserError(f"ckpt: {name} is {found} there and {wanted} in this run: it belongs to another network")


def _hashes(module: Any) -> dict[str, Any]:
    data = getattr(module.trainer, "datamodule", None)
    of_split: Any = getattr(data, "fingerprint", lambda split: None)
    ptx, scored_by = getattr(module, "ptx", None), getattr(module, "scored_by", None)
    scorers = scored_by() if scored_by is not None else []
    return {
        "rows": of_split("train"),
        "val_rows": of_split("val"),
        "ptx": None if ptx is None else ptx.fingerprint(module.tokenizer, module.seed),
        "reward": {key: mark for each in scorers for key, mark in as_reward(each).origin().items()},
        "reference": module.reference_hash(),
        "teacher": module.teacher_hash(),
        "frozen": frozen_mark(module.model) if module.model is not None and has_adapter(module.model) else None,
    }
