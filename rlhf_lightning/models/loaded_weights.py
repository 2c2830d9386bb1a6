"""Reading a network from its folder: every weight comes from there, or an error names the missing one.

transformers initialises what a folder lacks at random and mentions it in a report; such a network trains, but it is a
different one. What the folder has beyond the network (the head of another task) is ignored, unless it belongs to the
network's own layers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from rlhf_lightning.errors import UserError, blaming, named, reason

HEAD = "score"  # transformers' name of the output layer of sequence classifiers
NO_HEAD = "has no score head, so it is not a reward model; train one with experiment=reward"
_WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module")  # prefixes added by DataParallel, torch.compile and FSDP


def read_network(auto_class: Any, source: str, arguments: dict[str, Any], new: str | None = None) -> tuple[Any, bool]:
    """Return the network with all its weights read, and whether the layer that may be new is.

    Args:
        auto_class: the transformers class that reads it.
        source: a Hugging Face folder or a hub name.
        arguments: arguments of `from_pretrained`.
        new: the name of the one layer that the folder may lack; None: it must hold everything.

    Raises:
        UserError: it cannot be read, lacks weights, has weights of another shape or weights that are not finite, or has
            layers that the network lacks.
    """
    _check_generation_config(source)
    try:
        network, report = auto_class.from_pretrained(
            source, output_loading_info=True, ignore_mismatched_sizes=True, **arguments
        )
    except (OSError, SafetensorError) as error:
        raise UserError(f"{named()}: {source} cannot be loaded: {reason(error)}") from error
    lacking = [name for name in sorted(report["missing_keys"]) if new is None or not name.startswith(f"{new}.")]
    unexpected = _own_layers(network, report["unexpected_keys"])
    if lacking:
        raise UserError(f"{named()}: {source} {_lacks(lacking, unexpected)}")
    for name, found, wanted in (*sorted(report["mismatched_keys"]), *_misfits_in_4_bits(network)):
        raise UserError(f"{named()}: {source} {_misfit(name, list(found), list(wanted))}")
    if unexpected:
        raise UserError(
            f"{named()}: {source} holds {_several(unexpected)}, which the network of its config.json does not have; "
            "correct config.json (such as its number of layers), or save the model again"
        )
    if getattr(network, "quantization_method", None) is None and (whole := _whole_numbers(source)) is not None:
        raise UserError(
            f"{named()}: {source}: {whole} holds whole numbers, which are not weights; save the model again"
        )
    check_finite(network.named_parameters(), source)
    _note_untied(network)
    return network, bool(report["missing_keys"])


def check_finite(weights: Iterable[tuple[str, Tensor]], source: str | Path) -> None:
    """Raise UserError if a loaded weight is NaN or infinite: it would be blamed on training or on the family later.

    Args:
        weights: by name; what has no values, or no floating-point ones, is passed over.
        source: where they come from.
    """
    bad = [(name, weight) for name, weight in weights if not math.isfinite(largest(weight))]
    if bad:
        dtype = str(bad[0][1].dtype).removeprefix("torch.")
        raise UserError(
            f"{named()}: {source} has weights that are not finite ({_several([name for name, _ in bad])}, in {dtype}); "
            "take a checkpoint from before they blew up, or the file as it was published"
        )


def largest(weight: Tensor) -> float:
    """Return the largest absolute value of a weight, NaN if it has one; 0 for one without floating-point values."""
    if weight.is_meta or not weight.is_floating_point() or not weight.numel():
        return 0.0
    low, high = torch.aminmax(weight.detach())  # one pass, without a copy; NaN if any weight is
    return float(torch.maximum(-low, high))


def check_whole(folder: str | Path) -> None:
    """Read the header of every safetensors file in a folder, but no weights.

    Raises:
        SafetensorError: a header is invalid, or the file is shorter or longer than it says.
    """
    for file in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(file, framework="pt"):
            pass


def _whole_numbers(source: str) -> str | None:
    """Return the first weight of an integer dtype in a folder's safetensors files; None for a hub name."""
    for file in sorted(Path(source).glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  # it is not a dict
                if name.endswith(".weight") and tensors.get_slice(name).get_dtype().startswith(("I", "U", "BOOL")):
                    return str(name)
    return None


def _check_generation_config(source: str) -> None:
    """Raise UserError for an unreadable generation_config.json: transformers would continue without it."""
    file = Path(source) / "generation_config.json"
    if file.exists():
        with blaming(f"{named()}: {file} cannot be read", "correct it, or delete it"):
            settings = json.loads(file.read_text(encoding="utf-8"))
            if not isinstance(settings, dict):
                raise ValueError("it is not a JSON object")
            for name in (f"{token}_token_id" for token in ("eos", "pad", "bos")):
                found = settings.get(name)
                ids = found if isinstance(found, list) else [] if found is None else [found]
                if not all(isinstance(each, int) for each in ids):
                    raise ValueError(f"{name}: found {found!r}; must be the id of a token, or a list of ids")


def _own_layers(network: Any, names: Collection[str]) -> list[str]:
    """Return the names that belong to the network's own parts, and not to the head of another task."""
    own = {name for part in (network, network.base_model) for name, _ in part.named_children()}
    buffers = {name for name, _ in network.named_buffers()}
    wanted = {*own, network.base_model_prefix, *_WRAPPERS}
    return sorted(name for name in names if name.split(".")[0] in wanted and name not in buffers)


def _lacks(lacking: Sequence[str], unexpected: Sequence[str]) -> str:
    if all(name.startswith(f"{HEAD}.") for name in lacking):
        return NO_HEAD
    text = f"lacks {_several(lacking)} of the network in its config.json; what is missing would stay random. "
    wrapper = next((name.split(".")[0] for name in unexpected if name.split(".")[0] in _WRAPPERS), None)
    if wrapper is not None:
        return f'{text}Its names begin with "{wrapper}.": save the model inside the wrapper, or take that off the names'
    if all(name.startswith(("lm_head.", "embed_out.")) for name in lacking):
        return (
            f"{text}It has no output layer: a reward model's folder is not a language model; give the model before it"
        )
    return f"{text}Save the whole model again, or correct config.json"


def _misfit(name: str, found: list[int], wanted: list[int]) -> str:
    if name.split(".")[0] in (HEAD, "classifier"):
        needed = "a reward model has exactly one" if wanted[0] == 1 else "a process reward model has 2, wrong and right"
        return f"has {found[0]} labels ({name} is {found}); {needed}"
    return f"does not fit its config.json: {name} is {found}, the network needs {wanted}; save the model again"


def _misfits_in_4_bits(network: Any) -> Iterator[tuple[str, Sequence[int], Sequence[int]]]:
    """Yield quantised weights whose shape differs from their layer's: transformers quantises them without a report."""
    for name, module in network.named_modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is not None and isinstance(module, nn.Linear):
            wanted = (module.out_features, module.in_features)
            if tuple(state.shape) != wanted:
                yield f"{name}.weight", state.shape, wanted


def _several(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} weights, such as {names[0]}"


def _note_untied(network: Any) -> None:
    """Record in the config that the output layer has its own weights, if a folder has them despite the config."""
    read, written = network.get_input_embeddings(), network.get_output_embeddings()
    if read is not None and written is not None and getattr(written, "weight", None) is not read.weight:
        network.config.tie_word_embeddings = False
        network.config.get_text_config().tie_word_embeddings = False
