"""The available kernels by name: what each replaces, where it was measured, and what it needs.

Nothing here imports torch, so that unknown names and kernels without effect are found before torch is imported.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_lightning.errors import UserError

# Transformers families (`model_type`) whose layers are h + attend(norm(h)), then h + mlp(norm(h)), with a gated mlp.
# Each is tested.
GATED = ("gemma", "llama", "mistral", "qwen2", "qwen3")
# Families whose attention depends only on what a token may read and on the position ids, each tested. Others (sliding
# windows, ALiBi, state spaces) keep separate rows.
PACKABLE = ("gemma", "gpt2", "llama", "mistral", "qwen2", "qwen3")
CPU = ("cpu",)
Asked = str | tuple[str, ...]  # `auto`, `none`, or names


@dataclass(frozen=True)
class Kernel:
    """A fast path.

    Args:
        name: its name in `model.kernels`, and that of its module in this folder.
        replaces: what it replaces of another library.
        measured: the hardware on which it was measured (docs/kernels.md).
        auto: kinds of device on which `auto` selects it: those where it was measured to be worthwhile.
        devices: kinds of device that it runs on; None: any.
        families: the `model_type`s that it supports; None: any.
        float32: `weights`: it works only with float32 weights; `any`: a float32 adapter is enough.
        autocast: whether it works under autocast.
        needs: kernels without which it has no effect.
    """

    name: str
    replaces: str
    measured: str
    auto: tuple[str, ...] = CPU
    devices: tuple[str, ...] | None = None
    families: tuple[str, ...] | None = None
    float32: str | None = None
    autocast: bool = True
    needs: tuple[str, ...] = ()


_ZEN_5 = "AMD Zen 5, two cores"
# In the order in which they are put into a network.
KERNELS: dict[str, Kernel] = {
    kernel.name: kernel
    for kernel in (
        Kernel(
            "packing",
            "rows padded side by side, and `sdpa_attention_forward` of transformers",
            _ZEN_5,
            auto=("cpu", "cuda"),
            families=PACKABLE,
        ),
        Kernel(
            "row_attention",
            "torch's `scaled_dot_product_attention` on long packed rows",
            _ZEN_5,
            devices=CPU,
            families=PACKABLE,
            float32="weights",
            autocast=False,
            needs=("packing",),
        ),
        Kernel(
            "last_layer",
            "the forward pass of transformers' last decoder layer on packed rows",
            _ZEN_5,
            families=GATED,
            needs=("packing",),
        ),
        Kernel("gated_blocks", "the forward pass of transformers' gated MLPs", _ZEN_5, families=GATED),
        Kernel(
            "fast_products",
            "`torch.nn.Linear`, by oneDNN",
            f"{_ZEN_5}; `auto` wants AVX-512 on AMD",
            devices=CPU,
            float32="any",
            autocast=False,
        ),
        Kernel(
            "norms",
            "the backward pass of transformers' RMS norms",
            _ZEN_5,
            families=tuple(family for family in GATED if family != "gemma"),  # Gemma multiplies by 1 + w
            float32="weights",
        ),
    )
}


def read_asked(asked: Any, key: str = "model.kernels") -> Asked:
    """Return the requested kernels, as `auto`, `none` or a tuple of names.

    Raises:
        UserError: an unknown name, a repeated name, no name at all, or a name without a kernel that it needs.
    """
    allowed = f"must be auto, none, or a list of {', '.join(KERNELS)}"
    if asked in ("auto", "none"):
        return str(asked)
    if isinstance(asked, str) or not isinstance(asked, Sequence):
        listed = f"did you mean {key}=[{asked}]?" if asked in KERNELS else _meant(asked, ("auto", "none", *KERNELS))
        raise UserError(f"{key}: found {asked}; {allowed}{_after(listed)}")
    names = tuple(asked)
    if not names:
        raise UserError(f"{key}: found an empty list; {allowed}")
    for place, name in enumerate(names):
        if name not in KERNELS:
            raise UserError(f"{key}: no such kernel: {name}; {allowed}{_after(_meant(name, KERNELS))}")
        if name in names[:place]:
            raise UserError(f"{key}: {name} is given twice; give each name once")
        for needed in KERNELS[name].needs:
            if needed not in names:
                raise UserError(f"{key}: {name} has no effect without {needed}; add {needed}, or leave {name} out")
    return names


def _meant(name: Any, candidates: Any) -> str:
    found = difflib.get_close_matches(str(name), list(candidates), n=1)
    return f"did you mean {found[0]}?" if found else ""


def _after(words: str) -> str:
    return f"; {words}" if words else ""


@dataclass(frozen=True)
class Circumstances:
    """What decides whether a kernel has an effect; None: not known yet, so nothing is ruled out.

    Args:
        device: the kind of device that the machine trains on (`cpu`, `cuda`, ...).
        family: the network's `model_type`.
        attention: its `attn_implementation`; None: transformers' choice, which is `sdpa` for the families here.
        weights: the dtype of its weights, such as `float32`.
        adapter: the dtype of an adapter's weights.
        checkpointing: whether activations are recomputed in the backward pass.
        autocast: whether products are computed in another dtype than the weights'.
        fast_products: whether oneDNN is faster than torch's own library on this processor.
    """

    device: str | None = None
    family: str | None = None
    attention: str | None = None
    weights: str | None = None
    adapter: str | None = None
    checkpointing: bool = False
    autocast: bool = False
    fast_products: bool = True


def chosen(
    asked: Asked, given: Circumstances, key: str = "model.kernels", only_fitting: bool = False
) -> tuple[str, ...]:
    """Return the names of the active kernels, in the order of `KERNELS`.

    Args:
        asked: as `read_asked` returns it.
        only_fitting: leave out named kernels that do not fit, as `auto` does.

    Raises:
        UserError: a named kernel does not fit.
    """
    on: list[str] = []
    for kernel in KERNELS.values():
        if not (_is_worth_it(kernel, given) if asked == "auto" else kernel.name in asked and asked != "none"):
            continue
        reason = misfit(kernel, given)
        if reason and asked != "auto" and not only_fitting:
            raise UserError(f"{key}: {kernel.name} {reason}; leave it out, or choose {key}=auto")
        if not reason and all(needed in on for needed in kernel.needs):
            on.append(kernel.name)
    return tuple(on)


def _is_worth_it(kernel: Kernel, given: Circumstances) -> bool:
    return given.device in (None, *kernel.auto) and (kernel.name != "fast_products" or given.fast_products)


def misfit(kernel: Kernel, given: Circumstances) -> str | None:
    """Return why a kernel would have no effect, as the rest of a sentence after its name; None if it has one."""
    if kernel.devices and given.device not in (None, *kernel.devices):
        return f"runs on {' and '.join(kernel.devices)}, and this machine trains on {given.device}"
    if kernel.families and given.family not in (None, *kernel.families):
        return f"fits model_type {' | '.join(kernel.families)}; found {given.family}"
    if kernel.name == "packing" and given.attention not in (None, "sdpa", "sdpa_in_rows"):
        return f"needs attn_implementation=sdpa; found {given.attention}"
    if kernel.name == "gated_blocks" and given.checkpointing:
        return "has no effect under activation_checkpointing=true, which does not keep a layer's tensors"
    types = (given.weights, given.adapter) if kernel.float32 == "any" else (given.weights,)
    if kernel.float32 and given.weights is not None and "float32" not in types:
        return f"computes in float32 only; found {given.weights} weights"
    if not kernel.autocast and given.autocast:
        return "has no effect under a mixed trainer.precision"
    return None
