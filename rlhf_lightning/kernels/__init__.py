"""Kernels: what replaces a class or a function of another library to compute the same numbers faster, or with less.

Each has a name, and `model.kernels` chooses among them: `auto` (those that were measured to be worth it on the hardware
at hand), `none`, or a list of names. `registry` says what there is; `use` puts them into a network.
"""

from rlhf_lightning.kernels.registry import KERNELS, Asked, Circumstances, Kernel, chosen, read_asked

__all__ = ["KERNELS", "Asked", "Circumstances", "Kernel", "chosen", "read_asked"]
