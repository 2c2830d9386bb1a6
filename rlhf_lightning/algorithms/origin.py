"""Whose checkpoint it is: one of another algorithm, network or data would be taken up without a word.

Parameters are found by name, so that a DPO run's fit an SFT run; those that are missing or new are left as they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rlhf_lightning.errors import UserError

if TYPE_CHECKING:
    from rlhf_lightning.algorithms.base import AlignmentModule


def origin(module: AlignmentModule) -> dict[str, Any]:
    """What a checkpoint keeps of its run: the algorithm's name, and the hash of the training rows where it is known."""
    return {"algorithm": type(module).__name__, "rows": _rows(module)}


def check_origin(module: AlignmentModule, checkpoint: dict[str, Any]) -> None:
    """See that a checkpoint is of this algorithm, of a network of this shape, and of these training rows.

    Raises:
        UserError: it is not.
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
    rows = _rows(module)
    if rows is not None and kept.get("rows") not in (None, rows) and not module.accepts_other_rows:
        raise UserError(
            "data.train: the rows, or the tokens that they become, have changed since the run began; restore them, "
            "start a new run (another run_dir, without ckpt), or say resume_anyway=true"
        )


def _check_weights(module: AlignmentModule, saved: dict[str, Any]) -> None:
    trained = {name: p for name, p in module.named_parameters(remove_duplicate=False) if p.requires_grad}
    for name, parameter in trained.items():
        if name not in saved:
            raise UserError(f"ckpt: it has no {name}, which this run trains; it is a checkpoint of another network")
        found, wanted = tuple(saved[name].shape), tuple(getattr(parameter, "ds_shape", parameter.shape))
        if found != wanted:
            raise UserError(f"ckpt: {name} is {found} there and {wanted} in this run: it is of another network")


def _rows(module: AlignmentModule) -> str | None:
    fingerprint = getattr(getattr(module.trainer, "datamodule", None), "fingerprint", None)
    return None if fingerprint is None else str(fingerprint())
