"""Check that a network can be trained at all, and that a trained one has not blown up."""

from __future__ import annotations

from typing import Any

from torch import nn

from rlhf_lightning.errors import BlownUpError, UserError
from rlhf_lightning.models.forward import bare_model
from rlhf_lightning.models.saving import check_weights
from rlhf_lightning.models.sharding import local


def check_trains(network: nn.Module) -> None:
    """Check that at least one weight matrix inside the network's layers is trainable.

    That is the least that changes a layer's function by more than a shift or a scale, and any LoRA of rank 1 has it.
    Weights outside the layers (embeddings, output layer, score head) and vectors (biases, norms) do not count.

    Raises:
        UserError: no such matrix is trainable.
    """
    outside = {id(parameter) for part in _outside_the_layers(network) for parameter in part.parameters()}
    total = trained = 0
    for parameter in network.parameters():
        total += parameter.numel()
        if parameter.requires_grad:
            trained += parameter.numel()
            shape = getattr(parameter, "ds_shape", parameter.shape)  # DeepSpeed's, of a sharded parameter
            if len(shape) >= 2 and id(parameter) not in outside:
                return
    raise UserError(
        f"model.path: almost none of the model would be trained ({trained:,} of {total:,} numbers, and no weight "
        "matrix of its layers): its weights are frozen, or in 4 or 8 bits; unfreeze them, or train an adapter: "
        "model/adapter=lora"
    )


def _outside_the_layers(network: nn.Module) -> list[nn.Module]:
    """Return the embeddings, and the output layer of a language model or of a classifier."""
    bare = bare_model(getattr(network, "classifier", network))
    parts = [module for module in network.modules() if isinstance(module, nn.Embedding)]
    output = getattr(bare, "get_output_embeddings", lambda: None)()
    return [part for part in (*parts, output, getattr(bare, "score", None)) if isinstance(part, nn.Module)]


def check_blown_up(module: Any) -> None:
    """Raise BlownUpError on every process for trained weights that no model has; the checkpoint is not written."""
    try:
        check_weights((name, local(p)) for name, p in module.named_parameters() if p.requires_grad)
        found = None
    except BlownUpError as error:
        found = error
    several = module.trainer.world_size > 1
    if several and module.trainer.strategy.reduce_boolean_decision(found is not None, all=False) and found is None:
        found = BlownUpError("the weights of another process have blown up; train again with a lower optimizer.lr")
    if found is not None:
        raise found
